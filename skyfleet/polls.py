"""Polls of engines over HTTP: does this node's engine say that it serves?"""

from __future__ import annotations

import aiohttp

from skyfleet.engines.registry import UnknownEngine, engine

_TIMEOUT = aiohttp.ClientTimeout(total=4.0)
_DEFAULT = "/health"


class EnginePolls:
    """`activities.watch.Prober` with one pool of connections."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def answers(self, endpoint_url: str, engine_name: str | None) -> bool:
        """Whether the engine's health path answers 200 within four seconds."""
        path, fallback = _paths(engine_name)
        try:
            status = await self._get(endpoint_url.rstrip("/") + path)
            if status == 404 and fallback is not None:
                status = await self._get(endpoint_url.rstrip("/") + fallback)
        except (TimeoutError, aiohttp.ClientError, ValueError):
            return False
        return status == 200

    async def _get(self, url: str) -> int:
        if self._session is None:
            # Nodes are many and polled seldom: a connection that is kept would be closed by its peer before it is used.
            connector = aiohttp.TCPConnector(limit=200, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        async with self._session.get(url, allow_redirects=False) as answer:
            return answer.status

    async def aclose(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()


def _paths(name: str | None) -> tuple[str, str | None]:
    try:
        kind = engine(name or "")
    except UnknownEngine:
        return _DEFAULT, None
    return kind.health_path, kind.fallback_health_path
