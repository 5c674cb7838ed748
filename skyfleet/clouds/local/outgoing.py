"""The cloud's own requests: boot scripts, and the heartbeats of virtual nodes.

aiohttp here and httpx elsewhere, for one reason: a thousand heartbeats a second are background noise in a benchmark,
and httpx takes several times the CPU for one request.
"""

from __future__ import annotations

import aiohttp


class HttpClient:
    """Persistent connections to any number of origins, at most `connections` of them open to each."""

    def __init__(self, connections: int = 32) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        """Status and body of the reply. Raises `OSError` (`TimeoutError` included) when there is none."""
        if self._session is None:  # a session belongs to the loop that runs when it is made
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, timeout=timeout, allow_redirects=False
            ) as reply:
                return reply.status, await reply.read()
        except aiohttp.ClientError as error:
            raise OSError(f"{method} {url}: {error or type(error).__name__}") from error
        except ValueError as error:
            raise OSError(f"not an HTTP address: {url}") from error

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
