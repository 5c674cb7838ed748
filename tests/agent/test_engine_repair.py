"""Engines that hang and engines that crash again and again, as real processes under a real agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.schemas import HeartbeatRequest
from skyfleet.agent.hang import BLIND_FACTOR, HangWatch
from skyfleet.agent.supervisor import FAILING_RESTARTS
from skyfleet.engines.http_server import HttpServer, Request, Response, json_response
from skyfleet.engines.registry import engine
from tests.agent.harness import AgentProcess, FakeControlPlane, bare_python
from tests.ports import free_port
from tests.waiting import eventually

Machine = Callable[..., AgentProcess]

HANG_AFTER_S = 3.0


def last(control_plane: FakeControlPlane) -> dict[str, Any]:
    """The last heartbeat, as the API takes it."""
    body: dict[str, Any] = control_plane.heartbeats[-1].body if control_plane.heartbeats else {}
    if body:
        HeartbeatRequest.model_validate(body)
    return body


def serves(control_plane: FakeControlPlane, restarts: int = 0) -> bool:
    """Whether the last heartbeat says that the engine is well after that many restarts."""
    beat = last(control_plane)
    return bool(beat) and beat["engine"]["healthy"] and beat["agent"]["engine_restarts"] == restarts


def engine_pid(agent: AgentProcess) -> int:
    """The engine's own process."""
    for pid in agent.engine_processes():
        line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"engine-guard" not in line and b"gpu-reader" not in line:
            return pid
    raise AssertionError("no engine runs")


async def test_an_engine_that_hangs_is_ended_and_started_anew(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    agent = machine(engine_hang_after_s=HANG_AFTER_S, python=bare_python())  # the oldest one, if there is one
    agent.start()
    await eventually(lambda: serves(control_plane), what="a good heartbeat")
    assert last(control_plane)["agent"]["engine_last_restart_reason"] is None
    before = set(agent.engine_processes())
    os.kill(engine_pid(agent), signal.SIGSTOP)
    stopped_at = time.monotonic()
    await eventually(lambda: "the engine hangs" in agent.log, timeout_s=30, what="the hang seen")
    assert time.monotonic() - stopped_at > HANG_AFTER_S * 0.8
    await eventually(lambda: serves(control_plane, restarts=1), timeout_s=40, what="a good heartbeat after it")
    assert not before & set(agent.engine_processes())
    beat = last(control_plane)
    assert "no sign of life" in beat["agent"]["engine_last_restart_reason"]
    assert beat["agent"]["engine_last_restart_at"] is not None
    assert beat["engine"]["state"] == "serving"
    assert len(control_plane.registrations) == 1
    # Once well it is left alone.
    beats = len(control_plane.heartbeats)
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 20, what="twenty more heartbeats")
    assert serves(control_plane, restarts=1)


async def test_a_hung_engine_and_its_children_are_gone_when_the_agent_is_told_to_end(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """Also while it is being restarted for its hang."""
    agent = machine(engine_hang_after_s=1.0)
    agent.start()
    await eventually(lambda: serves(control_plane), what="a good heartbeat")
    os.kill(engine_pid(agent), signal.SIGSTOP)
    await eventually(lambda: "event=engine.restarting" in agent.log, timeout_s=30, what="the hang seen")
    agent.signal(signal.SIGTERM)
    await eventually(lambda: agent.ended, timeout_s=30, what="the agent's end")
    assert agent.exit_status == 0
    assert agent.engine_processes() == []


async def test_kill_minus_9_of_the_agent_leaves_no_engine_that_hangs(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    agent = machine()
    agent.start()
    await eventually(lambda: serves(control_plane), what="a good heartbeat")
    os.kill(engine_pid(agent), signal.SIGSTOP)
    agent.signal(signal.SIGKILL)
    await eventually(lambda: agent.engine_processes() == [], what="no process left")


class StallingEngine:
    """An HTTP server that can be late with its health while its figures move, or be silent altogether."""

    def __init__(self) -> None:
        self.health_status = 200
        self.late = self.silent = self.moving = False
        self.metrics_asked = 0
        self._figure = 0
        self._never = asyncio.Event()
        self._server = HttpServer(self._handle, lambda status, message: {"detail": message})
        self.port = free_port()

    async def start(self) -> None:
        await self._server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        self._never.set()
        await self._server.stop(0)

    async def _handle(self, request: Request) -> Response:
        if self.silent or (self.late and request.path == "/health"):
            await self._never.wait()
        if request.path == "/health":
            return json_response({}, self.health_status)
        self.metrics_asked += 1
        self._figure += self.moving
        return Response(body=f"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.{self._figure:06}\n".encode())


class Judged:
    """Stands for a supervisor: notes what it is told to restart, and starts another that has not served yet."""

    def __init__(self) -> None:
        self.alive = self.serving = True
        self.stopped = False
        self.starts = 1
        self.restarted: list[float] = []

    def was_ready(self) -> None:
        self.serving = True

    async def restart(self, start: int, _why: str) -> None:
        assert start == self.starts
        self.restarted.append(time.monotonic())
        self.starts += 1
        self.serving = False


class Watched:
    """A watch, over that engine, that takes a second's silence for a hang."""

    HANG_AFTER_S = 1.0

    def __init__(self, stalling: StallingEngine, kind: str) -> None:
        self.excused = False
        self.supervisor = Judged()
        self.watch = HangWatch(
            self.supervisor,  # type: ignore[arg-type]
            engine(kind),
            f"http://127.0.0.1:{stalling.port}",
            self.HANG_AFTER_S,
            lambda: self.excused,
        )


@pytest.fixture
async def stalling() -> AsyncIterator[StallingEngine]:
    """An engine that is well."""
    made = StallingEngine()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def watched(stalling: StallingEngine, request: pytest.FixtureRequest) -> AsyncIterator[Watched]:
    """It, watched as an engine of the kind that the test names, vLLM if none."""
    made = Watched(stalling, getattr(request, "param", "vllm"))
    task = asyncio.ensure_future(made.watch.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class TestWhatIsAHang:
    """The line between an engine that hangs and one that is busy."""

    async def test_late_with_its_health_while_its_figures_move_is_busy(
        self, stalling: StallingEngine, watched: Watched
    ) -> None:
        stalling.late = stalling.moving = True
        asked = stalling.metrics_asked
        await eventually(lambda: stalling.metrics_asked >= asked + 9, what="three times the probes of a hang")
        assert watched.supervisor.restarted == []
        # The moment they stand still as well it hangs.
        stalling.moving = False
        await eventually(lambda: watched.supervisor.restarted, what="a restart")

    @pytest.mark.parametrize("how", ["silent", "late", "refuses"])
    async def test_no_health_and_no_movement_is_a_hang(
        self, stalling: StallingEngine, watched: Watched, how: str
    ) -> None:
        if how == "refuses":
            stalling.health_status = 503
        else:
            setattr(stalling, how, True)
        since = time.monotonic()
        await eventually(lambda: watched.supervisor.restarted, what="a restart")
        assert watched.supervisor.restarted[0] - since >= Watched.HANG_AFTER_S
        # The next one has not served yet: it may be loading its model for as long as that takes.
        asked = stalling.metrics_asked
        stalling.silent = stalling.late = False
        stalling.health_status = 503
        await eventually(lambda: stalling.metrics_asked >= asked + 12, what="many more probes")
        assert len(watched.supervisor.restarted) == 1
        stalling.health_status = 200
        await eventually(lambda: watched.supervisor.serving, what="its first answer")
        stalling.health_status = 503
        await eventually(lambda: len(watched.supervisor.restarted) == 2, what="the second restart")

    async def test_one_that_drains_is_let_be(self, stalling: StallingEngine, watched: Watched) -> None:
        watched.excused = True
        stalling.health_status = 500
        asked = stalling.metrics_asked
        await eventually(lambda: stalling.metrics_asked >= asked + 12, what="many more probes")
        assert watched.supervisor.restarted == []

    @pytest.mark.parametrize("watched", ["command"], indirect=True)
    async def test_one_without_figures_is_waited_for_longer(self, stalling: StallingEngine, watched: Watched) -> None:
        """It cannot show that it is busy."""
        stalling.late = True
        since = time.monotonic()
        await eventually(lambda: watched.supervisor.restarted, what="a restart")
        assert watched.supervisor.restarted[0] - since >= BLIND_FACTOR * Watched.HANG_AFTER_S
        assert stalling.metrics_asked == 0


async def test_an_engine_that_crashes_in_a_loop_is_failing_and_is_tried_on(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """It serves once, and crashes at each start after that until it is mended."""
    agent = machine()
    script = (
        "import os, sys; port, folder = sys.argv[1:]; "
        "served, mended = (os.path.exists(folder + '/' + name) for name in ('served', 'mended')); "
        "(served and not mended) and sys.exit(7); open(folder + '/served', 'w').close(); "
        "from http.server import ThreadingHTTPServer, BaseHTTPRequestHandler as H; "
        "H.do_GET = lambda self: (self.send_response(200), self.end_headers()); "
        "ThreadingHTTPServer(('127.0.0.1', int(port)), H).serve_forever()"
    )
    agent.boot["engine"] = {"name": "command", "command": [sys.executable, "-c", script, "{port}", str(agent.folder)]}
    agent.start()
    await eventually(lambda: serves(control_plane), what="a good heartbeat")
    os.kill(engine_pid(agent), signal.SIGKILL)
    # Pauses of 1, 2, 4, 8 and 16 s before these.
    await eventually(
        lambda: last(control_plane)["engine"]["state"] == "failing", timeout_s=90, what="a heartbeat that says so"
    )
    beat = last(control_plane)
    assert beat["agent"]["engine_restarts"] == FAILING_RESTARTS
    assert "status 7" in beat["agent"]["engine_last_restart_reason"]
    assert not beat["engine"]["healthy"]
    states = {call.body["engine"]["state"] for call in control_plane.heartbeats}
    assert {"serving", "restarting", "failing"} <= states
    (agent.folder / "mended").touch()
    await eventually(lambda: last(control_plane)["engine"]["healthy"], timeout_s=60, what="the engine back")
    # One that was mended a moment ago is not well yet.
    assert last(control_plane)["engine"]["state"] == "failing"
    assert not agent.ended
