"""A small HTTP/1.1 server on asyncio, for the echo engine. Source: RFC 9112 (framing), RFC 9110 (semantics).

Keep-alive, pipelining, `Content-Length` and chunked bodies, `Expect: 100-continue`, HTTP/1.0, and limits on everything
that a client controls. A message whose framing is ambiguous is refused and the connection closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

MAX_LINE_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_BODY_BYTES = 10 * 1024 * 1024
IDLE_TIMEOUT_S = 75.0
READ_TIMEOUT_S = 30.0
_BLANK_LINES = 2  # some clients send one after a body; a server should let them (RFC 9112, 2.2)
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class HttpError(Exception):
    """A request that is answered with an error. After `close` the connection cannot be used again."""

    def __init__(
        self, status: int, message: str, *, close: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.close = close
        self.headers = headers or {}


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


@dataclass
class Request:
    """One request; header names are lower case, `path` is decoded and without the query."""

    method: str
    path: str
    version: str
    headers: dict[str, str]
    body: bytes
    _reader: asyncio.StreamReader = field(repr=False)

    @property
    def client_gone(self) -> bool:
        """Whether the client has closed its side: nobody reads what is still to come."""
        return self._reader.at_eof() or self._reader.exception() is not None

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to send another request on this connection."""
        wishes = {wish.strip().lower() for wish in self.headers.get("connection", "").split(",")}
        return "close" not in wishes and (self.version == "HTTP/1.1" or "keep-alive" in wishes)


@dataclass
class Response:
    """An answer: `body` at once, or `stream` piece by piece as it comes."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(value).encode(), headers=headers or {})


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves `handler`; `error_body` writes the body of the errors that the server itself answers."""

    def __init__(self, handler: Handler, error_body: Callable[[int, str], Any]) -> None:
        self._handler = handler
        self._error_body = error_body
        self._server: asyncio.AbstractServer | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._stopping = False

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError when the address is taken."""
        self._server = await asyncio.start_server(self._connection, host, port, limit=MAX_LINE_BYTES, backlog=1024)

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let requests under way end for up to `grace_s`, then close everything."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for task, writer in list(self._connections.items()):
            if task not in self._busy:
                writer.close()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=grace_s)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while not self._stopping and await self._exchange(task, reader, writer):
                pass
        except (ConnectionError, ClientGone, asyncio.IncompleteReadError, asyncio.TimeoutError, asyncio.CancelledError):  # noqa: UP041
            pass  # the peer left or idled, or we are stopping: either way the connection is over
        finally:
            self._busy.discard(task)
            del self._connections[task]
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except (HttpError, ClientGone):
            raise
        except Exception:
            traceback.print_exc()  # a defect of ours: the log has it, the client gets a 500
            raise HttpError(500, "internal error") from None

    async def _exchange(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; whether the connection can take another."""
        request: Request | None = None
        try:
            line = await asyncio.wait_for(_line(reader), IDLE_TIMEOUT_S)
            if not line:
                return False
            self._busy.add(task)
            request = await asyncio.wait_for(_read_request(line, reader, writer), READ_TIMEOUT_S)
            response = await self._answer(request)
        except HttpError as error:
            response = json_response(self._error_body(error.status, str(error)), error.status, error.headers)
            if error.close or request is None:
                await _write(writer, response, keep_alive=False, head=False, chunked=True)
                await _drain_unread(reader)
                return False
        keep = request.keep_alive and not self._stopping
        # HTTP/1.0 has no chunks: a stream ends where the connection does.
        chunked = request.version == "HTTP/1.1"
        keep = keep and (chunked or response.stream is None)
        await _write(writer, response, keep_alive=keep, head=request.method == "HEAD", chunked=chunked)
        self._busy.discard(task)
        return keep


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The request line without its end; b"" at the end of the connection. HttpError 431 when it is too long."""
    for _ in range(_BLANK_LINES + 1):
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial.strip():
                raise
            return b""
        except asyncio.LimitOverrunError:
            raise HttpError(431, "the request line is too long", close=True) from None
        if line.strip():
            return line.rstrip(b"\r\n")
    raise HttpError(400, "malformed request line", close=True)


async def _read_request(line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    try:
        method, target, version = line.decode("ascii").split(" ")
    except ValueError:
        raise HttpError(400, "malformed request line", close=True) from None
    if not method or not set(method) <= _TOKEN:
        raise HttpError(400, "malformed method", close=True)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(505, "only HTTP 1.1 and 1.0 are spoken here", close=True)
    try:
        path = unquote(urlsplit(target).path)
    except ValueError:
        raise HttpError(400, "malformed request target", close=True) from None
    headers = await _read_headers(reader)
    if version == "HTTP/1.1" and "host" not in headers:
        raise HttpError(400, "the Host header is missing", close=True)
    body = await _read_body(version, headers, reader, writer)
    return Request(method, path, version, headers, body, reader)


async def _read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS + 1):
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise HttpError(431, "a header is too long", close=True) from None
        line = line.rstrip(b"\r\n")
        if not line:
            return headers
        name, colon, value = line.decode("latin-1").partition(":")
        # No blank before the colon and no folded lines: both have been used to smuggle requests.
        if not colon or not name or not set(name) <= _TOKEN:
            raise HttpError(400, "malformed header", close=True)
        key, text = name.lower(), value.strip(" \t")
        if key in headers and key in ("content-length", "transfer-encoding", "host"):
            raise HttpError(400, f"the {name} header is given twice", close=True)
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    raise HttpError(431, f"more than {MAX_HEADERS} headers", close=True)


async def _read_body(
    version: str, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and coding is not None:
        raise HttpError(400, "both Content-Length and Transfer-Encoding are given", close=True)
    size = 0
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise HttpError(400, "malformed Content-Length", close=True)
        size = int(length)
        if size > MAX_BODY_BYTES:
            raise HttpError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", close=True)
    if coding is not None and (version == "HTTP/1.0" or coding.lower() != "chunked"):
        raise HttpError(501, "only the transfer coding `chunked` is understood", close=True)
    if (size or coding) and headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    return await _read_chunks(reader) if coding else await reader.readexactly(size)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    try:
        while True:
            size_text = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
            if not size_text or len(size_text) > 16 or not set(size_text) <= set(b"0123456789abcdefABCDEF"):
                raise HttpError(400, "malformed chunk size", close=True)
            size = int(size_text, 16)
            if len(body) + size > MAX_BODY_BYTES:
                raise HttpError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", close=True)
            if size == 0:
                await _read_headers(reader)  # trailers: read, and of no use here
                return bytes(body)
            body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise HttpError(400, "malformed chunk", close=True)
    except asyncio.LimitOverrunError:
        raise HttpError(400, "malformed chunk size", close=True) from None


async def _write(
    writer: asyncio.StreamWriter, response: Response, *, keep_alive: bool, head: bool, chunked: bool
) -> None:
    phrase = HTTPStatus(response.status).phrase
    lines = [f"HTTP/1.1 {response.status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines.append(f"Content-Type: {response.content_type}")
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.stream is None:
        lines.append(f"Content-Length: {len(response.body)}")
    elif chunked:
        lines.append("Transfer-Encoding: chunked")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    start = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if response.stream is None or head:
        writer.write(start if head else start + response.body)
        await writer.drain()
        return
    writer.write(start)
    async with contextlib.aclosing(response.stream) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _drain_unread(reader: asyncio.StreamReader) -> None:
    """Read on for a moment: closing with unread bytes resets the connection and the client loses our answer."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_discard(reader), 2.0)


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass
