"""Nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import DateTime, Row, case, func, or_, select, text, tuple_, update
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import LaunchRow, NodeEventRow, NodeRow, utcnow
from skyfleet.domain.states import NodeStatus


class NewNodeEvent(NamedTuple):
    """A line for a node's history; one of the same `dedupe` is there once."""

    node_id: str
    kind: str
    message: str
    data: dict[str, Any]
    dedupe: str | None = None


# One statement: when a network fails, thousands of nodes have something to tell at once.
_TELL = text("""
    INSERT INTO node_events (node_id, at, kind, message, data, dedupe)
    SELECT node_id, clock_timestamp(), kind, message, data, dedupe
    FROM jsonb_to_recordset(CAST(:events AS jsonb))
      AS event (node_id text, kind text, message text, data jsonb, dedupe text)
    ON CONFLICT ON CONSTRAINT uq_node_events_dedupe DO NOTHING
""")


class NodeRepository(Repository):
    """Machines whose agent registered."""

    async def get(self, node_id: str, *, lock: bool = False) -> NodeRow | None:
        """The node of that id."""
        return await self.session.get(NodeRow, node_id, with_for_update=lock or None)

    async def place(self, node_id: str) -> Row[str, str, str | None, str, str, str] | None:
        """Where the node is: provider, region, zone, instance_type, market and endpoint_url."""
        columns = (
            col(NodeRow.provider),
            col(NodeRow.region),
            col(NodeRow.zone),
            col(NodeRow.instance_type),
            col(NodeRow.market),
            col(NodeRow.endpoint_url),
        )
        return (await self.session.execute(select(*columns).where(col(NodeRow.id) == node_id))).one_or_none()

    async def find(self, name: str, *, lock: bool = False) -> NodeRow | None:
        """The node of that cluster name or node id."""
        statement = select(NodeRow).where(or_(col(NodeRow.cluster_name) == name, col(NodeRow.id) == name))
        if lock:
            statement = statement.with_for_update()
        return (await self.session.execute(statement)).scalar_one_or_none()

    def add(self, node: NodeRow) -> None:
        """A node registered."""
        self.session.add(node)

    async def heartbeat(
        self, node_id: str, key_hash: str, *, sequence: int, report: dict[str, Any], at: datetime
    ) -> tuple[str, datetime | None] | None:
        """Write a heartbeat; the node's status and when its end was asked for.

        None, and nothing written, if the node is unknown or terminated, the key is another, or the sequence is not
        above the last one. The key is compared by its digest, whose bytes an attacker cannot choose: the time of the
        comparison tells nothing of the key.
        """
        statement = (
            update(NodeRow)
            .where(
                col(NodeRow.id) == node_id,
                col(NodeRow.heartbeat_key_hash) == key_hash,
                col(NodeRow.heartbeat_sequence) < sequence,
                col(NodeRow.status) != NodeStatus.TERMINATED.value,
            )
            .values(
                heartbeat_sequence=sequence,
                last_heartbeat=report,
                last_heartbeat_at=at,
                first_heartbeat_at=func.coalesce(col(NodeRow.first_heartbeat_at), at),
            )
            .returning(col(NodeRow.status), col(NodeRow.terminate_requested_at))
            .execution_options(synchronize_session=False)
        )
        row = (await self.session.execute(statement)).one_or_none()
        return None if row is None else (row[0], row[1])

    async def page(
        self,
        *,
        statuses: Sequence[str] = (),
        model_name: str | None = None,
        provider: str | None = None,
        deployment: str | None = None,
        tenant: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> Sequence[NodeRow]:
        """Newest first; `before` is the (registered_at, id) of the last row of the page before."""
        statement = select(NodeRow)
        if statuses:
            statement = statement.where(col(NodeRow.status).in_(statuses))
        for column, value in (
            (NodeRow.model_name, model_name),
            (NodeRow.provider, provider),
            (NodeRow.deployment, deployment),
            (NodeRow.tenant, tenant),
        ):
            if value is not None:
                statement = statement.where(col(column) == value)
        if before is not None:
            statement = statement.where(tuple_(col(NodeRow.registered_at), col(NodeRow.id)) < before)
        statement = statement.order_by(col(NodeRow.registered_at).desc(), col(NodeRow.id).desc()).limit(limit)
        return (await self.session.execute(statement)).scalars().all()

    async def tell(
        self, node_id: str, *, kind: str, message: str, data: dict[str, Any] | None = None, dedupe: str | None = None
    ) -> None:
        """Add a line to the node's history; one of the same `dedupe` is there once."""
        await self.tell_all([NewNodeEvent(node_id, kind, message, data or {}, dedupe)])

    async def tell_all(self, events: Sequence[NewNodeEvent]) -> None:
        """Add lines to the histories of many nodes at once."""
        if events:
            rows = json.dumps([dict(zip(NewNodeEvent._fields, event, strict=True)) for event in events])
            await self.session.execute(_TELL, {"events": rows})

    async def events(self, node_id: str, *, after: int = 0, limit: int = 200) -> Sequence[NodeEventRow]:
        """The node's history in order, from behind that id on."""
        statement = (
            select(NodeEventRow)
            .where(col(NodeEventRow.node_id) == node_id, col(NodeEventRow.id) > after)
            .order_by(col(NodeEventRow.id))
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()

    async def lives(self, node_id: str, limit: int) -> list[timedelta]:
        """How long the node lived, the one that it replaced, and so on, the latest first; at most `limit`."""
        found: list[timedelta] = []
        following: str | None = node_id
        while following is not None and len(found) < limit:
            statement = (
                select(col(NodeRow.registered_at), col(NodeRow.terminated_at), col(LaunchRow.replaces_node_id))
                .join(LaunchRow, col(LaunchRow.id) == col(NodeRow.launch_id))
                .where(col(NodeRow.id) == following)
            )
            row = (await self.session.execute(statement)).one_or_none()
            if row is None:
                break
            found.append((row[1] or utcnow()) - row[0])
            following = row[2]
        return found

    async def undelivered_commands(self, older_than: datetime, limit: int = 500) -> Sequence[NodeRow]:
        """Nodes that were to drain or to be replaced, or that their cloud takes away, whose workflow heard of none."""
        asked = func.greatest(col(NodeRow.drain_requested_at), col(NodeRow.replace_requested_at))
        notice = col(NodeRow.termination_warning)
        taken = func.coalesce(notice["kind"].astext, "preemption") == "preemption"
        warned = case((taken, notice["received_at"].astext.cast(DateTime(timezone=True))))
        statement = (
            select(NodeRow)
            .where(
                col(NodeRow.status).in_([NodeStatus.READY.value, NodeStatus.DRAINING.value]),
                col(NodeRow.terminate_requested_at).is_(None),
                func.greatest(asked, warned) < older_than,
                or_(
                    col(NodeRow.workflow_heard_at).is_(None),
                    col(NodeRow.workflow_heard_at) < func.greatest(asked, warned),
                ),
            )
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()

    async def serving(self, backend: str) -> list[tuple[str, str]]:
        """Id and cluster name of a backend's nodes that serve, and whose end nobody has asked for."""
        statement = select(col(NodeRow.id), col(NodeRow.cluster_name)).where(
            col(NodeRow.backend) == backend,
            col(NodeRow.terminate_requested_at).is_(None),
            col(NodeRow.status) == NodeStatus.READY.value,
        )
        return [(row[0], row[1]) for row in await self.session.execute(statement)]

    async def undelivered_terminations(self, older_than: datetime, limit: int = 500) -> Sequence[NodeRow]:
        """Nodes whose end was asked for some time ago and that are still marked ready."""
        statement = (
            select(NodeRow)
            .where(
                col(NodeRow.terminate_requested_at) < older_than,
                col(NodeRow.status).in_([NodeStatus.READY.value, NodeStatus.DRAINING.value]),
            )
            .order_by(col(NodeRow.terminate_requested_at))
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()
