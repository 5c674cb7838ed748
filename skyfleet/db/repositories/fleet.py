"""The whole fleet in figures, for metrics."""

from __future__ import annotations

from sqlalchemy import text

from skyfleet.db.repositories.base import Repository
from skyfleet.domain.fleet import CatalogAge, CostRate, FleetFigures, HeartbeatAges, NodeCount, OpenLaunches
from skyfleet.domain.states import AttemptState, NodeStatus

# Each reads what is open or alive and no history, by the indexes on `status`, `state` and open launches.

_NODES = text("SELECT provider, status, count(*) AS nodes FROM nodes WHERE status <> :terminated GROUP BY 1, 2")

# A launch can be in a stage more than once: what counts is since when it is in it now.
_OPEN_LAUNCHES = text("""
    SELECT l.stage, count(*) AS launches,
           max(extract(epoch FROM clock_timestamp() - coalesce(entered.at, l.created_at)))::float AS oldest_seconds
    FROM launches l
    LEFT JOIN LATERAL (
        SELECT min(e.at) AS at FROM launch_events e
        WHERE e.launch_id = l.id AND e.seq > coalesce(
            (SELECT max(o.seq) FROM launch_events o WHERE o.launch_id = l.id AND o.stage <> l.stage), 0
        )
    ) entered ON true
    WHERE l.ended_at IS NULL
    GROUP BY 1
""")

_QUEUED = text("SELECT count(*) FROM launch_attempts WHERE state = :open AND provision_started_at IS NULL")

# A machine costs from the cloud's creation to its confirmed end: before its node registers it is an attempt, and
# after that a node.
_COST_RATES = text("""
    SELECT provider, market, sum(hourly_price) AS hourly_price
    FROM (
        SELECT provider, market, hourly_price FROM nodes WHERE status <> :terminated
        UNION ALL
        SELECT cloud, market, hourly_price FROM launch_attempts a
        WHERE state IN (:created, :closing) AND created_at IS NOT NULL AND closed_at IS NULL
          AND NOT EXISTS (SELECT FROM nodes n WHERE n.id = a.node_id)
    ) machines
    GROUP BY 1, 2
""")

_HEARTBEATS = text("""
    SELECT provider, array_agg(
        greatest(extract(epoch FROM clock_timestamp() - coalesce(last_heartbeat_at, registered_at)), 0)::float
    ) AS seconds
    FROM nodes
    WHERE status NOT IN (:terminated, :terminating) AND terminate_requested_at IS NULL
    GROUP BY 1
""")

_TEARDOWNS = text("""
    SELECT count(*) AS teardowns,
           coalesce(max(extract(epoch FROM clock_timestamp() - since)), 0)::float AS oldest_seconds
    FROM (
        SELECT closing_at AS since FROM launch_attempts WHERE state = :closing AND closed_at IS NULL
        UNION ALL
        SELECT n.terminate_requested_at FROM nodes n
        JOIN launch_attempts a ON a.node_id = n.id
        WHERE n.status <> :terminated AND n.terminate_requested_at IS NOT NULL AND a.state <> :closing
    ) asked
""")

_CATALOGS = text("""
    SELECT name AS backend, extract(epoch FROM clock_timestamp() - synced_at)::float AS seconds
    FROM backends WHERE synced_at IS NOT NULL
""")


class FleetRepository(Repository):
    """Reads figures; writes nothing."""

    async def figures(self) -> FleetFigures:
        """All figures, of one moment if the transaction reads one snapshot."""
        node = {"terminated": NodeStatus.TERMINATED.value}
        closing = {"closing": AttemptState.CLOSING.value}
        nodes = (await self.session.execute(_NODES, node)).mappings()
        launches = (await self.session.execute(_OPEN_LAUNCHES)).mappings()
        queued = (await self.session.execute(_QUEUED, {"open": AttemptState.OPEN.value})).scalar_one()
        created = {"created": AttemptState.CREATED.value}
        rates = (await self.session.execute(_COST_RATES, node | closing | created)).mappings()
        beats = (
            await self.session.execute(_HEARTBEATS, node | {"terminating": NodeStatus.TERMINATING.value})
        ).mappings()
        teardowns = (await self.session.execute(_TEARDOWNS, node | closing)).one()
        catalogs = (await self.session.execute(_CATALOGS)).mappings()
        return FleetFigures(
            nodes=[NodeCount.model_validate(dict(row)) for row in nodes],
            open_launches=[OpenLaunches.model_validate(dict(row)) for row in launches],
            queued_attempts=queued,
            cost_rates=[CostRate.model_validate(dict(row)) for row in rates],
            heartbeats=[HeartbeatAges.model_validate(dict(row)) for row in beats],
            teardowns=teardowns.teardowns,
            oldest_teardown_seconds=teardowns.oldest_seconds,
            catalogs=[CatalogAge.model_validate(dict(row)) for row in catalogs],
        )
