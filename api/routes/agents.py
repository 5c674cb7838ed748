"""What node agents say: stages, registration, heartbeats, preemption notices.

An agent proves itself with the one-time registration token that its machine was booted with, and after registration
with the heartbeat key that it was given in exchange.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession

from api.problems import ProblemError, not_found, refused_field, unavailable
from api.schemas import HeartbeatRequest, NodeStageReport, RegisterRequest, StageReport, TerminationWarning, utc_text
from api.security import bearer, remote, same, sha256
from api.services import TALK_TIMEOUT_S, Services, Svc
from api.temporal import NoSuchWorkflow, WorkflowsUnavailable
from skyfleet.db.repositories import (
    AttemptRepository,
    AuditRepository,
    LaunchRepository,
    NodeRepository,
    NotificationRepository,
)
from skyfleet.db.tables import AttemptRow, LaunchRow, NodeRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain.messages import EngineFailed, NodeRegistered, StageReached
from skyfleet.domain.notifications import node_preempted
from skyfleet.domain.states import (
    AGENT_STAGES,
    STAGE_LABEL,
    AttemptState,
    LaunchStage,
    Market,
    NodeDirective,
    NodeStatus,
)
from skyfleet.domain.views import HeartbeatAnswer, Recorded, Registered

_log = logging.getLogger("skyfleet.api")

router = APIRouter(prefix="/admin/nodes", tags=["node agents"])

NodeId = Annotated[str, Path(max_length=100)]

#: Stages of a launch in the order in which one attempt goes through them.
_ORDER = (
    LaunchStage.QUEUED,
    LaunchStage.VALIDATING,
    LaunchStage.PLANNING,
    LaunchStage.REQUESTING,
    LaunchStage.PROVISIONING,
    *AGENT_STAGES,
    LaunchStage.REGISTERING,
)


_PREEMPTION = "preemption"
_NOTICE = {
    _PREEMPTION: "takes the machine away",
    "rebalance": "may take the machine away soon",
    "maintenance": "works on the machine",
}


@dataclass(frozen=True, slots=True)
class _Claim:
    """An attempt, its launch and its node, held against other writers until the transaction ends."""

    launch: LaunchRow
    attempt: AttemptRow
    node: NodeRow | None

    @property
    def given_up(self) -> str | None:
        """Why the machine of this attempt is no longer wanted; None if it is."""
        if self.node is not None and self.node.status == NodeStatus.TERMINATED.value:
            return "the node was terminated"
        if self.attempt.state in (AttemptState.CLOSING.value, AttemptState.CLOSED.value):
            return "this attempt was given up"
        if self.launch.stage in (LaunchStage.FAILED.value, LaunchStage.CANCELLED.value):
            return f"the launch has ended: {self.launch.status}"
        if self.node is None and self.launch.ended_at is not None:
            return "the launch has ended with another machine"
        if self.node is None and self.launch.cancel_requested_at is not None:
            return "the launch is being cancelled"
        return None


async def _claim(session: AsyncSession, node_id: str) -> _Claim:
    """Lock the launch, then its attempt: the order in which the worker's steps do it."""
    attempts = AttemptRepository(session)
    launch_id = await attempts.launch_of_node(node_id)
    launch = None if launch_id is None else await LaunchRepository(session).get(launch_id, lock=True)
    attempt = None if launch is None else await attempts.by_node_id(node_id, lock=True)
    if launch is None or attempt is None:
        raise not_found(f"no node {node_id!r}")
    return _Claim(launch, attempt, await NodeRepository(session).get(node_id, lock=True))


def _knows(attempt: AttemptRow, token: str | None) -> bool:
    """Whether the token is one of the attempt's. All are compared, so that the time does not tell which."""
    digest = sha256(token or "")
    return sum(same(digest, known) for known in attempt.token_hashes) > 0


def _unauthorised(why: str) -> ProblemError:
    return ProblemError(401, why, headers={"WWW-Authenticate": 'Bearer realm="skyfleet node"'})


# --- registration -----------------------------------------------------------------------------------------------


@router.post("/register", response_model=Registered, summary="Register a node", openapi_extra={"security": []})
async def register(
    request: Request,
    body: RegisterRequest,
    services: Svc,
    node_id: Annotated[str | None, Query(max_length=100)] = None,
    idempotency_key: Annotated[
        str | None,
        Header(max_length=255, description="A secret of the agent's. Sent again, a lost reply is answered again."),
    ] = None,
) -> Registered:
    """Exchange the one-time registration token for the node's heartbeat key.

    400 without `node_id`; 401 for a wrong or used token; 404 for an unknown node; 409 when the node is not what was
    bought; 410 for an attempt already given up; 503 when the launch could not be told: send it again.
    """
    if not node_id:
        raise refused_field("node_id", "is missing: register?node_id=…", status=400)
    heartbeat_key = ids.new_secret()
    async with services.database.transaction() as session:
        claim = await _claim(session, node_id)
        problem, action = _why_not(claim, body, idempotency_key)
        if problem is not None:
            AuditRepository(session).add(
                principal=f"node:{node_id}",
                action=action,
                subject=node_id,
                outcome="refused",
                detail={"reason": problem.detail, "launch_id": claim.launch.id},
                remote=remote(request),
            )
        else:
            await _write_node(session, claim, body, heartbeat_key, idempotency_key, remote(request))
    if problem is not None:
        raise problem
    event = NodeRegistered(
        node_id=node_id, attempt=claim.attempt.number, endpoint_url=body.endpoint_url, at=claim.attempt.token_used_at
    )
    try:
        await services.workflows.node_registered(claim.launch.id, event, timeout_s=TALK_TIMEOUT_S)
    except (WorkflowsUnavailable, NoSuchWorkflow) as error:
        # A launch that is READY heard of it already; one that is not must hear, so the agent tries again.
        if claim.launch.ended_at is None:
            raise unavailable(f"registered, but the launch could not be told: {error}") from error
    return Registered(
        node_id=node_id,
        heartbeat_key=heartbeat_key,
        heartbeat_interval_seconds=services.settings.heartbeat_interval_seconds,
    )


def _why_not(claim: _Claim, body: RegisterRequest, idempotency_key: str | None) -> tuple[ProblemError | None, str]:
    """Why a registration is refused, and the action under which that is audited."""
    attempt = claim.attempt
    if not _knows(attempt, body.registration_token):
        return _unauthorised("the registration token is not this node's"), "node.register.forged"
    if claim.given_up is not None:
        return ProblemError(410, f"{claim.given_up}: shut the machine down"), "node.register.late"
    if attempt.token_used_at is not None:
        known = attempt.registration_key_hash
        again = idempotency_key is not None and known is not None and same(sha256(idempotency_key), known)
        if not again or claim.node is None or claim.node.first_heartbeat_at is not None:
            return _unauthorised("the registration token was used before"), "node.register.replayed"
    bought = {
        "provider": attempt.cloud,
        "region": attempt.region,
        "model_name": claim.launch.model_name,
        "instance_type": attempt.instance_type,
        "spot_instance": attempt.market == Market.SPOT.value,
    }
    for field, expected in bought.items():
        said = getattr(body, field)
        if said != expected:
            message = f"the node says {said!r}, what was bought is {expected!r}"
            return refused_field(field, message, status=409), "node.register.forged"
    return None, ""


async def _write_node(
    session: AsyncSession,
    claim: _Claim,
    body: RegisterRequest,
    heartbeat_key: str,
    idempotency_key: str | None,
    address: str | None,
) -> None:
    launch, attempt, now = claim.launch, claim.attempt, utcnow()
    if claim.node is not None:  # a lost reply: the old key was never used, and is void
        claim.node.heartbeat_key_hash = sha256(heartbeat_key)
        claim.node.endpoint_url = body.endpoint_url
        return
    attempt.token_used_at = now
    attempt.registration_key_hash = None if idempotency_key is None else sha256(idempotency_key)
    NodeRepository(session).add(
        NodeRow(
            id=attempt.node_id,
            launch_id=launch.id,
            attempt=attempt.number,
            cluster_name=attempt.cluster_name,
            tenant=launch.tenant,
            backend=attempt.backend,
            provider=attempt.cloud,
            region=attempt.region,
            zone=attempt.zone,
            instance_type=attempt.instance_type,
            gpu_type=attempt.gpu or body.gpu_type,
            market=attempt.market,
            hourly_price=attempt.hourly_price,
            model_name=launch.model_name,
            deployment=launch.deployment,
            engine=launch.engine or body.engine,
            endpoint_url=body.endpoint_url,
            max_life_seconds=launch.spec.get("max_life_seconds"),
            idle_shutdown_seconds=launch.spec.get("idle_shutdown_seconds"),
            agent_version=body.agent_version,
            sandbox=launch.sandbox,
            status=NodeStatus.READY.value,
            heartbeat_key_hash=sha256(heartbeat_key),
            billed_from=attempt.created_at or attempt.provision_started_at or now,
            registered_at=now,
        )
    )
    for report in sorted(body.stages, key=lambda item: item.at):
        if report.stage in AGENT_STAGES:
            await _record_stage(session, claim, report, "")
    await LaunchRepository(session).record(
        launch.id,
        kind="stage",
        stage=LaunchStage.REGISTERING,
        attempt=attempt.number,
        message=f"{attempt.node_id} registered at {body.endpoint_url}",
        data={"node_id": attempt.node_id, "endpoint_url": body.endpoint_url},
        dedupe=f"registered:{attempt.number}",
    )
    AuditRepository(session).add(
        principal=f"node:{attempt.node_id}",
        action="node.register",
        subject=attempt.node_id,
        outcome="done",
        detail={"launch_id": launch.id, "endpoint_url": body.endpoint_url},
        remote=address,
    )


# --- stages -----------------------------------------------------------------------------------------------------


@router.post("/{node_id}/stages", response_model=Recorded, summary="Report a stage", openapi_extra={"security": []})
async def report_stage(request: Request, node_id: NodeId, body: NodeStageReport, services: Svc) -> Recorded:
    """A stage that the agent reached, or `ENGINE_FAILED`. 410: the attempt was given up, shut the machine down."""
    async with services.database.transaction() as session:
        claim = await _claim(session, node_id)
        attempt = claim.attempt
        if not _knows(attempt, bearer(request)):
            raise _unauthorised("the registration token is not this node's")
        if claim.given_up is not None:
            raise ProblemError(410, f"{claim.given_up}: shut the machine down")
        if claim.node is not None:
            # An agent that was started again goes through its stages once more. The launch is over; whether the
            # engine is well is what heartbeats say.
            return Recorded()
        if body.stage == "ENGINE_FAILED":
            await _record_failure(session, claim, body)
        else:
            await _record_stage(session, claim, StageReport(stage=body.stage, at=body.at), body.detail)
    await _tell_launch(services, claim, body)
    return Recorded()


async def _tell_launch(services: Services, claim: _Claim, body: NodeStageReport) -> None:
    launch_id, attempt = claim.launch.id, claim.attempt
    try:
        if body.stage == "ENGINE_FAILED":
            failed = EngineFailed(
                node_id=attempt.node_id, attempt=attempt.number, detail=body.detail, log_tail=body.log_tail
            )
            await services.workflows.engine_failed(launch_id, failed, timeout_s=TALK_TIMEOUT_S)
        else:
            reached = StageReached(
                node_id=attempt.node_id, attempt=attempt.number, stage=LaunchStage(body.stage), at=body.at
            )
            await services.workflows.stage_reached(launch_id, reached, timeout_s=TALK_TIMEOUT_S)
    except (WorkflowsUnavailable, NoSuchWorkflow) as error:
        if body.stage == "ENGINE_FAILED":
            # Without it the launch would wait for the registration deadline: the agent sends it again.
            raise unavailable(f"written down, but the launch could not be told: {error}") from error
        _log.warning("the workflow of %s did not hear of stage %s: %s", launch_id, body.stage, error)


async def _record_stage(session: AsyncSession, claim: _Claim, report: StageReport, detail: str) -> None:
    """Write a stage down once. One that arrives after a later one is history, and does not move the launch back."""
    launch, attempt = claim.launch, claim.attempt
    stage = LaunchStage(report.stage)
    current = LaunchStage(launch.stage)
    forward = current in _ORDER and _ORDER.index(stage) > _ORDER.index(current)
    written = await LaunchRepository(session).record(
        launch.id,
        kind="stage" if forward else "progress",
        stage=stage if forward else None,
        attempt=attempt.number,
        message=STAGE_LABEL[stage] + (f": {detail}" if detail else ""),
        dedupe=f"agent:{attempt.number}:{stage.value}",
        at=min(report.at, utcnow()),  # a machine's clock may be ahead
    )
    await session.refresh(launch, ["stage", "reached"])
    if written and not forward and stage.value not in launch.reached:
        launch.reached = [*launch.reached, stage.value]
    if forward:
        attempt.last_agent_stage = stage.value


async def _record_failure(session: AsyncSession, claim: _Claim, body: NodeStageReport) -> None:
    await LaunchRepository(session).record(
        claim.launch.id,
        kind="progress",
        attempt=claim.attempt.number,
        message=f"the engine could not start: {body.detail}",
        data={"log_tail": body.log_tail},
        dedupe=f"engine_failed:{claim.attempt.number}",
        at=min(body.at, utcnow()),
    )


# --- after registration -----------------------------------------------------------------------------------------


@router.post(
    "/{node_id}/heartbeat", response_model=HeartbeatAnswer, summary="Heartbeat", openapi_extra={"security": []}
)
async def heartbeat(request: Request, node_id: NodeId, body: HeartbeatRequest, services: Svc) -> HeartbeatAnswer:
    """Health, GPU and engine figures; answers what the control plane wants of the node."""
    key_hash = sha256(bearer(request) or "")
    report: dict[str, Any] = body.model_dump(mode="json")
    async with services.database.transaction() as session:
        nodes = NodeRepository(session)
        written = await nodes.heartbeat(
            node_id,
            key_hash,
            sequence=body.sequence,
            report=report,
            at=utcnow(),
        )
        if written is None:
            node = _admit(await nodes.get(node_id), node_id, key_hash)
            written = node.status, node.terminate_requested_at  # an older heartbeat, overtaken: answered all the same
    status, terminate_requested_at = written
    if status == NodeStatus.TERMINATING.value or terminate_requested_at is not None:
        return HeartbeatAnswer(directive=NodeDirective.SHUTDOWN)
    draining = status == NodeStatus.DRAINING.value
    return HeartbeatAnswer(directive=NodeDirective.DRAIN if draining else NodeDirective.CONTINUE)


@router.post(
    "/{node_id}/termination-warning",
    response_model=Recorded,
    summary="Preemption notice",
    openapi_extra={"security": []},
)
async def termination_warning(request: Request, node_id: NodeId, body: TerminationWarning, services: Svc) -> Recorded:
    """The cloud's notice about the machine: it will be taken away, may be, or is worked on.

    A node that is taken away is out of rotation when this is answered; its workflow asks for another. Repeating a
    notice changes nothing, and advice that arrives late does not hide that the machine is taken away.
    """
    async with services.database.transaction() as session:
        nodes = NodeRepository(session)
        node = _admit(await nodes.get(node_id, lock=True), node_id, sha256(bearer(request) or ""))
        known = node.termination_warning or {}
        taken = body.kind == _PREEMPTION
        if taken or known.get("kind", _PREEMPTION if known else None) != _PREEMPTION:
            node.termination_warning = {**body.model_dump(mode="json"), "received_at": utcnow().isoformat()}
            when = f" at {utc_text(body.deadline)}" if body.deadline else ""
            node.status_message = f"{node.provider} {_NOTICE[body.kind]}{when} ({body.source})"
            await nodes.tell(
                node_id,
                kind="preemption" if taken else "notice",
                message=node.status_message,
                data=body.model_dump(mode="json"),
                dedupe=f"notice:{body.kind}:{body.deadline}",
            )
        if taken:
            node.routable = False
            if node.status == NodeStatus.READY.value:
                node.status = NodeStatus.DRAINING.value
        AuditRepository(session).add(
            principal=f"node:{node_id}",
            action="node.termination_warning",
            subject=node_id,
            outcome="done",
            detail=body.model_dump(mode="json"),
            remote=remote(request),
        )
        if taken:
            await NotificationRepository(session).add(
                node_preempted(
                    node_id,
                    tenant=node.tenant,
                    where=f"{node.provider}/{node.region}",
                    model_name=node.model_name,
                    source=body.source,
                    deadline=body.deadline,
                )
            )
    warning = node.preemption_warned()
    if warning is None:  # advice: the node serves on
        return Recorded()
    try:
        await services.workflows.warn_of_preemption(node.workflow_input(), warning, timeout_s=TALK_TIMEOUT_S)
    except WorkflowsUnavailable as error:
        _log.warning("the notice for %s is written down, the sweep will deliver it: %s", node_id, error)
    return Recorded()


def _admit(node: NodeRow | None, node_id: str, key_hash: str) -> NodeRow:
    """The node whose key this is; raises 404, 401 or 410 problems."""
    if node is None:
        raise not_found(f"no node {node_id!r} has registered")
    if not same(key_hash, node.heartbeat_key_hash):
        raise _unauthorised("the heartbeat key is not this node's")
    if node.status == NodeStatus.TERMINATED.value:
        raise ProblemError(410, "the node was terminated: shut the machine down")
    return node
