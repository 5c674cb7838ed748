"""What the fleet watch reads and writes: every serving node at each look, and those that changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, String, bindparam, text
from sqlalchemy.dialects.postgresql import insert

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import FleetWatchRow

# One statement for the whole fleet, and of each heartbeat no more than is looked at: this runs every other second.
_SERVING = text("""
    SELECT id, backend, cluster_name, endpoint_url, engine, registered_at,
           extract(epoch FROM clock_timestamp() - coalesce(last_heartbeat_at, registered_at))::float8 AS silent_s,
           last_heartbeat_at IS NOT NULL AS beating,
           (last_heartbeat #>> '{engine,healthy}')::boolean AS engine_healthy,
           coalesce(last_heartbeat #>> '{engine,state}' = 'failing', false) AS engine_failing,
           coalesce((last_heartbeat #>> '{engine,running}')::float8, 0)
             + coalesce((last_heartbeat #>> '{engine,waiting}')::float8, 0)
             + coalesce((last_heartbeat #>> '{engine,tokens_per_second}')::float8, 0) AS load,
           last_heartbeat #>> '{engine,running}' IS NOT NULL AS load_known,
           health_state, reached_at IS NOT NULL AS reached, max_life_seconds, idle_shutdown_seconds, idle_since,
           replace_requested_at IS NOT NULL OR drain_requested_at IS NOT NULL AS ending
    FROM nodes
    WHERE status = 'ready' AND terminate_requested_at IS NULL
""")

_CHANGED = text("""
    UPDATE nodes SET
        health = changed.health, health_detail = changed.detail, health_score = changed.score,
        health_state = changed.state, signals = changed.signals, routable = changed.routable,
        idle_since = changed.idle_since,
        reached_at = CASE WHEN changed.reached THEN coalesce(nodes.reached_at, now()) ELSE nodes.reached_at END
    FROM jsonb_to_recordset(CAST(:changes AS jsonb)) AS changed (
        id text, health text, detail text, score float8, state jsonb, signals jsonb, routable boolean,
        idle_since timestamptz, reached boolean
    )
    -- A node that began to drain meanwhile is out of rotation whatever was seen of it.
    WHERE nodes.id = changed.id AND nodes.status = 'ready'
      -- Says how many rows there are: of a function the planner assumes a hundred, and reads the table for each.
      AND nodes.id = ANY(:ids)
""").bindparams(bindparam("ids", type_=ARRAY(String)))
_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving node at one look. `silent_s`: seconds since its last beat, or since it registered."""

    id: str
    backend: str
    cluster_name: str
    endpoint_url: str
    engine: str | None
    registered_at: datetime
    silent_s: float
    beating: bool
    engine_healthy: bool | None
    engine_failing: bool  # its agent restarted it again and again
    load: float
    load_known: bool
    health_state: dict[str, Any] | None
    reached: bool
    max_life_seconds: int | None
    idle_shutdown_seconds: int | None
    idle_since: datetime | None
    ending: bool


class WatchRepository(Repository):
    """The fleet as the watch sees it."""

    async def serving(self) -> list[Serving]:
        """All nodes that serve, and whose end nobody asked for."""
        return [Serving(*row) for row in await self.session.execute(_SERVING)]

    async def write(self, changes: Sequence[dict[str, Any]]) -> None:
        """What changed of nodes: id, health, detail, score, state, signals, routable, idle_since, reached."""
        for start in range(0, len(changes), _AT_ONCE):
            some = changes[start : start + _AT_ONCE]
            values = {"changes": json.dumps(some), "ids": [change["id"] for change in some]}
            await self.session.execute(_CHANGED, values)

    async def state(self) -> FleetWatchRow | None:
        """What the watch last said of the whole."""
        return await self.session.get(FleetWatchRow, 1)

    async def put_state(self, state: FleetWatchRow) -> None:
        """Say it."""
        values = state.model_dump()
        statement = insert(FleetWatchRow).values(**values)
        await self.session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
