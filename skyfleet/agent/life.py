"""The life of a node agent, from boot to power-off.

    boot → INSTALLING → engine started → stages read from its log → health endpoint answers → register → heartbeats

Beside the heartbeats run three watches that cannot hold them up: of the GPUs, of an engine that hangs, and of the
cloud's notice that it takes the machine away.

How it ends:

- the control plane says `shutdown`, or that it gave this machine up (see `control_plane`): engine stopped, machine
  powered off, exit status 0;
- the engine ends before it was ever ready: reported as ENGINE_FAILED with its last log lines, machine powered off,
  exit status 1;
- SIGTERM or SIGINT: engine stopped, exit status 0, machine left on.

An agent that is started again on the same state folder resumes: it ends what a previous run left, starts the engine,
and heartbeats with the key it has. While the control plane is away the engine serves on.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from skyfleet.agent.config import Boot
from skyfleet.agent.control_plane import ControlPlane, Dismissed
from skyfleet.agent.gpus import GpuWatch
from skyfleet.agent.hang import HangWatch
from skyfleet.agent.heartbeat import Heartbeats
from skyfleet.agent.logs import hide, log, now_iso
from skyfleet.agent.notices import NoticeWatch
from skyfleet.agent.probe import EngineProbe, heartbeat_timeout_s
from skyfleet.agent.shutdown import power_off
from skyfleet.agent.stages import INSTALLING, StageReporter
from skyfleet.agent.state import StateDir
from skyfleet.agent.supervisor import EngineFailed, EngineSupervisor
from skyfleet.engines.arguments import EngineArgumentError
from skyfleet.engines.base import Engine, EngineLaunch, EngineUnavailable
from skyfleet.engines.registry import UnknownEngine, engine

_T = TypeVar("_T")

ENDED = 0
ENGINE_FAILED = 1
_HEALTH_LOOK_EVERY_S = 0.1
_FLUSH_STAGES_S = 2.0
#: How long a control plane that is away is waited for to hear of an engine that failed, before powering off unheard.
_TELL_FAILURE_S = 900.0


class Agent:
    """One node's agent. `drain_deadline_s` bounds how long a draining engine may finish its requests."""

    def __init__(self, boot: Boot, state: StateDir, drain_deadline_s: float) -> None:
        self._boot = boot
        self._state = state
        self._drain_deadline_s = drain_deadline_s
        self._control_plane = ControlPlane(boot)
        self._stages = StageReporter(self._control_plane)
        self._supervisor: EngineSupervisor | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Live; returns the exit status."""
        living = asyncio.ensure_future(self._live())
        signalled = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled.set)
        waiting = asyncio.ensure_future(signalled.wait())
        try:
            await asyncio.wait({living, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not living.done():
                log("agent.signalled")
                await _cancelled(living)
                return ENDED
            return living.result()
        finally:
            await _cancelled(waiting)
            if self._supervisor is not None:
                await self._supervisor.stop()
                self._supervisor.close()
            log("agent.ended")

    async def _live(self) -> int:
        log("agent.started", version=self._boot.agent_version, node_id=self._boot.node_id, engine=self._boot.engine)
        status = ENDED
        try:
            await self._serve()
        except Dismissed as dismissed:
            log("agent.dismissed", level="warning", status=dismissed.status)
        except EngineFailed as failed:
            log("engine.failed", level="error", reason=failed.reason)
            status = ENGINE_FAILED
            await self._tell_failure(failed)
        finally:
            for task in list(self._background):
                await _cancelled(task)
        if self._supervisor is not None:
            await self._supervisor.stop()
        await power_off(self._boot.shutdown_command)
        return status

    async def _serve(self) -> None:
        """Until the control plane says `shutdown`. Raises `Dismissed` and `EngineFailed`."""
        key = self._state.heartbeat_key(self._boot.node_id)
        if key is None:
            self._reporting = self._in_background(self._stages.run())
            self._stages.reach(INSTALLING, f"preparing engine {self._boot.engine}")
        chosen, launch = await self._unless_failed(self._install())
        supervisor = EngineSupervisor(chosen, launch, dict(self._boot.env), self._state, self._observe)
        self._supervisor = supervisor
        supervisor.end_previous()
        boot = self._boot
        probe = EngineProbe(chosen, boot.local_url, heartbeat_timeout_s(boot.heartbeat_interval_s))
        if key is None:
            self._in_background(supervisor.run())
            key = await self._unless_failed(self._start_and_register(supervisor, probe))
        else:
            log("agent.resumed")
            supervisor.was_ready()
            self._in_background(supervisor.run())
        hide([key])
        gpus = GpuWatch(boot.heartbeat_interval_s)
        heartbeats = Heartbeats(self._control_plane, supervisor, probe, gpus, self._state, boot, self._drain_deadline_s)
        hangs = HangWatch(supervisor, chosen, boot.local_url, boot.engine_hang_after_s, lambda: heartbeats.draining)
        notices = NoticeWatch(boot, self._control_plane, key, heartbeats.drain_for_good)
        for watch in (gpus, hangs, notices):
            self._in_background(watch.run())
        await self._unless_failed(heartbeats.run(key))

    async def _install(self) -> tuple[Engine, EngineLaunch]:
        """Choose and prepare the engine. Raises `EngineFailed` when it cannot run here."""
        boot = self._boot
        try:
            chosen = engine(boot.engine)
            # The API checked them too; the machine is where they are used, so it does not take its word for it.
            chosen.validate_args(boot.engine_args)
            chosen.validate_command(boot.engine_command)
            manifest = {"model_name": boot.model_name, "model_source": boot.model_source, "written_at": now_iso()}
            launch = EngineLaunch(
                model_name=boot.model_name,
                model_source=boot.model_source,
                host=boot.host,
                port=boot.port,
                args=boot.engine_args,
                command=boot.engine_command,
                work_dir=str(self._state.work_dir),
                manifest=self._state.write_manifest(manifest),
            )
            # In a thread: it may have to ask an interpreter whether an engine is installed.
            await asyncio.to_thread(chosen.prepare, launch)
        except (UnknownEngine, EngineArgumentError, EngineUnavailable, OSError) as error:
            raise EngineFailed(str(error), []) from error
        return chosen, launch

    async def _start_and_register(self, supervisor: EngineSupervisor, probe: EngineProbe) -> str:
        """Wait for the engine to serve, then register; returns the heartbeat key. Raises `Dismissed`."""
        while not (supervisor.alive and await probe.healthy()):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(_HEALTH_LOOK_EVERY_S)
        supervisor.was_ready()
        log("engine.ready", endpoint_url=self._boot.endpoint_url)
        await self._stop_reporting()
        idempotency_key = self._state.idempotency_key(self._boot.node_id)
        hide([idempotency_key])
        key = await self._control_plane.register(idempotency_key, self._stages.reached)
        self._state.keep_heartbeat_key(self._boot.node_id, key)
        log("agent.registered")
        return key

    async def _stop_reporting(self) -> None:
        """Let the stages be reported, but not for long: registration carries them, and ends their token."""
        if self._reporting is not None and not self._reporting.done():
            await self._stages.flush(_FLUSH_STAGES_S)
            self._background.discard(self._reporting)
            await _cancelled(self._reporting)

    async def _tell_failure(self, failed: EngineFailed) -> None:
        with contextlib.suppress(Dismissed, asyncio.TimeoutError):
            await self._stop_reporting()
            report = self._control_plane.report_engine_failed(failed.reason, failed.log_tail)
            await asyncio.wait_for(report, _TELL_FAILURE_S)

    def _observe(self, line: str) -> None:
        """A line of the engine's log: a stage may show in it."""
        supervisor = self._supervisor
        if supervisor is None or supervisor.ready:
            return
        stage = supervisor.engine.stage_of(line)
        if stage is not None:
            self._stages.reach(stage, line)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        return task

    async def _unless_failed(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; a failure of the supervisor or of the stage reports, if that comes first."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                done, _ = await asyncio.wait({task, *self._background}, return_when=asyncio.FIRST_COMPLETED)
                for ended in done & self._background:
                    self._background.discard(ended)
                    ended.result()
            return task.result()
        finally:
            await _cancelled(task)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, whatever it ends with."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain that nobody did
