"""Runs of released versions survive this one: recorded histories replay without a difference in their commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from workflows.registry import SANDBOX, WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def _replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter, workflow_runner=SANDBOX)


def _history(path: Path, change: Callable[[str], str]) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, change(path.read_text()))


def test_there_are_histories_of_every_end_of_a_launch() -> None:
    """Replaying nothing would prove nothing."""
    ends = {path.stem.rsplit("-", 1)[1] for path in HISTORIES}
    assert {"ready", "fallback", "failed", "cancelled", "node"} <= ends


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_run_replays(path: Path) -> None:
    """A change of the order of commands without a patch would strand runs that are under way."""
    await _replayer().replay_workflow(_history(path, lambda text: text))


async def test_a_changed_command_is_noticed() -> None:
    """The replay can fail: a history whose first activity has another name does not pass."""
    path = next(item for item in HISTORIES if item.stem.endswith("ready"))
    changed = _history(path, lambda text: text.replace('"validate_launch"', '"something_else"'))
    with pytest.raises(NondeterminismError):
        await _replayer().replay_workflow(changed)
