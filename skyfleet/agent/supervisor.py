"""Starts the engine, keeps it running once it has been ready, and never leaves one behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from skyfleet.agent.engine_log import EngineLog
from skyfleet.agent.logs import log, now_iso
from skyfleet.agent.processes import end_group, engine_group
from skyfleet.agent.state import StateDir
from skyfleet.engines.base import Engine, EngineLaunch, EngineUnavailable
from skyfleet.engines.program import environment, program

STOP_GRACE_S = 10.0
FAILURE_LOG_LINES = 40
_FIRST_BACK_OFF_S = 1.0
_MAX_BACK_OFF_S = 30.0
#: An engine that served this long is well again: its next crash starts the back-off from the beginning.
_WELL_AFTER_S = 60.0
#: An engine that was restarted this often within that time is failing, whatever it does at the moment.
FAILING_RESTARTS = 5
FAILING_WITHIN_S = 1800.0
_LAST_OUTPUT_S = 2.0
_MAX_REASON_CHARS = 300
#: In the environment of every process of the engine, so that none is missed when they are ended.
_MARK = "SKYFLEET_ENGINE_MARK"


class EngineFailed(Exception):
    """The engine ended, or could not be started, before it was ever ready. Holds its last log lines."""

    def __init__(self, reason: str, log_tail: list[str]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail


class EngineSupervisor:
    """One engine process (under its guard) at a time.

    `observe` is called with each line of the engine's log. Before `was_ready()` an engine that ends raises
    `EngineFailed` out of `run`; after it, the engine is started again after 1, 2, 4 … 30 s, for as long as it takes:
    that it is `failing` is for others to act on.
    """

    def __init__(
        self,
        engine: Engine,
        launch: EngineLaunch,
        env: dict[str, str],
        state: StateDir,
        observe: Callable[[str], None],
    ) -> None:
        self._launch = launch
        self._env = env
        self._state = state
        self._log = EngineLog(state.engine_log, observe)
        self._process: subprocess.Popen[bytes] | None = None
        self._exit: asyncio.Future[int] | None = None
        self.engine = engine
        self.ready = False
        self._stopping = False
        self._mark = secrets.token_hex(8)
        self._serving_since: float | None = None
        self._ended_because: str | None = None
        self._restarted: deque[float] = deque(maxlen=FAILING_RESTARTS)
        self.starts = 0
        self.restarts = 0
        self.last_restart_at: str | None = None
        self.last_restart_reason: str | None = None

    @property
    def alive(self) -> bool:
        """Whether an engine process runs now."""
        return self._exit is not None and not self._exit.done()

    @property
    def stopped(self) -> bool:
        """Whether the engine was stopped on purpose, for good."""
        return self._stopping

    @property
    def serving(self) -> bool:
        """Whether the process that runs now has served."""
        return self.alive and self._serving_since is not None

    @property
    def failing(self) -> bool:
        """Whether the engine was restarted `FAILING_RESTARTS` times within the last `FAILING_WITHIN_S`."""
        full = len(self._restarted) == FAILING_RESTARTS
        return full and asyncio.get_running_loop().time() - self._restarted[0] <= FAILING_WITHIN_S

    @property
    def state(self) -> str:
        """In a word: `starting`, `serving`, `restarting` (none runs), `failing` or `stopped`."""
        if self._stopping:
            return "stopped"
        if self.failing:
            return "failing"
        if not self.alive:
            return "restarting"
        return "serving" if self.serving else "starting"

    def was_ready(self) -> None:
        """The engine has served: from now on its end is answered with a restart, and so is its silence."""
        self.ready = True
        if self.alive and self._serving_since is None:
            self._serving_since = asyncio.get_running_loop().time()

    def end_previous(self) -> None:
        """End what an engine that was started from this state folder may have left running."""
        group = self._state.engine_group()
        ended = end_group(group)
        if ended:
            log("engine.leftover_ended", level="warning", processes=ended)

    async def run(self) -> None:
        """Keep the engine running until `stop`. Raises `EngineFailed` (see the class)."""
        back_off = _FIRST_BACK_OFF_S
        loop = asyncio.get_running_loop()
        while True:
            self._serving_since = self._ended_because = None
            self.starts += 1
            try:
                reason = _how_it_ended(await self._run_once())
            except (EngineUnavailable, OSError) as error:
                reason = str(error)
            reason = self._ended_because or reason
            if self._stopping:
                return
            if not self.ready:
                raise EngineFailed(reason, self._log.tail(FAILURE_LOG_LINES))
            if self._serving_since is not None and loop.time() - self._serving_since > _WELL_AFTER_S:
                back_off = _FIRST_BACK_OFF_S
            log("engine.ended", level="error", reason=reason, restart_in_s=back_off)
            await asyncio.sleep(back_off)
            if self._stopping:
                return
            back_off = min(2 * back_off, _MAX_BACK_OFF_S)
            self.restarts += 1
            self.last_restart_at, self.last_restart_reason = now_iso(), reason[:_MAX_REASON_CHARS]
            self._restarted.append(loop.time())

    async def restart(self, start: int, why: str) -> None:
        """End the engine that was started as the `start`th, for `run` to start another; nothing if it is gone."""
        if start != self.starts or not self.alive or self._stopping:
            return
        log("engine.restarting", level="error", reason=why)
        self._ended_because = why
        await self._end()
        if start == self.starts and self.alive:
            # The guard is gone or stuck. A process that the kernel holds on to is waited for elsewhere (`run`).
            await asyncio.to_thread(self.end_previous)

    async def stop(self) -> None:
        """End the engine for good: SIGTERM, and SIGKILL to all that is left after 10 s. Safe to call twice."""
        self._stopping = True
        if self.alive:
            log("engine.stopping")
            await self._end()
        # Nothing is left here unless the guard was killed or is stuck.
        self.end_previous()

    def close(self) -> None:
        """Close the engine's log file."""
        self._log.close()

    async def _end(self) -> None:
        """Have the guard end the engine that runs, and wait for as long as that may take."""
        assert self._process is not None
        assert self._exit is not None
        self._process.send_signal(signal.SIGTERM)
        await asyncio.wait({self._exit}, timeout=STOP_GRACE_S + 3)

    async def _run_once(self) -> int:
        """Start the engine and wait for its end; returns its status."""
        command = self.engine.command(self._launch)
        guard = program(sys.executable, "engine-guard", "skyfleet.agent.guard")
        variables = {
            **os.environ,
            **environment(),
            "PYTHONUNBUFFERED": "1",  # a line that sits in a buffer is a stage that nobody sees
            **self.engine.environment(self._launch),
            **self._env,
            _MARK: self._mark,
        }
        process = subprocess.Popen(  # noqa: ASYNC220 - a fork of a small process; waiting is in a thread
            [*guard, "--grace-s", str(STOP_GRACE_S), "--", *command],
            stdin=subprocess.PIPE,  # the guard's sign that the agent lives; nothing is ever written
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._launch.work_dir,
            env=variables,
            start_new_session=True,
        )
        self._process = process
        # A thread waits, because asyncio's own processes count as ended only when their pipes are closed, and a
        # child of an engine whose guard was killed would hold them open.
        self._exit = asyncio.ensure_future(asyncio.to_thread(process.wait))
        self._state.keep_engine_group(engine_group(process.pid, f"{_MARK}={self._mark}"))
        log("engine.started", engine=self.engine.name, pid=process.pid)
        if self._stopping:  # asked for while it was being started
            process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        assert process.stdout is not None
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), process.stdout
        )
        reading = asyncio.ensure_future(self._read(output))
        try:
            status = await asyncio.shield(self._exit)
            self.end_previous()
            await asyncio.wait({reading}, timeout=_LAST_OUTPUT_S)
        finally:
            reading.cancel()
            transport.close()
            process.stdin.close()
        self._log.end_of_output()
        return status

    async def _read(self, output: asyncio.StreamReader) -> None:
        while data := await output.read(65536):
            self._log.feed(data)


def _how_it_ended(status: int) -> str:
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        with contextlib.suppress(ValueError):
            return f"the engine was ended by {signal.Signals(number).name}"
    return f"the engine exited with status {status}"
