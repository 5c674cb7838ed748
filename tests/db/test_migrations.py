"""The migrations: up, down, up again, on an empty and on a filled database, and from two processes at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

from skyfleet.db import migrate, tables
from skyfleet.db.session import Database
from skyfleet.db.tables import utcnow
from tests.postgres import TestServer


@pytest.fixture
async def empty_url(postgres_server: TestServer) -> AsyncIterator[str]:
    """A database without tables."""
    async with postgres_server.database(migrated=False) as url:
        yield url


async def _up(url: str, revision: str = "head") -> None:
    await asyncio.to_thread(migrate.upgrade, url, revision)


async def _down(url: str, revision: str) -> None:
    await asyncio.to_thread(migrate.downgrade, url, revision)


async def _inspected(url: str, look: Any) -> Any:
    database = Database(url, pooled=False)
    try:
        async with database.engine.connect() as connection:
            return await connection.run_sync(look)
    finally:
        await database.aclose()


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, SQLModel.metadata))


def _leftovers(connection: Connection) -> dict[str, Any]:
    """All that the migrations could have left behind."""
    functions = connection.execute(
        text("SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'public'")
    )
    return {"tables": set(inspect(connection).get_table_names()), "functions": set(functions.scalars())}


def _revisions(url: str) -> list[str]:
    scripts = ScriptDirectory.from_config(migrate.alembic_config(url))
    return [script.revision for script in scripts.walk_revisions()][::-1]


async def test_the_migrated_schema_is_that_of_the_models(empty_url: str) -> None:
    await _up(empty_url)
    assert await _inspected(empty_url, _differences) == []


async def test_a_missing_column_would_be_seen(empty_url: str) -> None:
    await _up(empty_url)
    database = Database(empty_url, pooled=False)
    async with database.transaction() as session:
        await session.execute(text("ALTER TABLE nodes DROP COLUMN agent_version"))
        await session.execute(text("ALTER TABLE models ALTER COLUMN vram_required_gb TYPE integer"))
    await database.aclose()
    assert len(await _inspected(empty_url, _differences)) == 2


async def test_down_takes_everything_away_and_up_brings_it_back(empty_url: str) -> None:
    await _up(empty_url)
    await _down(empty_url, "base")
    assert await _inspected(empty_url, _leftovers) == {"tables": {"alembic_version"}, "functions": set()}
    await _up(empty_url)
    assert await _inspected(empty_url, _differences) == []


async def test_each_revision_goes_up_and_down_by_itself(empty_url: str) -> None:
    for revision in _revisions(empty_url):
        await _up(empty_url, revision)
        await _down(empty_url, "-1")
        await _up(empty_url, revision)
    assert await _inspected(empty_url, _differences) == []


def _rows() -> list[SQLModel]:
    """One row of every table, in an order that foreign keys allow."""
    now = utcnow()
    launch: dict[str, Any] = {"id": "launch-00000001", "tenant": "t", "principal": "p", "request_hash": "h", "spec": {}}
    place: dict[str, Any] = {"region": "r", "instance_type": "i", "market": "spot"}
    return [
        tables.ModelRow(id="m", name="m", family="f", size="8B", vram_required_gb=19.3),
        tables.LaunchRow(**launch, model_name="m", stage="QUEUED", status="in_progress"),
        tables.AttemptRow(
            launch_id=launch["id"],
            number=1,
            cluster_name="c",
            node_id="n",
            backend="b",
            cloud="c",
            **place,
            hourly_price=Decimal("1.5"),
            state="open",
        ),
        tables.LaunchEventRow(launch_id=launch["id"], seq=1, kind="stage", stage="QUEUED", message="accepted"),
        tables.NodeRow(
            id="n",
            launch_id=launch["id"],
            attempt=1,
            cluster_name="c",
            tenant="t",
            backend="b",
            provider="c",
            **place,
            hourly_price=Decimal("1.5"),
            model_name="m",
            endpoint_url="http://h:1",
            status="ready",
            heartbeat_key_hash="h",
            billed_from=now,
        ),
        tables.NodeEventRow(node_id="n", kind="health", message="healthy"),
        tables.FleetWatchRow(looked_at=now),
        tables.AuditRow(principal="p", action="launch.create", subject=launch["id"], outcome="accepted"),
        tables.ApiKeyRow(id="k", name="k", role="viewer", tenant="t", secret_hash="h", created_by="p"),
        tables.RefusalRow(place="p", cloud="c", **place, kind="capacity", scope="zone", message="", at=now, until=now),
        tables.OfferRow(key="k", backend="b", cloud="c", **place, hourly_price=Decimal("0.4")),
        tables.BackendRow(name="b"),
        tables.AgentBundleRow(version="1", sha256="s", content=b"c"),
        tables.CloudAccessRow(backend="b", cloud="c", enabled=False, reason="no credentials", checked_at=now),
        tables.GivenUpNameRow(name="c"),
        tables.ModelBucketRow(url="s3://b", skipped=[{"path": "p", "reason": "no config.json"}]),
        tables.NotificationRow(
            id=1, kind="launch_failed", severity="warning", subject="s", title="t", body="b", dedupe="d"
        ),
        tables.NotificationChannelRow(
            id="h",
            name="h",
            url="json://h/secret",
            masked_url="json://h/****",
            service="JSON",
            min_severity="info",
            throttle_count=1,
            throttle_seconds=1,
            created_by="p",
        ),
        tables.NotificationDeliveryRow(
            notification_id=1, channel_id="h", channel_name="h", kind="launch_failed", state="pending"
        ),
        tables.CostIntervalRow(
            cluster_name="c",
            instance_id="i",
            backend="b",
            provider="c",
            **place,
            hourly_price=Decimal(1),
            started_at=now,
        ),
        tables.BudgetRow(id="b", name="b", scope="all", amount=Decimal(1), hard_stop="none", created_by="p"),
        tables.BudgetAlertRow(
            budget_id="b", period_start=now, fraction=Decimal("0.8"), spent=Decimal(1), amount=Decimal(1)
        ),
    ]


def test_the_filled_database_has_a_row_in_every_table() -> None:
    assert {row.__tablename__ for row in _rows()} == set(SQLModel.metadata.tables)


async def test_a_filled_database_goes_down_and_up(empty_url: str) -> None:
    await _up(empty_url)
    database = Database(empty_url, pooled=False)
    for row in _rows():
        async with database.transaction() as session:
            session.add(row)
    await _up(empty_url)  # nothing to do, and nothing is lost
    async with database.transaction() as session:
        for name in SQLModel.metadata.tables:
            assert (await session.execute(text(f'SELECT count(*) FROM "{name}"'))).scalar_one() == 1  # noqa: S608
    await _down(empty_url, "base")
    await _up(empty_url)
    assert await _inspected(empty_url, _differences) == []
    await database.aclose()


async def test_two_processes_migrate_at_once(empty_url: str) -> None:
    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "skyfleet.db.migrate",
            env={"SKYFLEET_DATABASE_URL": empty_url, "PATH": ""},
            stderr=asyncio.subprocess.PIPE,
        )

    processes = await asyncio.gather(start(), start(), start())
    results = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], [stderr.decode()[-500:] for _, stderr in results]
    assert await _inspected(empty_url, _differences) == []


async def test_a_notification_follows_each_event(database: Database) -> None:
    import asyncpg

    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await asyncpg.connect(database.url)
    try:
        await connection.add_listener("launch_events", lambda *event: heard.put_nowait(event[3]))
        for row in _rows()[:4]:
            async with database.transaction() as session:
                session.add(row)
        assert await asyncio.wait_for(heard.get(), 5) == "launch-00000001:1"
    finally:
        await connection.close()
