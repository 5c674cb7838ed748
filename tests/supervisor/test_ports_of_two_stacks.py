"""Two stacks that start at the same moment never choose the same port, although neither listens yet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from skyfleet.stack.folder import DataFolder, PortTaken


@pytest.mark.skipif(sys.platform != "linux", reason="abstract Unix sockets are Linux's")
def test_a_port_that_another_stack_chose_is_taken_until_it_is_let_go(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "first"), DataFolder(tmp_path / "second")
    first.lock()
    second.lock()
    chosen, _ = first.ports({}, "127.0.0.1")
    others, _ = second.ports({}, "127.0.0.1")
    assert not set(chosen.values()) & set(others.values())
    with pytest.raises(PortTaken):
        second.ports({"api": chosen["api"]}, "127.0.0.1")
    again, moved = first.ports({}, "127.0.0.1")
    assert (again, moved) == (chosen, {})
    first.unlock()
    mine, _ = second.ports({"api": chosen["api"]}, "127.0.0.1")
    assert mine["api"] == chosen["api"]
    second.unlock()
