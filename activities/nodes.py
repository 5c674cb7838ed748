"""The steps of a node's life on our own database."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from temporalio import activity

from activities.signatures import NodeSteps
from skyfleet.db.repositories import (
    AttemptRepository,
    AuditRepository,
    LaunchRepository,
    NodeRepository,
    RefusalRepository,
)
from skyfleet.db.repositories.launches import NewLaunch
from skyfleet.db.session import Database, Session
from skyfleet.db.tables import LaunchRow, NodeRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.health import MAX_SHORT_LIVES, OURSELVES, may_replace
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.planner import Refusal, memory_until
from skyfleet.domain.states import LaunchStage, Market, NodeStatus

#: A draining node that was silent for so many of its heartbeat intervals will not finish anything.
_SILENT_INTERVALS = 4.0


class LaunchStart(Protocol):
    """Starts a launch that is written down; False: not now, and the sweep will."""

    async def start_launch(self, launch: m.LaunchInput) -> bool:
        """Start the launch's workflow if it is not there."""
        ...


class NodeActivities(NodeSteps):
    """Steps of `NodeWorkflow`."""

    def __init__(self, database: Database, launches: LaunchStart, *, heartbeat_interval_s: float) -> None:
        self._database = database
        self._launches = launches
        self._heartbeat_interval_s = heartbeat_interval_s

    @activity.defn
    async def mark_node(self, request: m.MarkNodeInput) -> m.Done:
        """Write the node's new status; a terminated node stays terminated."""
        async with self._database.transaction() as session:
            nodes = NodeRepository(session)
            node = await nodes.get(request.node_id, lock=True)
            if node is None:
                return m.Done()
            node.workflow_heard_at = utcnow()
            if node.status == NodeStatus.TERMINATED.value:
                return m.Done()
            if node.status != request.status:
                AuditRepository(session).add(
                    principal="skyfleet",
                    action=f"node.{request.status}",
                    subject=request.node_id,
                    outcome="done",
                    detail={"why": request.message},
                )
            if (node.status, node.status_message) != (request.status, request.message):
                told = f"{request.status}: {request.message}"
                await nodes.tell(node.id, kind="status", message=told, data={"status": request.status})
            node.status, node.status_message = request.status, request.message
            if request.status != NodeStatus.READY.value:
                node.routable = False
            if request.kept:
                node.replace_requested_at = node.replace_requested_by = node.replace_reason = None
        return m.Done()

    @activity.defn
    async def request_replacement(self, request: m.ReplacementInput) -> m.ReplacementResult:
        """Write down and start the launch of another node like this one; the same launch however often it is asked."""
        async with self._database.transaction() as session:
            nodes, launches = NodeRepository(session), LaunchRepository(session)
            node = await nodes.get(request.node_id, lock=True)
            assert node is not None  # its workflow was started with what its row holds
            node.workflow_heard_at = utcnow()
            origin = await launches.get(node.launch_id)
            assert origin is not None
            if request.preempted:
                await _remember_preemption(session, node, request.reason)
            if node.replaced_by is None:
                why_not = await _why_not(nodes, node, origin)
                if why_not is not None:
                    await nodes.tell(node.id, kind="replacement", message=f"not replaced: {why_not}", dedupe="refused")
                    return m.ReplacementResult(why_not=why_not)
                node.replaced_by = await _write_down(launches, node, origin, request.reason)
                await nodes.tell(
                    node.id,
                    kind="replacement",
                    message=f"another was asked for: {node.replaced_by}",
                    data={"launch_id": node.replaced_by, "reason": request.reason},
                    dedupe="requested",
                )
            launch_id = node.replaced_by
            spec = LaunchSpec.model_validate(origin.spec)
        if await self._launches.start_launch(m.LaunchInput.of(launch_id, origin.tenant, spec)):
            async with self._database.transaction() as session:
                await LaunchRepository(session).mark_started([launch_id])
        return m.ReplacementResult(launch_id=launch_id)

    @activity.defn
    async def check_replacement(self, request: m.CheckReplacementInput) -> m.CheckReplacementResult:
        """How far the launch of the other node is."""
        async with self._database.transaction() as session:
            launch = await LaunchRepository(session).get(request.launch_id)
            assert launch is not None
        return m.CheckReplacementResult(stage=LaunchStage(launch.stage), error=(launch.error or {}).get("message", ""))

    @activity.defn
    async def check_drain(self, request: m.CheckDrainInput) -> m.CheckDrainResult:
        """By the last heartbeat; one from before the agent can have heard of the drain says nothing."""
        async with self._database.transaction() as session:
            node = await NodeRepository(session).get(request.node_id)
        now = utcnow()
        if node is None or node.status == NodeStatus.TERMINATED.value:
            return m.CheckDrainResult(silent=True)
        interval = timedelta(seconds=self._heartbeat_interval_s)
        last = node.last_heartbeat_at or node.registered_at
        # Told with one beat, idle in a later one.
        told = request.since + 2 * interval
        if last > told and node.last_heartbeat is not None:
            engine = node.last_heartbeat.get("engine", {})
            if engine.get("running") == 0 and not engine.get("waiting"):
                return m.CheckDrainResult(drained=True)
        return m.CheckDrainResult(silent=now - max(last, request.since) > _SILENT_INTERVALS * interval)


async def _why_not(nodes: NodeRepository, node: NodeRow, origin: LaunchRow) -> str | None:
    if node.replace_requested_by not in (None, OURSELVES):
        return None  # a person asked for just this
    if not LaunchSpec.model_validate(origin.spec).replaced_when_lost:
        return "it was launched by hand, without --replace-lost"
    if not may_replace(await nodes.lives(node.id, MAX_SHORT_LIVES)):
        return f"the last {MAX_SHORT_LIVES} of its kind were lost within minutes"
    return None


async def _write_down(launches: LaunchRepository, node: NodeRow, origin: LaunchRow, reason: str) -> str:
    key = f"replaces/{node.id}"
    launch = NewLaunch(
        id=ids.new_launch_id(),
        tenant=origin.tenant,
        principal=origin.principal,
        idempotency_key=key,
        request_hash=key,
        spec=origin.spec,
        model_name=origin.model_name,
        deployment=origin.deployment,
        engine=None,
        sandbox=origin.sandbox,
        audit_detail={"replaces": node.id, "reason": reason},
        remote=None,
    )
    if not await launches.add_all([launch]):
        earlier = await launches.by_idempotency_key(origin.principal, key)
        assert earlier is not None
        return earlier.id
    await launches.mark_replacement(launch.id, node.id)
    return launch.id


async def _remember_preemption(session: Session, node: NodeRow, message: str) -> None:
    """Other launches, the replacement first of all, try other places for a while."""
    attempt = await AttemptRepository(session).by_node_id(node.id)
    now: datetime = utcnow()
    refusal = Refusal(
        cloud=node.provider,
        region=node.region,
        zone=node.zone,
        instance_type=node.instance_type,
        gpu=node.gpu_type,
        gpu_count=attempt.gpu_count if attempt else 0,
        market=Market(node.market),
        kind=ErrorKind.PREEMPTED,
        scope=ErrorScope.ZONE,
        at=now,
        until=memory_until(ErrorKind.PREEMPTED, now),
        message=message,
    )
    await RefusalRepository(session).remember(refusal, node.launch_id)
