"""Pure ASGI middleware: request ids, the answer to every failure, and the limit on bodies."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import ProblemError, from_exception
from skyfleet.telemetry import logs, metrics

_log = logging.getLogger("skyfleet.api")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Guard:
    """Outermost: gives each request an id, refuses what no route should see, and turns every failure into a problem.

    It also measures: how long each request took until its answer began, by the route that took it.

    A body is counted as it arrives, so that one without `Content-Length` is cut off at the same limit. (Starlette's own
    limit, which newer versions have, answers plain text and not a problem.)
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        logs.bind(request_id=request_id)  # for good: each request is a task of its own
        began = time.perf_counter()
        started = False
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise self._too_large()
            return message

        async def stamped_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                metrics.request_answered(
                    scope["method"], _template(scope), message["status"], time.perf_counter() - began
                )
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._inspect(scope)
            await self._app(scope, counted_receive, stamped_send)
        except Exception as error:
            problem = from_exception(error)
            if problem is None:
                _log.exception("%s %s failed", scope["method"], scope["path"])
                problem = ProblemError(500, f"a bug of ours; it is in the log as request {request_id}")
            elif problem.status_code == 503:
                _log.warning("%s %s: %s", scope["method"], scope["path"], error)
            if started:
                raise
            await problem.response()(scope, receive, stamped_send)

    def _inspect(self, scope: Scope) -> None:
        # PostgreSQL cannot store NUL, and no name has one.
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            raise ProblemError(400, "the address has a NUL character")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > self._limit:
                raise self._too_large()

    def _too_large(self) -> ProblemError:
        # What is left of the body is not read: the connection cannot be used again.
        return ProblemError(413, f"the body is over the limit of {self._limit} bytes", headers={"Connection": "close"})


def _template(scope: Scope) -> str | None:
    """The path of the route that took the request, with its parameters as names."""
    template: str | None = getattr(scope.get("route"), "path", None)
    return template


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value).decode("ascii")
    return secrets.token_hex(8)


def refuse_unstorable_text(body: bytes) -> None:
    """Raise a 422 if a JSON body has NUL or half a surrogate pair in some string: PostgreSQL stores neither.

    Both can only be written as escapes in valid JSON, so that nearly every body is cleared by two substring searches.
    """
    if b"\\u0000" not in body and b"\\ud" not in body and b"\\uD" not in body:
        return
    try:
        decoded = json.loads(body)
    except ValueError:
        return  # not JSON: refused by whoever parses it
    stack = [decoded]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\x00" in item or any("\ud800" <= char <= "\udfff" for char in item):
                raise ProblemError(422, "the body has a string with a NUL character or half a surrogate pair")
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
