"""The cost ledger's queries on a real PostgreSQL, against the same figures worked out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, text

from skyfleet.db import migrate
from skyfleet.db.repositories import BudgetRepository, CostRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, BudgetRow, CostIntervalRow, LaunchRow, OfferRow
from skyfleet.domain.cost import BudgetScope, CostKey, interval_cost, month_of
from skyfleet.domain.offers import CloudInstance, InstanceState
from skyfleet.domain.states import Market
from tests.postgres import TestServer

#: Daylight saving began in Europe on the 29th: a local day of 23 hours. A UTC day has 24.
BEGIN = datetime(2026, 3, 27, tzinfo=UTC)
LONG = timedelta(days=8)
LAUNCH = "launch-000000000001"


@pytest.fixture(scope="module")
async def ledger(postgres_server: TestServer) -> AsyncIterator[Database]:
    """A database whose sessions keep Berlin's time, with one launch: attempt 1 became a node, 2 failed, 3 starts."""
    async with postgres_server.database() as url:
        database = Database(url, pooled=False)
        async with database.transaction() as session:
            name = url.rpartition("/")[2]
            await session.execute(text(f"ALTER DATABASE \"{name}\" SET timezone TO 'Europe/Berlin'"))
        database = Database(url)
        async with database.transaction() as session:
            assert (await session.execute(text("SHOW timezone"))).scalar_one() == "Europe/Berlin"
            await _launch(session)
        yield database
        await database.aclose()


async def _launch(session: Any) -> None:
    session.add(
        LaunchRow(
            id=LAUNCH,
            tenant="acme",
            principal="ann",
            request_hash="h",
            spec={},
            model_name="org/model",
            deployment="chat",
            stage="READY",
            status="completed",
        )
    )
    await session.flush()
    for number, state in enumerate(("succeeded", "closed", "created"), start=1):
        session.add(
            AttemptRow(
                launch_id=LAUNCH,
                number=number,
                cluster_name=f"sf-{number}",
                node_id=f"node-{number}",
                backend="local",
                cloud="aws",
                region="us-east-1",
                instance_type="g5.xlarge",
                market="spot",
                hourly_price=Decimal("0.41"),
                state=state,
            )
        )


_OUTCOMES = {1: "node", 2: "failed", 3: "starting"}
_seconds = st.integers(0, int(LONG.total_seconds()) * 1_000_000).map(lambda micro: timedelta(microseconds=micro))
_edges = st.sampled_from([timedelta(days=day) + timedelta(microseconds=off) for day in range(9) for off in (-1, 0, 1)])
_moments = st.one_of(_seconds, _edges).map(lambda offset: BEGIN + offset)
_prices = st.integers(0, 99_999_999).map(lambda micro: Decimal(micro) / 1_000_000)


@st.composite
def _interval(draw: st.DrawFn) -> CostIntervalRow:
    start = draw(_moments)
    end = draw(st.one_of(st.none(), st.just(start), _moments.filter(lambda moment: moment >= start)))
    attempt = draw(st.one_of(st.none(), st.integers(1, 3)))
    return CostIntervalRow(
        cluster_name="",
        instance_id="i-1",
        backend="local",
        provider=draw(st.sampled_from(["aws", "gcp"])),
        region=draw(st.sampled_from(["r1", "r2"])),
        instance_type=draw(st.sampled_from(["small", "big"])),
        market=draw(st.sampled_from(["spot", "on_demand"])),
        hourly_price=draw(_prices),
        on_demand_price=draw(st.one_of(st.none(), _prices)),
        tenant=draw(st.sampled_from([None, "acme", "beta"])),
        principal=draw(st.sampled_from([None, "ann", "bob"])),
        model_name=draw(st.sampled_from([None, "m"])),
        deployment=draw(st.sampled_from([None, "chat"])),
        experiment=draw(st.sampled_from([None, "e1"])),
        launch_id=LAUNCH if attempt else None,
        attempt=attempt,
        node_id=f"node-{attempt}" if attempt else None,
        started_at=start,
        ended_at=end,
    )


def _unlike(rows: list[CostIntervalRow]) -> list[CostIntervalRow]:
    """The rows with a name of each one's own; of several of the same attempt the first is it, the others are strays."""
    taken: set[int] = set()
    for number, row in enumerate(rows):
        if row.attempt is not None and row.attempt not in taken:
            taken.add(row.attempt)
            row.cluster_name = f"sf-{row.attempt}"
        else:
            row.cluster_name, row.launch_id, row.attempt, row.node_id = f"sf-stray-{number}", None, None, None
    return rows


async def _fill(session: Any, rows: list[CostIntervalRow]) -> None:
    await session.execute(text("DELETE FROM cost_intervals"))
    if rows:
        await session.execute(insert(CostIntervalRow), [row.model_dump() for row in rows])


def _outcome(row: CostIntervalRow) -> str:
    return "stray" if row.attempt is None else _OUTCOMES[row.attempt]


#: What each row is told apart by; days are treated apart.
_KEY_OF: dict[CostKey, Callable[[CostIntervalRow], str | None]] = {
    CostKey.PROVIDER: lambda row: row.provider,
    CostKey.REGION: lambda row: f"{row.provider}/{row.region}",
    CostKey.INSTANCE_TYPE: lambda row: row.instance_type,
    CostKey.MARKET: lambda row: row.market,
    CostKey.MODEL: lambda row: row.model_name,
    CostKey.DEPLOYMENT: lambda row: row.deployment,
    CostKey.EXPERIMENT: lambda row: row.experiment,
    CostKey.TENANT: lambda row: row.tenant,
    CostKey.USER: lambda row: row.principal,
    CostKey.LAUNCH: lambda row: row.launch_id,
    CostKey.NODE: lambda row: row.node_id if _outcome(row) == "node" else None,
    CostKey.OUTCOME: _outcome,
}


def _cost(row: CostIntervalRow, price: Decimal, since: datetime, until: datetime, now: datetime) -> Decimal:
    end = row.ended_at or now
    return interval_cost(price, row.started_at, min(end, until)) - interval_cost(price, row.started_at, min(end, since))


def _naive(
    rows: list[CostIntervalRow], since: datetime, until: datetime, now: datetime, key: Callable[[CostIntervalRow], Any]
) -> dict[Any, tuple[Decimal, Decimal, Decimal]]:
    """Cost, saving and cost of what failed, by key."""
    found: dict[Any, tuple[Decimal, Decimal, Decimal]] = {}
    for row in rows:
        if row.started_at >= until or (row.ended_at is not None and row.ended_at <= since):
            continue
        cost = _cost(row, row.hourly_price, since, until, now)
        saving = Decimal(0)
        if row.market == "spot" and row.on_demand_price is not None:
            saving = _cost(row, row.on_demand_price, since, until, now) - cost
        failed = cost if _outcome(row) in ("failed", "stray") else Decimal(0)
        so_far = found.get(key(row), (Decimal(0),) * 3)
        found[key(row)] = (so_far[0] + cost, so_far[1] + saving, so_far[2] + failed)
    return found


_SETTINGS = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_SETTINGS
@given(
    rows=st.lists(_interval(), max_size=12).map(_unlike),
    period=st.tuples(_moments, _moments).map(sorted),
    now=_moments,
    by=st.sampled_from(sorted(_KEY_OF)),
)
async def test_totals_are_those_worked_out_by_hand(
    ledger: Database, rows: list[CostIntervalRow], period: list[datetime], now: datetime, by: CostKey
) -> None:
    since, until = period
    async with ledger.transaction() as session:
        await _fill(session, rows)
        costs = CostRepository(session)
        whole, parts = await costs.totals(since, until, now, by=by)
        only, _ = await costs.totals(since, until, now, provider="aws", tenant="acme")
        rate = await costs.hourly_rate(tenant="acme")
    by_key = _naive(rows, since, until, now, _KEY_OF[by])
    assert {part.key: (part.cost, part.saving, part.failed_cost) for part in parts} == by_key
    assert [part.cost for part in parts] == sorted((cost for cost, _, _ in by_key.values()), reverse=True)
    everything = tuple(sum((figures[n] for figures in by_key.values()), Decimal(0)) for n in range(3))
    assert (whole.cost, whole.saving, whole.failed_cost) == everything
    narrowed = [row for row in rows if (row.provider, row.tenant) == ("aws", "acme")]
    assert only.cost == _naive(narrowed, since, until, now, lambda _: 0).get(0, (Decimal(0),))[0]
    assert rate == sum((row.hourly_price for row in rows if row.tenant == "acme" and not row.ended_at), Decimal(0))


@_SETTINGS
@given(rows=st.lists(_interval(), max_size=8).map(_unlike), period=st.tuples(_moments, _moments).map(sorted))
async def test_utc_days_of_24_hours_add_up_to_the_whole(
    ledger: Database, rows: list[CostIntervalRow], period: list[datetime]
) -> None:
    since, until = period
    now = BEGIN + LONG
    async with ledger.transaction() as session:
        await _fill(session, rows)
        costs = CostRepository(session)
        _, days = await costs.totals(since, until, now, by=CostKey.DAY)
        whole, _ = await costs.totals(since, until, now)
    expected = {}
    day = since.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < until:
        later = day + timedelta(hours=24)
        figures = _naive(rows, max(day, since), min(later, until), now, lambda _: 0)
        if figures:
            expected[f"{day:%Y-%m-%d}"] = figures[0][0]
        day = later
    assert [(one.key, one.cost) for one in days] == sorted(expected.items())
    assert sum((one.cost for one in days), Decimal(0)) == whole.cost
    assert sum(one.billed_seconds for one in days) == whole.billed_seconds


@_SETTINGS
@given(rows=st.lists(_interval(), max_size=8).map(_unlike), now=_moments)
async def test_budgets_count_their_scope_in_the_month(
    ledger: Database, rows: list[CostIntervalRow], now: datetime
) -> None:
    scopes: dict[str, tuple[BudgetScope, str | None, Callable[[CostIntervalRow], Any]]] = {
        "all": (BudgetScope.ALL, None, lambda _: None),
        "tenant": (BudgetScope.TENANT, "acme", lambda row: row.tenant),
        "user": (BudgetScope.USER, "bob", lambda row: row.principal),
        "deployment": (BudgetScope.DEPLOYMENT, "chat", lambda row: row.deployment),
        "experiment": (BudgetScope.EXPERIMENT, "e1", lambda row: row.experiment),
        "provider": (BudgetScope.PROVIDER, "gcp", lambda row: row.provider),
    }
    async with ledger.transaction() as session:
        await _fill(session, rows)
        await session.execute(text("DELETE FROM budgets"))
        for name, (scope, value, _) in scopes.items():
            budget = BudgetRow(
                id=name, name=name, scope=scope, value=value, amount=Decimal(1), hard_stop="none", created_by="t"
            )
            assert await BudgetRepository(session).add_once(budget)
        spending = await BudgetRepository(session).spending(now)
    month = month_of(now)[0]
    for budget in spending:
        _, value, key = scopes[budget.name]
        counted = [row for row in rows if key(row) == value]
        assert budget.spent == _naive(counted, month, now, now, lambda _: 0).get(0, (Decimal(0),))[0]
        open_now = [row.hourly_price for row in counted if row.ended_at is None and row.started_at < now]
        assert budget.hourly_rate == sum(open_now, Decimal(0))


def machine(name: str, **changes: Any) -> CloudInstance:
    """A machine as its cloud tells of it."""
    given = CloudInstance(
        name=name,
        id="i-1",
        backend="local",
        cloud="aws",
        region="us-east-1",
        zone="us-east-1a",
        instance_type="g5.xlarge",
        market=Market.SPOT,
        state=InstanceState.PENDING,
        hourly_price=Decimal("0.40"),
        owner="test",
        created_at=BEGIN,
    )
    return given.model_copy(update=changes)


async def _read(database: Database, name: str) -> CostIntervalRow:
    async with database.transaction() as session:
        return (await CostRepository(session).of_machines([name]))[name]


async def test_a_machine_is_billed_as_its_cloud_tells_and_told_again_nothing_changes(database: Database) -> None:
    async with database.transaction() as session:
        await _launch(session)
        for zone, price in ((None, "1.10"), ("us-east-1a", "1.00"), ("us-east-1b", "0.90")):
            session.add(
                OfferRow(
                    key=f"aws/us-east-1/{zone or '*'}/g5.xlarge/on_demand",
                    backend="local",
                    cloud="aws",
                    region="us-east-1",
                    zone=zone,
                    instance_type="g5.xlarge",
                    market="on_demand",
                    hourly_price=Decimal(price),
                )
            )
    later = BEGIN + timedelta(hours=1)
    async with database.transaction() as session:
        costs = CostRepository(session)
        await costs.has(machine("sf-1"))
        await costs.has(machine("sf-1", created_at=later, hourly_price=Decimal(9)))
        await costs.has(machine("sf-2", zone="us-east-1c", hourly_price=Decimal(0)))
        await costs.has(machine("sf-nobodys", instance_type="other"))
    row = await _read(database, "sf-1")
    assert (row.started_at, row.hourly_price, row.on_demand_price) == (BEGIN, Decimal("0.40"), Decimal("1.00"))
    attributed = (row.tenant, row.principal, row.model_name, row.deployment, row.launch_id, row.attempt, row.node_id)
    assert attributed == ("acme", "ann", "org/model", "chat", LAUNCH, 1, "node-1")
    # The region's price where the zone has none, and the bought price where the cloud tells none.
    row = await _read(database, "sf-2")
    assert (row.hourly_price, row.on_demand_price) == (Decimal("0.41"), Decimal("1.10"))
    row = await _read(database, "sf-nobodys")
    assert (row.tenant, row.launch_id, row.on_demand_price) == (None, None, None)


async def test_the_clouds_own_end_goes_before_ours_and_ours_is_written_once(database: Database) -> None:
    async with database.transaction() as session:
        costs = CostRepository(session)
        await costs.has(machine("sf-1"))
        ours, theirs = BEGIN + timedelta(minutes=9), BEGIN + timedelta(minutes=5)
        await costs.ended("sf-1", ours, told=False)
        await costs.ended("sf-1", ours + timedelta(minutes=1), told=False)
        assert (await costs.of_machines(["sf-1"]))["sf-1"].ended_at == ours
        session.expire_all()
        await costs.ended("sf-1", theirs, told=True)
        await costs.ended("sf-1", ours, told=False)
        await costs.has(machine("sf-1"))
        assert (await costs.of_machines(["sf-1"]))["sf-1"].ended_at == theirs
        assert await costs.billed("local") == set()
        await costs.reopen("sf-1")
        assert await costs.billed("local") == {"sf-1"}


async def test_machines_from_before_the_ledger_enter_it(postgres_server: TestServer) -> None:
    async with postgres_server.database(migrated=False) as url:
        scripts = ScriptDirectory.from_config(migrate.alembic_config(url))
        before = scripts.get_revision("0005").down_revision
        assert isinstance(before, str)
        await asyncio.to_thread(migrate.upgrade, url, before)
        database = Database(url, pooled=False)
        async with database.transaction() as session:
            await _launch(session)
            await session.flush()
            await session.execute(
                text("UPDATE launch_attempts SET created_at = :at, instance_id = 'i' WHERE number < 3"), {"at": BEGIN}
            )
            end = BEGIN + timedelta(hours=1)
            await session.execute(text("UPDATE launch_attempts SET closed_at = :at WHERE number = 2"), {"at": end})
        await asyncio.to_thread(migrate.upgrade, url, "0005")
        async with database.transaction() as session:
            rows = await CostRepository(session).of_machines(["sf-1", "sf-2", "sf-3"])
        assert {name: (row.started_at, row.ended_at, row.tenant) for name, row in rows.items()} == {
            "sf-1": (BEGIN, None, "acme"),
            "sf-2": (BEGIN, end, "acme"),
        }
