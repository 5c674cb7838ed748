"""What it costs to look at ten thousand nodes: a look of the fleet watch, and the sweep's comparison with the cloud.

On a PostgreSQL of its own, with a cloud that answers at once: what is measured is our own work. The ratio is the
slowest of a few rounds, look and comparison together, over the second that it may take.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from sqlalchemy import insert, text

from activities.sweep import SweepActivities
from activities.watch import FleetWatch, new_fleet
from bench.report import Report
from skyfleet.clouds.base import Cloud
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, LaunchRow, NodeRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.health import HealthPolicy
from skyfleet.domain.offers import CloudInstance, InstanceState
from skyfleet.domain.states import Market
from tests.postgres import running_postgres

NODES = 10_000
ROUNDS = 5
LIMIT_S = 1.0
_BEAT: dict[str, Any] = {"sequence": 1, "engine": {"healthy": True, "running": 0, "waiting": 0}, "gpus": []}


class _Fleet:
    """The cloud, the engines and the deliveries: all machines are there, all engines answer, nothing is delivered."""

    def __init__(self, machines: list[CloudInstance]) -> None:
        self._machines = machines

    async def list(self, owner: str) -> list[CloudInstance]:
        """All of them."""
        return self._machines

    async def get(self, name: str) -> CloudInstance | None:
        """Never asked: all are listed."""
        raise AssertionError(name)

    async def answers(self, endpoint_url: str, engine: str | None) -> bool:
        """Well."""
        return True


async def run() -> Report:
    """Fill a database, and look."""
    with tempfile.TemporaryDirectory(prefix="skyfleet-bench-") as folder:
        async with running_postgres(Path(folder)) as server, server.database() as url:
            database = Database(url)
            try:
                return await _measure(database)
            finally:
                await database.aclose()


async def _measure(database: Database) -> Report:
    machines = await _fill(database)
    fleet = cast(Any, _Fleet(machines))
    clouds = {"fake": cast(Cloud, fleet)}
    watch = FleetWatch(
        database,
        clouds,
        fleet,
        fleet,
        owner="bench",
        heartbeat_interval_s=10.0,
        poll_interval_s=30.0,
        cloud_interval_s=60.0,
        policy=HealthPolicy(),
    )
    sweep = SweepActivities(database, fleet, clouds, owner="bench", compare_interval_s=0.0)
    state = new_fleet(clouds)
    # Not counted: the first look writes every node's first verdict, once in its life.
    first = await _timed(watch.look(state))
    await asyncio.sleep(0.1)  # the cloud's list, begun by that look
    looks, compared = [], []
    for number in range(ROUNDS):
        async with database.transaction() as session:
            await session.execute(text("UPDATE nodes SET last_heartbeat_at = now()"))  # they beat
        looks.append(await _timed(watch.look(state)))
        compared.append(await _timed(sweep.compare_with_clouds(m.SweepInput())))
        print(f"round {number + 1}: look {looks[-1]:.3f} s, comparison {compared[-1]:.3f} s", flush=True)
    worst = max(look + comparison for look, comparison in zip(looks[1:], compared[1:], strict=True))
    return Report(
        "sweep",
        {
            "nodes": NODES,
            "first_look_s": round(first, 3),
            "look_s": round(max(looks[1:]), 3),
            "comparison_s": round(max(compared[1:]), 3),
        },
        worst / LIMIT_S,
        1.0,
        lower_is_better=True,
    )


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _fill(database: Database) -> list[CloudInstance]:
    """Ten thousand nodes that beat a moment ago; their machines."""
    now = utcnow()
    launches = [f"launch-{number:012x}" for number in range(NODES)]
    place = {"region": "us-east-1", "zone": "us-east-1a", "instance_type": "g5.xlarge", "market": "spot"}
    price = Decimal("0.4024")
    rows: list[tuple[Any, list[dict[str, Any]]]] = [
        (
            LaunchRow,
            [
                {
                    "id": one,
                    "tenant": "t",
                    "principal": "p",
                    "request_hash": "h",
                    "spec": {},
                    "model_name": "m",
                    "stage": "READY",
                    "status": "completed",
                    "attempt_count": 1,
                    "last_event_seq": 1,
                    "sandbox": True,
                    "created_at": now,
                    "updated_at": now,
                    "ended_at": now,
                }
                for one in launches
            ],
        ),
        (
            AttemptRow,
            [
                {
                    "launch_id": one,
                    "number": 1,
                    "cluster_name": ids.cluster_name(one, 1),
                    "node_id": ids.node_id(one, 1),
                    "backend": "fake",
                    "cloud": "aws",
                    **place,
                    "hourly_price": price,
                    "gpu_count": 1,
                    "state": "succeeded",
                    "opened_at": now,
                }
                for one in launches
            ],
        ),
        (
            NodeRow,
            [
                {
                    "id": ids.node_id(one, 1),
                    "launch_id": one,
                    "attempt": 1,
                    "cluster_name": ids.cluster_name(one, 1),
                    "tenant": "t",
                    "backend": "fake",
                    "provider": "aws",
                    **place,
                    "hourly_price": price,
                    "model_name": "m",
                    "endpoint_url": "http://n",
                    "sandbox": True,
                    "status": "ready",
                    "status_message": "",
                    "heartbeat_key_hash": "h",
                    "heartbeat_sequence": 1,
                    "last_heartbeat_at": now,
                    "last_heartbeat": _BEAT,
                    "billed_from": now,
                    "registered_at": now,
                }
                for one in launches
            ],
        ),
    ]
    async with database.transaction() as session:
        for table, values in rows:
            for start in range(0, NODES, 1_000):
                await session.execute(insert(table), values[start : start + 1_000])
    return [
        CloudInstance(
            name=ids.cluster_name(one, 1),
            id=f"i-{one}",
            backend="fake",
            cloud="aws",
            state=InstanceState.RUNNING,
            hourly_price=price,
            owner="bench",
            created_at=now,
            **{**place, "market": Market.SPOT},
        )
        for one in launches
    ]
