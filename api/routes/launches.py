"""Launches: ask, look, follow, cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import HTTPConnection

from api.launching import accept
from api.paging import Cursor, Limit, decode_cursor, encode_cursor
from api.presenting import launch_status, launch_summary
from api.problems import ProblemError, from_exception, not_found, refused_field
from api.schemas import LaunchRequest
from api.security import Operator, Principal, Viewer, bearer, remote
from api.services import TALK_TIMEOUT_S, Services, Svc
from api.temporal import CommandRefused, NoSuchWorkflow, WorkflowsUnavailable
from skyfleet.db.repositories import (
    AttemptRepository,
    AuditRepository,
    CostRepository,
    LaunchRepository,
    NodeRepository,
)
from skyfleet.db.tables import LaunchRow, utcnow
from skyfleet.domain.messages import CancelLaunch
from skyfleet.domain.states import LaunchStage, LaunchStatus
from skyfleet.domain.views import CommandAccepted, LaunchAccepted, LaunchList, LaunchStatusView

_log = logging.getLogger("skyfleet.api")

router = APIRouter(prefix="/admin", tags=["launches"])

_PING_SECONDS = 15

JobId = Annotated[str, Path(max_length=100, description="As the launch answered it.")]


def _key(value: str | None) -> str | None:
    if value is None:
        return None
    if not 1 <= len(value) <= 255 or not (value.isascii() and value.isprintable()):
        raise refused_field("Idempotency-Key", "must be 1 to 255 printable ASCII characters", status=400)
    return value


@router.post(
    "/instances/launch", status_code=202, response_model=LaunchAccepted, summary="Launch a node", name="launch"
)
@router.post(
    "/nodes/launch",
    status_code=202,
    response_model=LaunchAccepted,
    summary="Launch a node (twin of /admin/instances/launch)",
    name="launch_node",
)
async def launch(
    request: Request,
    body: LaunchRequest,
    services: Svc,
    principal: Operator,
    idempotency_key: Annotated[
        str | None,
        Header(description="The same key with the same body answers the same job; with another body it is a 409."),
    ] = None,
) -> Response:
    """Accept a launch. It is carried out by a durable workflow; follow it by its `job_id`."""
    accepted = await accept(services, principal, body, _key(idempotency_key), remote(request))
    answer = {
        "status": "launching",
        "job_id": accepted.launch_id,
        "estimated_time": accepted.estimated_time,
        "sandbox": accepted.sandbox,
    }
    return Response(
        json.dumps(answer, ensure_ascii=False),
        status_code=202,
        media_type="application/json",
        headers={"Idempotency-Replayed": "true"} if accepted.replayed else None,
    )


async def _visible(services: Services, principal: Principal, job_id: str) -> LaunchRow:
    async with services.database.transaction() as session:
        row = await LaunchRepository(session).get(job_id)
    if row is None or principal.scope not in (None, row.tenant):
        raise not_found(f"no launch {job_id!r}")
    return row


@router.get("/instances/status", response_model=LaunchStatusView, summary="Where a launch stands")
async def status(
    services: Svc,
    principal: Viewer,
    job_id: Annotated[str, Query(max_length=100, description="As the launch answered it.")],
    live: Annotated[bool, Query(description="Also ask the workflow itself.")] = False,
) -> LaunchStatusView:
    """Stages, attempts, the readable error and the raw one, and the cost so far."""
    async with services.database.transaction() as session:
        row = await LaunchRepository(session).get(job_id)
        if row is None or principal.scope not in (None, row.tenant):
            raise not_found(f"no launch {job_id!r}")
        attempts = await AttemptRepository(session).of_launch(job_id)
        node = None if row.node_id is None else await NodeRepository(session).get(row.node_id)
        billed = await CostRepository(session).of_machines([attempt.cluster_name for attempt in attempts])
    answer: dict[str, Any] | None = None
    if live:
        try:
            view = await services.workflows.launch_status(job_id, timeout_s=TALK_TIMEOUT_S)
            answer = view.model_dump(mode="json")
        except (WorkflowsUnavailable, NoSuchWorkflow) as error:
            answer = {"unavailable": str(error)}
    return launch_status(row, attempts, node, billed, services.settings, answer)


@router.get("/instances/launches", response_model=LaunchList, summary="Launch history")
async def launches(
    services: Svc,
    principal: Viewer,
    status: Annotated[list[LaunchStatus] | None, Query(max_length=10)] = None,
    model_name: Annotated[str | None, Query(max_length=200)] = None,
    provider: Annotated[str | None, Query(max_length=200)] = None,
    deployment: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> LaunchList:
    """Newest first."""
    async with services.database.transaction() as session:
        rows = await LaunchRepository(session).page(
            statuses=[item.value for item in status or ()],
            model_name=model_name,
            provider=provider,
            deployment=deployment,
            tenant=principal.scope,
            before=decode_cursor(cursor),
            limit=limit + 1,
        )
    shown = rows[:limit]
    following = encode_cursor(shown[-1].created_at, shown[-1].id) if len(rows) > limit else None
    return LaunchList(launches=[launch_summary(row) for row in shown], next=following)


@router.delete("/instances/launch/{job_id}", status_code=202, response_model=CommandAccepted, summary="Cancel a launch")
async def cancel(request: Request, services: Svc, principal: Operator, job_id: JobId) -> CommandAccepted:
    """Accept a cancel. The launch ends `cancelled` only after the cloud confirmed that nothing is left."""
    async with services.database.transaction() as session:
        row = await LaunchRepository(session).get(job_id, lock=True)
        if row is None or principal.scope not in (None, row.tenant):
            raise not_found(f"no launch {job_id!r}")
        if row.ended_at is not None and row.cancel_requested_at is None:
            raise ProblemError(409, _already(row))
        first = row.cancel_requested_at is None
        if first:
            row.cancel_requested_at = utcnow()
            row.cancel_requested_by = principal.name
            AuditRepository(session).add(
                principal=principal.name,
                action="launch.cancel",
                subject=job_id,
                outcome="accepted",
                detail={"stage": row.stage},
                remote=remote(request),
            )
    if row.stage == LaunchStage.READY.value:
        raise ProblemError(409, _already(row))
    if row.ended_at is None:
        command = CancelLaunch(requested_by=row.cancel_requested_by or principal.name)
        try:
            await services.workflows.cancel_launch(job_id, command, timeout_s=TALK_TIMEOUT_S)
        except CommandRefused as error:
            return await _refused_cancel(services, job_id, error)
        except (WorkflowsUnavailable, NoSuchWorkflow) as error:
            _log.warning("the cancel of %s is written down, the sweep will deliver it: %s", job_id, error)
    return CommandAccepted(status="cancelling" if row.ended_at is None else row.status, subject=job_id)


async def _refused_cancel(services: Services, job_id: str, error: CommandRefused) -> CommandAccepted:
    """The workflow came to an end before the cancel reached it: what was written down is taken back."""
    async with services.database.transaction() as session:
        row = await LaunchRepository(session).get(job_id, lock=True)
        assert row is not None
        row.cancel_requested_at = row.cancel_requested_by = None
        AuditRepository(session).add(
            principal="skyfleet",
            action="launch.cancel",
            subject=job_id,
            outcome="refused",
            detail={"reason": str(error), "kind": error.kind},
        )
    node = f": POST /admin/nodes/{row.cluster_name}/terminate" if row.cluster_name else ""
    raise ProblemError(409, f"{job_id} cannot be cancelled: {error}{node if error.kind == 'LaunchCompleted' else ''}")


def _already(row: LaunchRow) -> str:
    if row.stage == LaunchStage.READY.value:
        node = row.cluster_name or row.node_id
        return f"{row.id} is READY; to end its node, terminate it: POST /admin/nodes/{node}/terminate"
    return f"{row.id} has already ended: {row.status}; nothing of it is left to cancel"


# --- events -----------------------------------------------------------------------------------------------------


def _last_seen(header: str | None, query: str | None) -> int:
    """The `seq` after which to go on; a browser that reconnects sends the header, so that counts first."""
    text = header if header is not None else query
    if text is None or not text.strip():
        return 0
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise refused_field("Last-Event-ID", "must be the id of an event", status=400)
    return int(text)


@router.get(
    "/instances/launch/{job_id}/events",
    summary="Follow a launch (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "`id` is the event's `seq`, `event` its `kind`, `data` a LaunchEvent as JSON. Replayed from "
            "the start, or from after `Last-Event-ID`; closes after the launch has ended.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def events(
    services: Svc,
    principal: Viewer,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
    last_event_id_query: Annotated[str | None, Query(alias="last_event_id", max_length=100)] = None,
) -> EventSourceResponse:
    """Every stage change and attempt as it happens."""
    after = _last_seen(last_event_id, last_event_id_query)
    await _visible(services, principal, job_id)

    async def stream() -> AsyncIterator[ServerSentEvent]:
        async with contextlib.aclosing(services.events.follow(job_id, after)) as followed:
            async for event in followed:
                yield ServerSentEvent(data=event.model_dump_json(), id=str(event.seq), event=event.kind)

    return EventSourceResponse(stream(), ping=_PING_SECONDS, headers={"Cache-Control": "no-store"})


@router.websocket("/instances/launch/{job_id}/ws")
async def events_ws(websocket: WebSocket, job_id: str) -> None:
    """The same events over a WebSocket, one JSON object a message.

    Browsers cannot set headers on a WebSocket, so that the token may come as `?token=`. Closes with 1000 after the
    launch has ended, 4401 without valid credentials, 4404 for an unknown launch, 4400 for an unreadable position and
    1013 while the database is away.
    """
    services: Services = websocket.app.state.services
    await websocket.accept()
    try:
        principal = await services.auth.identify(_ws_credentials(websocket))
        after = _last_seen(websocket.headers.get("last-event-id"), websocket.query_params.get("last_event_id"))
        await _visible(services, principal, job_id)
    except Exception as error:
        problem = from_exception(error)
        if problem is None:
            raise
        code = 1013 if problem.status_code >= 500 else 4000 + problem.status_code
        # A close frame has room for 123 bytes.
        await websocket.close(code, problem.detail.encode()[:120].decode(errors="ignore"))
        return
    sender = asyncio.create_task(_send_events(websocket, services, job_id, after))
    hearer = asyncio.create_task(_until_gone(websocket))
    try:
        await asyncio.wait({sender, hearer}, return_when=asyncio.FIRST_COMPLETED)
        if sender.done():
            sender.result()
            await websocket.close(1000)
    except (WebSocketDisconnect, RuntimeError):
        return  # the listener went away while it was sent something
    finally:
        for task in (sender, hearer):
            task.cancel()
        await asyncio.gather(sender, hearer, return_exceptions=True)


def _ws_credentials(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-admin-token") or bearer(connection) or connection.query_params.get("token")


async def _send_events(websocket: WebSocket, services: Services, job_id: str, after: int) -> None:
    async with contextlib.aclosing(services.events.follow(job_id, after)) as followed:
        async for event in followed:
            await websocket.send_text(event.model_dump_json())


async def _until_gone(websocket: WebSocket) -> None:
    """What a listener sends is of no interest, but that it leaves is."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
