"""Asks the engine how it is."""

from __future__ import annotations

import asyncio

from skyfleet.agent.http import Answer, Unreachable, request
from skyfleet.engines.base import Engine, EngineMetrics

_MAX_TIMEOUT_S = 5.0
_MIN_TIMEOUT_S = 1.0


def heartbeat_timeout_s(heartbeat_interval_s: float) -> float:
    """How long a heartbeat waits for an engine that may hang: half its interval, from 1 to 5 s."""
    return min(_MAX_TIMEOUT_S, max(heartbeat_interval_s / 2, _MIN_TIMEOUT_S))


class EngineProbe:
    """Health and figures of the engine at `url`; each answer is waited for `timeout_s`."""

    def __init__(self, engine: Engine, url: str, timeout_s: float) -> None:
        self._engine = engine
        self._url = url
        self._timeout_s = timeout_s
        self._last: tuple[float, float] | None = None

    async def healthy(self) -> bool:
        """Whether the engine's health endpoint answers 200."""
        answer = await self._get(self._engine.health_path)
        if answer is not None and answer.status == 404 and self._engine.fallback_health_path:
            answer = await self._get(self._engine.fallback_health_path)
        return answer is not None and answer.status == 200

    async def metrics(self) -> EngineMetrics:
        """The engine's figures; all None when it does not say."""
        if self._engine.metrics_path is None:
            return EngineMetrics()
        answer = await self._get(self._engine.metrics_path)
        if answer is None or answer.status != 200:
            return EngineMetrics()
        return self._engine.parse_metrics(answer.body.decode("utf-8", "replace"))

    def tokens_per_second(self, metrics: EngineMetrics) -> float | None:
        """Generated tokens a second since the last call; None the first time, and after the counter began anew."""
        total, now = metrics.generated_tokens_total, asyncio.get_running_loop().time()
        before, self._last = self._last, None if total is None else (now, total)
        if total is None or before is None or now <= before[0] or total < before[1]:
            return None
        return (total - before[1]) / (now - before[0])

    async def _get(self, path: str) -> Answer | None:
        try:
            return await request("GET", self._url + path, timeout_s=self._timeout_s)
        except Unreachable:
            return None
