"""Nodes, for people: list, look, terminate."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession

from api.paging import Cursor, Limit, decode_cursor, encode_cursor
from api.presenting import node_info
from api.problems import ProblemError, not_found
from api.schemas import DrainRequest, ReplaceRequest, TerminateRequest
from api.security import Operator, Principal, Viewer, remote
from api.services import TALK_TIMEOUT_S, Svc
from api.temporal import CommandRefused, WorkflowsUnavailable
from skyfleet.db.repositories import AuditRepository, CostRepository, NodeRepository
from skyfleet.db.tables import NodeRow, utcnow
from skyfleet.domain.states import NodeStatus
from skyfleet.domain.views import CommandAccepted, NodeEvent, NodeEventList, NodeInfo, NodeList

_log = logging.getLogger("skyfleet.api")

router = APIRouter(prefix="/admin/nodes", tags=["nodes"])

NodeName = Annotated[str, Path(max_length=200, description="Cluster name or node id.")]


def _seen(node: NodeRow | None, principal: Principal, name: str) -> NodeRow:
    if node is None or principal.scope not in (None, node.tenant):
        raise not_found(f"no node {name!r}")
    return node


@router.get("", response_model=NodeList, summary="List nodes")
async def nodes(
    services: Svc,
    principal: Viewer,
    status: Annotated[list[NodeStatus] | None, Query(max_length=10)] = None,
    model_name: Annotated[str | None, Query(max_length=200)] = None,
    provider: Annotated[str | None, Query(max_length=200)] = None,
    deployment: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> NodeList:
    """Newest first."""
    async with services.database.transaction() as session:
        rows = await NodeRepository(session).page(
            statuses=[item.value for item in status or ()],
            model_name=model_name,
            provider=provider,
            deployment=deployment,
            tenant=principal.scope,
            before=decode_cursor(cursor),
            limit=limit + 1,
        )
        shown = rows[:limit]
        billed = await CostRepository(session).of_machines([row.cluster_name for row in shown])
    following = encode_cursor(shown[-1].registered_at, shown[-1].id) if len(rows) > limit else None
    return NodeList(nodes=[node_info(row, billed.get(row.cluster_name)) for row in shown], next=following)


@router.get("/{name}/status", response_model=NodeInfo, summary="One node")
async def node_status(services: Svc, principal: Viewer, name: NodeName) -> NodeInfo:
    """One node, by its cluster name or node id."""
    async with services.database.transaction() as session:
        node = _seen(await NodeRepository(session).find(name), principal, name)
        billed = await CostRepository(session).of_machines([node.cluster_name])
    return node_info(node, billed.get(node.cluster_name))


@router.post("/{name}/terminate", status_code=202, response_model=CommandAccepted, summary="Terminate a node")
async def terminate(
    request: Request, services: Svc, principal: Operator, name: NodeName, body: TerminateRequest | None = None
) -> CommandAccepted:
    """Accept the end of a node. It is `terminated` only after the cloud confirmed that the machine is gone."""
    reason = body.reason if body else ""
    async with services.database.transaction() as session:
        node = _seen(await NodeRepository(session).find(name, lock=True), principal, name)
        if node.status == NodeStatus.TERMINATED.value:
            return CommandAccepted(status=node.status, subject=node.id)
        if node.terminate_requested_at is None:
            node.terminate_requested_at = utcnow()
            node.terminate_requested_by, node.terminate_reason = principal.name, reason
            node.routable = False
            AuditRepository(session).add(
                principal=principal.name,
                action="node.terminate",
                subject=node.id,
                outcome="accepted",
                detail={"cluster_name": node.cluster_name, "reason": reason},
                remote=remote(request),
            )
    try:
        await services.workflows.terminate_node(
            node.workflow_input(), node.terminate_command(), timeout_s=TALK_TIMEOUT_S
        )
    except CommandRefused as error:
        raise ProblemError(409, f"{node.id} cannot be terminated: {error}") from error
    except WorkflowsUnavailable as error:
        _log.warning("the end of %s is written down, the sweep will deliver it: %s", node.id, error)
    return CommandAccepted(status=NodeStatus.TERMINATING.value, subject=node.id)


@router.post("/{name}/drain", status_code=202, response_model=CommandAccepted, summary="Drain a node")
async def drain(
    request: Request, services: Svc, principal: Operator, name: NodeName, body: DrainRequest | None = None
) -> CommandAccepted:
    """No new requests from now on; those that run may finish, then the machine is ended."""
    asked = body or DrainRequest()
    async with services.database.transaction() as session:
        node = _living(_seen(await NodeRepository(session).find(name, lock=True), principal, name))
        if node.drain_requested_at is None:
            node.drain_requested_at, node.drain_requested_by = utcnow(), principal.name
            node.drain_reason, node.drain_seconds = asked.reason, asked.seconds
            # Out of rotation, and the agent told, as of now; the workflow sees to the rest.
            node.routable, node.status = False, NodeStatus.DRAINING.value
            await _commanded(session, node, principal, "drain", asked.reason, remote(request))
    try:
        await services.workflows.drain_node(node.workflow_input(), node.drain_command(), timeout_s=TALK_TIMEOUT_S)
    except CommandRefused as error:
        raise ProblemError(409, f"{node.id} cannot be drained: {error}") from error
    except WorkflowsUnavailable as error:
        _log.warning("the drain of %s is written down, the sweep will deliver it: %s", node.id, error)
    return CommandAccepted(status=node.status, subject=node.id)


@router.post("/{name}/replace", status_code=202, response_model=CommandAccepted, summary="Replace a node")
async def replace(
    request: Request, services: Svc, principal: Operator, name: NodeName, body: ReplaceRequest | None = None
) -> CommandAccepted:
    """Ask for another node like this one. This one serves until the other is READY, then drains and ends."""
    reason = body.reason if body else ""
    async with services.database.transaction() as session:
        node = _living(_seen(await NodeRepository(session).find(name, lock=True), principal, name))
        if node.replace_requested_at is None:
            node.replace_requested_at, node.replace_requested_by = utcnow(), principal.name
            node.replace_reason = reason
            await _commanded(session, node, principal, "replace", reason, remote(request))
    try:
        await services.workflows.replace_node(node.workflow_input(), node.replace_command(), timeout_s=TALK_TIMEOUT_S)
    except CommandRefused as error:
        raise ProblemError(409, f"{node.id} cannot be replaced: {error}") from error
    except WorkflowsUnavailable as error:
        _log.warning("the replacement of %s is written down, the sweep will deliver it: %s", node.id, error)
    return CommandAccepted(status=node.status, subject=node.id)


@router.get("/{name}/events", response_model=NodeEventList, summary="The history of a node")
async def node_events(
    services: Svc,
    principal: Viewer,
    name: NodeName,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="Events behind this `id` only.")] = 0,
    limit: Limit = 100,
) -> NodeEventList:
    """Verdicts with the signals that led to them, commands, notices, replacements; in order."""
    async with services.database.transaction() as session:
        node = _seen(await NodeRepository(session).find(name), principal, name)
        rows = await NodeRepository(session).events(node.id, after=after, limit=limit)
    return NodeEventList(
        events=[NodeEvent(id=row.id or 0, at=row.at, kind=row.kind, message=row.message, data=row.data) for row in rows]
    )


def _living(node: NodeRow) -> NodeRow:
    """The node, if its end was not asked for; raises 409."""
    if node.terminate_requested_at is not None or node.status in (
        NodeStatus.TERMINATING.value,
        NodeStatus.TERMINATED.value,
    ):
        raise ProblemError(409, f"{node.id} is {node.status}: its end was asked for")
    return node


async def _commanded(
    session: AsyncSession, node: NodeRow, principal: Principal, what: str, reason: str, address: str | None
) -> None:
    why = f"{what}, by {principal.name}" + (f": {reason}" if reason else "")
    await NodeRepository(session).tell(node.id, kind="command", message=why)
    AuditRepository(session).add(
        principal=principal.name,
        action=f"node.{what}",
        subject=node.id,
        outcome="accepted",
        detail={"cluster_name": node.cluster_name, "reason": reason},
        remote=address,
    )
