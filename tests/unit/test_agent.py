"""Pieces of the node agent by themselves: the bundle, logs, the engine's log file, processes, answers of a server."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from skyfleet import __version__
from skyfleet.agent import bundle, http, logs, processes
from skyfleet.agent.control_plane import BackOff, ControlPlane, StageReached
from skyfleet.agent.engine_log import KEPT_LINES, MAX_LINE_CHARS, EngineLog
from skyfleet.agent.probe import EngineProbe
from skyfleet.agent.stages import StageReporter
from skyfleet.agent.state import StateDir, StateInUse
from skyfleet.engines.base import EngineMetrics
from skyfleet.engines.registry import engine


class TestBundle:
    def test_is_the_same_every_time_and_everywhere(self) -> None:
        first = bundle.build()
        bundle.build.cache_clear()
        assert bundle.build() == first
        assert bundle.sha256() == hashlib.sha256(first).hexdigest()
        # In another process, with another hash seed, folder, umask and time zone.
        script = "import os; os.umask(0o077); from skyfleet.agent import bundle; print(bundle.sha256())"
        root = str(Path(bundle.__file__).parents[2])
        environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": root}
        other = subprocess.run(
            [sys.executable, "-c", script], cwd="/", env=environment, capture_output=True, text=True, check=True
        )
        assert other.stdout.strip() == bundle.sha256()

    def test_holds_the_agent_and_the_engines_alone(self) -> None:
        archive = zipfile.ZipFile(io.BytesIO(bundle.build()))
        names = archive.namelist()
        assert names == sorted(names)
        assert {"__main__.py", "skyfleet/__init__.py", "skyfleet/agent/main.py", "skyfleet/engines/echo.py"} <= set(
            names
        )
        assert {name.rsplit("/", 1)[0] for name in names if "/" in name} == {
            "skyfleet",
            "skyfleet/agent",
            "skyfleet/engines",
        }
        assert archive.testzip() is None

    def test_runs_alone(self, tmp_path: Path) -> None:
        path = tmp_path / bundle.FILE_NAME
        path.write_bytes(bundle.build())
        asked = subprocess.run(
            [sys.executable, "-I", "-S", str(path), "--version"], cwd="/", capture_output=True, text=True, check=True
        )
        assert asked.stdout.strip() == f"node-agent {__version__}"

    def test_can_be_built_by_the_bundle_itself(self, tmp_path: Path) -> None:
        """The sources are read as resources, so they need not be files: a zip (or a wheel) will do."""
        path = tmp_path / bundle.FILE_NAME
        path.write_bytes(bundle.build())
        script = (
            f"import sys; sys.path.insert(0, {str(path)!r})\nfrom skyfleet.agent import bundle\nprint(bundle.sha256())"
        )
        asked = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
        assert asked.stdout.strip() == bundle.sha256()


class TestLogs:
    def test_one_line_an_event_without_secrets(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "_secrets", set())
        logs.hide(["tok-12345", "abc"])
        logs.log("thing.done", level="warning", why='said "no"\nand tok-12345', n=3, nothing=None, path="/a/b")
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert line.endswith('level=warning event=thing.done why="said \\"no\\"\\nand ***" n=3 path=/a/b\n')

    def test_engine_log_is_bounded(self, tmp_path: Path) -> None:
        seen: list[str] = []
        log = EngineLog(tmp_path / "engine.log", seen.append, max_file_bytes=1000)
        for n in range(1000):
            log.feed(f"line {n}\n".encode())
        assert log.tail(40) == [f"line {n}" for n in range(960, 1000)]
        assert len(log.tail(10_000)) == KEPT_LINES
        assert len(seen) == 1000
        kept = (tmp_path / "engine.log.1").read_text() + (tmp_path / "engine.log").read_text()
        assert kept.endswith("line 999\n")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000

    def test_engine_log_takes_output_as_it_comes(self, tmp_path: Path) -> None:
        seen: list[str] = []
        log = EngineLog(tmp_path / "engine.log", seen.append)
        for piece in (b"a 10%\ra 2", b"0%\r", b"\n\n  \nb\xff", b"\xc3", b"\xa9\r\n", b"x" * 70_000, b"end"):
            log.feed(piece)
        log.end_of_output()
        assert seen[:3] == ["a 10%", "a 20%", "b\ufffd\u00e9"]
        assert all(len(line) <= MAX_LINE_CHARS for line in seen)
        assert seen[-1] == "end"
        log.close()


class TestState:
    def test_keeps_secrets_of_one_node_readable_by_the_owner_alone(self, tmp_path: Path) -> None:
        state = StateDir(str(tmp_path / "state"))
        key = state.idempotency_key("node-1")
        assert state.heartbeat_key("node-1") is None
        state.keep_heartbeat_key("node-1", "hb")
        again = StateDir(str(tmp_path / "state"))
        assert (again.idempotency_key("node-1"), again.heartbeat_key("node-1")) == (key, "hb")
        # A folder that comes with a machine's image belongs to another node: nothing of it is used.
        assert again.heartbeat_key("node-2") is None
        assert again.idempotency_key("node-2") != key

    def test_a_torn_file_is_no_state(self, tmp_path: Path) -> None:
        state = StateDir(str(tmp_path))
        (tmp_path / "node.json").write_text('{"node_id": "node-1", "heart')
        (tmp_path / "engine.json").write_text("[1]")
        assert state.heartbeat_key("node-1") is None
        assert state.engine_group() == {}

    def test_one_agent_a_folder(self, tmp_path: Path) -> None:
        state = StateDir(str(tmp_path))
        with state.locked(), pytest.raises(StateInUse), StateDir(str(tmp_path)).locked():
            pass
        with state.locked():
            pass


class TestProcesses:
    mark = f"MARK={os.getpid()}"

    def session(self, child_in_its_own: bool = False) -> subprocess.Popen[bytes]:
        """A leader with a child, in a session of their own (or of one each), marked."""
        script = (
            "import subprocess, sys, time; "
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
            f"start_new_session={child_in_its_own}); print(flush=True); time.sleep(600)"
        )
        leader = subprocess.Popen(
            [sys.executable, "-c", script],
            start_new_session=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "MARK": str(os.getpid())},
        )
        assert leader.stdout is not None
        leader.stdout.readline()
        return leader

    def test_ends_a_whole_session(self) -> None:
        leader = self.session()
        (child,) = processes.descendants(leader.pid)
        group = processes.engine_group(leader.pid, self.mark)
        assert processes.end_group(group) == 2
        assert leader.wait(5) == -9
        left = processes.process_info(child)
        assert left is None or left.zombie
        assert processes.end_group(group) == 0

    @pytest.mark.parametrize("own_session", [False, True])
    def test_ends_what_is_left_when_the_leader_is_gone(self, own_session: bool) -> None:
        leader = self.session(own_session)
        (child,) = processes.descendants(leader.pid)
        group = processes.engine_group(leader.pid, self.mark)
        leader.kill()
        leader.wait()
        assert processes.end_group(group) == 1
        left = processes.process_info(child)
        assert left is None or left.zombie

    @pytest.mark.parametrize(
        "change",
        [
            {"start_ticks": 1, "mark": "MARK=another"},
            {"boot_id": "another"},
            {"pid": 1},
            {"pid": "x"},
            {"start_ticks": None},
            {"mark": ""},
            {"mark": None},
        ],
    )
    def test_leaves_others_alone(self, change: dict[str, Any]) -> None:
        leader = self.session()
        try:
            group = {**processes.engine_group(leader.pid, self.mark), **change}
            assert processes.end_group(group) == 0
            assert leader.poll() is None
        finally:
            processes.end_group(processes.engine_group(leader.pid, self.mark))
            leader.wait()

    def test_names_with_blanks_and_parentheses_are_read_past(self, tmp_path: Path) -> None:
        program = tmp_path / "a) (b c"
        program.symlink_to(sys.executable)
        process = subprocess.Popen([str(program), "-S", "-c", "import time; time.sleep(600)"])
        try:
            info = processes.process_info(process.pid)
            assert info is not None
            assert (info.parent, info.session) == (os.getpid(), os.getsid(0))
        finally:
            process.kill()
            process.wait()


class TestHttp:
    @pytest.mark.parametrize(
        ("raw", "status", "body"),
        [
            (b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}', 200, {"a": 1}),
            (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"a": 1}\r\n0\r\n\r\n', 200, {"a": 1}),
            (b"HTTP/1.1 410 Gone\r\n\r\nnot json", 410, {}),
            (b"HTTP/1.0 204 No Content\r\n\r\n", 204, {}),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 200, {}),
        ],
    )
    async def test_reads_answers(self, raw: bytes, status: int, body: dict[str, Any]) -> None:
        answer = await self.ask(raw)
        assert (answer.status, answer.json()) == (status, body)

    @pytest.mark.parametrize(
        "raw",
        [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"],
        ids=["lost", "odd", "torn"],
    )
    async def test_what_is_no_whole_answer_is_none(self, raw: bytes) -> None:
        with pytest.raises(http.Unreachable):
            await self.ask(raw)

    async def test_a_server_that_says_nothing_is_given_up(self) -> None:
        release = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(http.Unreachable, match=r"no answer within 0\.1 s"):
            await http.request("GET", url, timeout_s=0.1)
        release.set()
        server.close()
        with pytest.raises(http.Unreachable, match="Refused"):
            await http.request("GET", url)

    async def ask(self, raw: bytes) -> http.Answer:
        """The answer to a request to a server that says `raw`."""

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            writer.close()

        server = await asyncio.start_server(say, "127.0.0.1", 0)
        try:
            return await http.request(
                "GET", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x?y=z", timeout_s=5
            )
        finally:
            server.close()


def test_back_off_grows_to_fifteen_seconds_with_jitter() -> None:
    random.seed(1)
    back_off = BackOff()
    delays = [back_off.delay_s() for _ in range(10)]
    for delay, full in zip(delays, [0.5, 1, 2, 4, 8, 15, 15, 15, 15, 15], strict=True):
        assert full / 2 <= delay <= full
    assert len(set(delays[5:])) == 5


class Recorded(ControlPlane):
    """A control plane that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def report_stage(self, reached: StageReached) -> None:
        """Note it."""
        self.told.append(reached.stage)


async def test_stages_only_go_forward() -> None:
    control_plane = Recorded()
    stages = StageReporter(control_plane)
    for stage in ("INSTALLING", "STARTING_ENGINE", "LOADING_MODEL", "STARTING_ENGINE"):
        stages.reach(stage, "seen")
    running = asyncio.ensure_future(stages.run())
    await stages.flush(5)
    running.cancel()
    assert control_plane.told == ["INSTALLING", "STARTING_ENGINE"] == [reached.stage for reached in stages.reached]


async def test_token_rate_is_none_after_a_counter_began_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = EngineProbe(engine("vllm"), "http://127.0.0.1:1", 10.0)
    times = iter([0.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: next(times), raising=False)
    rates = [
        probe.tokens_per_second(EngineMetrics(generated_tokens_total=total))
        for total in (100.0, 300.0, 300.0, 10.0, None, 20.0)
    ]
    monkeypatch.undo()
    assert rates == [None, 100.0, 0.0, None, None, None]


def test_the_guard_leaves_nothing_that_one_look_at_proc_missed() -> None:
    """A process that changes its parent while /proc is read is in no list: the kernel is asked whether one is left."""
    script = """
import subprocess
from skyfleet.agent import guard

looks = iter([[], []])
really = guard.descendants
guard.descendants = lambda pid: really(pid) if (seen := next(looks, None)) is None else seen
child = subprocess.Popen(["sleep", "60"])
guard._end_all()
print(child.pid)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert processes.process_info(int(ended.stdout)) is None
