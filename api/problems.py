"""Every error of the API as RFC 9457 problem details, and what an exception means to the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import asyncpg
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from skyfleet.domain.views import FieldProblem, Problem

MEDIA_TYPE = "application/problem+json"
#: What a caller is asked to wait, in seconds, when something behind the API is away for a moment.
RETRY_AFTER_SECONDS = 2


class ProblemError(HTTPException):
    """Answer the request with this problem. FastAPI lets only an `HTTPException` through its reading of a body."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.errors = list(errors)

    def response(self) -> Response:
        """The HTTP response."""
        status = self.status_code
        problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=self.detail, errors=self.errors)
        return Response(
            problem.model_dump_json(exclude_none=True),
            status_code=status,
            media_type=MEDIA_TYPE,
            headers=self.headers,
        )


def refused_field(
    field: str, message: str, accepted: Sequence[str] | None = None, *, status: int = 422
) -> ProblemError:
    """One field was refused; `accepted` is what it takes."""
    problem = FieldProblem(field=field, message=message, accepted=None if accepted is None else list(accepted))
    return ProblemError(status, f"{field}: {message}", errors=[problem])


def unavailable(what: str) -> ProblemError:
    """Something behind the API is away; the same request may succeed in a moment."""
    return ProblemError(503, what, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def not_found(what: str) -> ProblemError:
    """There is nothing of that name that the caller may see."""
    return ProblemError(404, what)


def from_exception(error: BaseException) -> ProblemError | None:
    """What an exception from below means to the caller; None for a bug of ours."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, UnicodeError):
        return ProblemError(422, "the request has text that is not valid Unicode")
    cause: BaseException | None = error
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return unavailable("the database does not answer")
        # SQLAlchemy keeps its driver's own exception as the cause of its translation.
        cause = error.orig.__cause__ if error.orig is not None else None
    if isinstance(cause, asyncpg.DataError) or (isinstance(cause, asyncpg.PostgresError) and _state(cause) == "22"):
        return ProblemError(422, "the request has a value that cannot be stored")
    if isinstance(cause, (OSError, TimeoutError, PoolTimeout, asyncpg.InterfaceError)):
        return unavailable("the database does not answer")
    # Connection failures (08), authorisation and missing database while it is being set up (28, 3D), schema not
    # migrated yet (42), resources (53), shutdown and start-up (57).
    if isinstance(cause, asyncpg.PostgresError) and _state(cause) in ("08", "28", "3D", "42", "53", "57"):
        return unavailable(f"the database is not ready: {cause}")
    return None


def _state(error: asyncpg.PostgresError) -> str:
    return (error.sqlstate or "")[:2]


def field_problems(errors: Sequence[Any], skip: int = 1) -> list[FieldProblem]:
    """pydantic's errors as field problems; `skip` leaves out the first parts of each location (`body`, `query`)."""
    problems = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"][skip:]) or str(error["loc"][0] if error["loc"] else "body")
        accepted = None
        context = error.get("ctx") or {}
        if error["type"] in ("enum", "literal_error") and isinstance(context.get("expected"), str):
            accepted = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
        message = error["msg"].removeprefix("Value error, ")
        problems.append(FieldProblem(field=where, message=message, accepted=accepted))
    return problems


async def on_problem(_request: Request, error: Exception) -> Response:
    """Answers a `ProblemError`."""
    assert isinstance(error, ProblemError)
    return error.response()


async def on_invalid_request(_request: Request, error: Exception) -> Response:
    """Answers what FastAPI refused: 400 for a body that is no JSON, else 422 that names the fields."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if any(item["type"] == "json_invalid" for item in errors):
        reason = (errors[0].get("ctx") or {}).get("error", "")
        return ProblemError(400, f"the body is not valid JSON: {reason}").response()
    problems = field_problems(errors)
    detail = "; ".join(f"{item.field}: {item.message}" for item in problems[:5])
    return ProblemError(422, detail, errors=problems[:100]).response()


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Answers Starlette's own refusals: unknown route, wrong method, unreadable body."""
    assert isinstance(error, HTTPException)
    return ProblemError(error.status_code, str(error.detail), headers=error.headers).response()
