"""The data folder: one owner, ports that are remembered, secrets for their owner alone, leftovers ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyfleet.client import Endpoints, find_endpoints
from skyfleet.stack import folder as folder_module
from skyfleet.stack.folder import USUAL_PORTS, DataFolder, FolderInUse, PortTaken
from skyfleet.stack.processes import end_stale, exit_text, start_mark
from tests.ports import free_port
from tests.waiting import eventually


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    # The usual ports may be taken here, by a stack that somebody runs.
    monkeypatch.setattr(folder_module, "USUAL_PORTS", {name: free_port() for name in USUAL_PORTS})
    monkeypatch.delenv("SKYFLEET_ADMIN_TOKEN", raising=False)
    return DataFolder(tmp_path / "data")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_second_owner_is_refused_and_told_who_has_it(folder: DataFolder) -> None:
    folder.lock()
    with pytest.raises(FolderInUse, match=rf"pid {os.getpid()}\) runs on {folder.path}"):
        DataFolder(folder.path).lock()
    folder.unlock()
    again = DataFolder(folder.path)
    again.lock()
    again.unlock()


def test_the_lock_ends_with_its_process(folder: DataFolder) -> None:
    code = "import pathlib, sys; from skyfleet.stack import folder; folder.DataFolder(pathlib.Path(sys.argv[1])).lock()"
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, cwd=Path(__file__).parents[2])
    folder.lock()
    folder.unlock()


def test_the_usual_ports_are_used_when_free_and_remembered(folder: DataFolder) -> None:
    ports, moved = folder.ports({}, "127.0.0.1")
    assert ports == folder_module.USUAL_PORTS
    assert moved == {}
    folder.unlock()
    assert DataFolder(folder.path).ports({}, "127.0.0.1") == (ports, {})


def test_a_taken_port_is_replaced_and_the_replacement_kept(folder: DataFolder) -> None:
    usual = folder_module.USUAL_PORTS["api"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", usual))
        other.listen()
        first, _ = folder.ports({}, "127.0.0.1")
    assert first["api"] != usual
    assert len(set(first.values())) == len(first)
    again, moved = folder.ports({}, "127.0.0.1")
    assert again["api"] == first["api"], "nodes look for the API where it was"
    assert moved == {}


def test_a_port_that_had_to_change_is_said(folder: DataFolder) -> None:
    first, _ = folder.ports({}, "127.0.0.1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["api"]))
        other.listen()
        second, moved = folder.ports({}, "127.0.0.1")
    assert moved == {"api": first["api"]}
    assert second["api"] != first["api"]


def test_a_port_that_was_asked_for_is_that_one_or_an_error(folder: DataFolder) -> None:
    wanted = free_port()
    assert folder.ports({"api": wanted}, "127.0.0.1")[0]["api"] == wanted
    with socket.socket() as other:
        other.bind(("127.0.0.1", wanted))
        other.listen()
        with pytest.raises(PortTaken, match=str(wanted)):
            folder.ports({"api": wanted}, "127.0.0.1")


def test_zero_is_any_port_and_not_the_usual_one(folder: DataFolder) -> None:
    """A stack beside the one that people use: the demo's."""
    ports, _ = folder.ports(dict.fromkeys(USUAL_PORTS, 0), "127.0.0.1")
    assert 0 not in ports.values()
    assert len(set(ports.values())) == len(ports)
    assert not set(ports.values()) & set(USUAL_PORTS.values())


def test_a_damaged_memory_is_no_obstacle(folder: DataFolder) -> None:
    (folder.path / "ports.json").write_text("[")
    (folder.path / "pids.json").write_text("{}}")
    assert folder.ports({}, "127.0.0.1")[0] == folder_module.USUAL_PORTS
    assert folder.end_stale_children() == []


def test_the_token_is_made_once_and_secret(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    token = folder.admin_token()
    assert len(token) >= 40
    assert folder.admin_token() == token
    assert (folder.path / "admin_token").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("SKYFLEET_ADMIN_TOKEN", "given")
    assert folder.admin_token() == "given"


def test_endpoints_are_written_whole_for_their_owner_and_removed(folder: DataFolder) -> None:
    folder.write_endpoints(Endpoints(api="http://127.0.0.1:8080", admin_token="t", pids={"api": 1}))
    assert folder.endpoints_file.stat().st_mode & 0o777 == 0o600
    assert {"api", "dashboard", "temporal_ui", "local_cloud", "admin_token"} <= set(
        json.loads(folder.endpoints_file.read_text())
    )
    found = find_endpoints(folder.path)
    assert found is not None
    assert found.admin_token == "t"
    folder.remove_endpoints()
    assert find_endpoints(folder.path) is None
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []


async def test_what_a_killed_run_left_is_ended(folder: DataFolder, sleeper: subprocess.Popen[bytes]) -> None:
    folder.remember_children({"api": sleeper.pid})
    assert DataFolder(folder.path).end_stale_children() == ["api"]
    assert await eventually(lambda: sleeper.poll() == -signal.SIGTERM)
    assert folder.end_stale_children() == []


def test_another_program_with_the_same_pid_is_left_alone(folder: DataFolder, sleeper: subprocess.Popen[bytes]) -> None:
    folder.remember_children({"api": sleeper.pid})
    file = folder.path / "pids.json"
    known = json.loads(file.read_text())
    known["children"]["api"]["mark"] = "1"  # as if it had started at another time
    file.write_text(json.dumps(known))
    assert folder.end_stale_children() == []
    assert sleeper.poll() is None


def test_what_does_not_hear_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    mark = start_mark(process.pid)
    assert mark is not None
    assert end_stale(process.pid, mark, tmp_path, signal.SIGTERM, timeout_s=0.3)
    assert process.wait(5) == -signal.SIGKILL
    assert not end_stale(process.pid, mark, tmp_path, signal.SIGTERM)


def test_how_a_process_ended_in_words() -> None:
    assert exit_text(3) == "exit status 3"
    assert exit_text(-9) == "killed by SIGKILL"
    assert exit_text(-63) == "killed by signal 63"
