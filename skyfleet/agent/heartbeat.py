"""Heartbeats of a registered node, and obeying what is answered."""

from __future__ import annotations

import asyncio
from typing import Any

from skyfleet.agent.config import Boot
from skyfleet.agent.control_plane import BackOff, ControlPlane
from skyfleet.agent.gpus import GpuWatch
from skyfleet.agent.logs import log, now_iso
from skyfleet.agent.probe import EngineProbe
from skyfleet.agent.state import StateDir
from skyfleet.agent.supervisor import EngineSupervisor
from skyfleet.engines.base import EngineMetrics

_IDLE_LOOK_EVERY_S = 1.0
#: Routers learn of a drain a moment after the node does: idle once may be idle by chance.
_IDLE_LOOKS = 2
#: Sequences that are put aside with one write.
_RESERVE = 1_000


class Heartbeats:
    """Says every `boot.heartbeat_interval_s` how the node is; `shutdown` ends it, `drain` lets the engine finish first.

    Draining, the engine serves on until it reported twice, a second apart, that nothing runs or waits, or until
    `drain_deadline_s` has passed; then it is stopped and the node heartbeats on, unhealthy and idle, until the control
    plane says `shutdown`. A `continue` before that calls the drain off, unless the machine is to be taken away
    (`drain_for_good`).
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        supervisor: EngineSupervisor,
        probe: EngineProbe,
        gpus: GpuWatch,
        state: StateDir,
        boot: Boot,
        drain_deadline_s: float,
    ) -> None:
        self._control_plane = control_plane
        self._supervisor = supervisor
        self._probe = probe
        self._gpus = gpus
        self._state = state
        self._version = boot.agent_version
        self._interval_s = boot.heartbeat_interval_s
        self._drain_deadline_s = drain_deadline_s
        self._sequence = self._reserved = 0
        self._started = asyncio.get_running_loop().time()
        self._draining: asyncio.Task[None] | None = None
        self._for_good = False

    @property
    def draining(self) -> bool:
        """Whether the engine finishes what it has, to be stopped then."""
        return self._draining is not None

    def drain_for_good(self) -> None:
        """Drain without being asked: the cloud takes the machine away, whatever the control plane says or knows."""
        self._for_good = True
        self._drain_now()

    async def run(self, key: str) -> None:
        """Heartbeat until told to shut down. Raises `Dismissed`."""
        loop = asyncio.get_running_loop()
        back_off = BackOff()
        try:
            while True:
                due = loop.time() + self._interval_s
                directive = await self._control_plane.heartbeat(key, await self._body())
                if directive == "shutdown":
                    log("directive.shutdown")
                    return
                if directive is None:
                    # Not heard: try again soon, though no more often than heartbeats are wanted.
                    await asyncio.sleep(min(back_off.delay_s(), self._interval_s))
                    continue
                back_off = BackOff()
                self._obey(directive)
                await asyncio.sleep(max(0.0, due - loop.time()))
        finally:
            self._call_off()

    def _obey(self, directive: str) -> None:
        if directive == "drain":
            self._drain_now()
        elif directive == "continue" and self.draining and not self._for_good and not self._supervisor.stopped:
            log("drain.called_off")
            self._call_off()

    def _drain_now(self) -> None:
        if self._draining is None:
            log("drain.started", deadline_s=self._drain_deadline_s)
            self._draining = asyncio.ensure_future(self._drain())

    def _call_off(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._until_idle(), self._drain_deadline_s)
            log("drain.idle")
        except asyncio.TimeoutError:  # noqa: UP041
            log("drain.deadline_passed", level="warning")
        await self._supervisor.stop()

    async def _until_idle(self) -> None:
        idle = 0
        while idle < _IDLE_LOOKS:
            metrics = await self._probe.metrics()
            nothing = metrics.running == 0 and not metrics.waiting
            idle = idle + 1 if nothing or not self._supervisor.alive else 0
            await asyncio.sleep(_IDLE_LOOK_EVERY_S)

    async def _body(self) -> dict[str, Any]:
        if self._sequence == self._reserved:
            self._sequence = self._state.reserve_sequences(_RESERVE)
            self._reserved = self._sequence + _RESERVE
        self._sequence += 1
        sequence = self._sequence
        supervisor = self._supervisor
        if supervisor.stopped:
            healthy, metrics = False, EngineMetrics(running=0, waiting=0)
        else:
            start = supervisor.starts
            healthy, metrics = await asyncio.gather(self._probe.healthy(), self._probe.metrics())
            healthy = healthy and supervisor.alive and supervisor.starts == start
            if healthy:
                supervisor.was_ready()
        engine = {
            "healthy": healthy,
            "state": "draining" if self.draining and not supervisor.stopped else supervisor.state,
            "running": metrics.running,
            "waiting": metrics.waiting,
            "kv_cache_usage": metrics.kv_cache_usage,
            "tokens_per_second": self._probe.tokens_per_second(metrics),
        }
        return {
            "at": now_iso(),
            "sequence": sequence,
            "engine": engine,
            "gpus": self._gpus.figures(),
            "agent": {
                "version": self._version,
                "uptime_s": round(asyncio.get_running_loop().time() - self._started, 3),
                "engine_restarts": supervisor.restarts,
                "engine_last_restart_at": supervisor.last_restart_at,
                "engine_last_restart_reason": supervisor.last_restart_reason,
            },
        }
