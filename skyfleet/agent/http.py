"""One HTTP request at a time, cancellable: what the agent says to the control plane and asks of the engine.

asyncio carries the bytes, so that a request ends at once when the agent stops; `http.client` reads the answer.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

_MAX_ANSWER_BYTES = 4 * 1024 * 1024


class Unreachable(Exception):
    """No answer, or none that is HTTP: nothing is known about whether the request took effect."""


@dataclass(frozen=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object; empty when it is anything else."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    timeout_s: float = 10.0,
) -> Answer:
    """Send one request (`body` as JSON) on a connection of its own. Raises `Unreachable`."""
    try:
        return await asyncio.wait_for(_exchange(method, url, headers or {}, body), timeout_s)
    except asyncio.TimeoutError:  # noqa: UP041
        raise Unreachable(f"no answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from None


async def _exchange(method: str, url: str, headers: Mapping[str, str], body: Any) -> Answer:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    content = b"" if body is None else json.dumps(body).encode()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl.create_default_context() if secure else None)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content)
        # No wait for the send buffer: an answer may come, and the connection close, before all was taken.
        raw = await _read_all(reader)
    finally:
        writer.close()
    return _parse(raw, method)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    raw = bytearray()
    while piece := await reader.read(65536):
        raw += piece
        if len(raw) > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is larger than {_MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


class _Received:
    """Stands where `http.client` expects a socket; all it does with one is read a file from it."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _parse(raw: bytes, method: str) -> Answer:
    response = http.client.HTTPResponse(cast(Any, _Received(raw)), method=method)
    response.begin()
    return Answer(response.status, response.read())
