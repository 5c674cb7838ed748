"""Tells an engine that hangs from one that is busy, and has it started anew.

Docs: ADR 0016. An engine is looked at one probe after the other, each waited for patiently. It is alive when its health
endpoint says so *or* one of its figures moved since the last look: an engine that is deep in a long prefill may be late
with its health, and its cache fills all the same. It hangs when neither was so for `hang_after_s` and three probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from skyfleet.agent.probe import EngineProbe
from skyfleet.agent.supervisor import EngineSupervisor
from skyfleet.engines.base import Engine, EngineMetrics

PROBES = 3
#: An engine without figures cannot show that it is busy, so it is waited for that many times as long.
BLIND_FACTOR = 5
_MAX_PAUSE_S = 10.0


class HangWatch:
    """Watches one engine after it has served; `excused` says when it is not to be judged (it drains)."""

    def __init__(
        self,
        supervisor: EngineSupervisor,
        engine: Engine,
        url: str,
        hang_after_s: float,
        excused: Callable[[], bool],
    ) -> None:
        self._supervisor = supervisor
        self._hang_after_s = hang_after_s if engine.metrics_path else BLIND_FACTOR * hang_after_s
        # As patient as three probes in the time allow: SGLang's health takes up to 20 s of its own.
        self._probe = EngineProbe(engine, url, self._hang_after_s / PROBES)
        self._pause_s = min(_MAX_PAUSE_S, self._hang_after_s / (2 * PROBES))
        self._excused = excused
        self._figures: EngineMetrics | None = None

    async def run(self) -> None:
        """Watch until the engine is stopped for good."""
        loop = asyncio.get_running_loop()
        silent_since, failures = 0.0, 0
        while not self._supervisor.stopped:
            start, began = self._supervisor.starts, loop.time()
            healthy, figures = await asyncio.gather(self._probe.healthy(), self._probe.metrics())
            same = self._supervisor.alive and self._supervisor.starts == start
            if same and healthy:
                self._supervisor.was_ready()
            moved = self._moved(figures)
            if not same or healthy or moved or not self._supervisor.serving or self._excused():
                failures = 0
            else:
                silent_since = silent_since if failures else began
                failures += 1
                silent_s = loop.time() - silent_since
                # Both: an agent that was itself stopped for a minute saw one probe fail, and not a minute's silence.
                if failures >= PROBES and silent_s >= self._hang_after_s:
                    await self._supervisor.restart(start, f"the engine hangs: no sign of life for {silent_s:.0f} s")
                    failures = 0
            await asyncio.sleep(max(0.0, began + self._pause_s - loop.time()))

    def _moved(self, figures: EngineMetrics) -> bool:
        """Whether the engine gave figures that differ from those before."""
        if figures == EngineMetrics():
            return False
        before, self._figures = self._figures, figures
        return before is not None and before != figures
