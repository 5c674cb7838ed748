"""The cost ledger: what is written of each machine, and what it adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import DateTime, Row, bindparam, func, select, text, update
from sqlalchemy.types import ARRAY, Boolean, Integer, Numeric, String
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import CostIntervalRow
from skyfleet.domain.cost import CostKey, CostOutcome
from skyfleet.domain.offers import CloudInstance

# A cloud that tells neither price nor region of a machine (SkyPilot's record of one may have lost its labels) is taken
# at what was bought. The on-demand price is that of the same zone, or of the region where it has one price.
_OPEN = text("""
    INSERT INTO cost_intervals (
        cluster_name, instance_id, backend, provider, region, zone, instance_type, market, hourly_price,
        on_demand_price, tenant, principal, model_name, deployment, launch_id, attempt, node_id, sandbox, started_at
    )
    SELECT
        m.name, :id, :backend, :cloud, m.region, m.zone, :instance_type, :market, m.price,
        (
            SELECT o.hourly_price FROM offers o
            WHERE o.backend = :backend
              AND o.key IN (
                concat_ws('/', :cloud, m.region, coalesce(m.zone, '*'), :instance_type, 'on_demand'),
                concat_ws('/', :cloud, m.region, '*', :instance_type, 'on_demand')
              )
            ORDER BY o.zone NULLS LAST LIMIT 1
        ),
        m.tenant, m.principal, m.model_name, m.deployment, m.launch_id, m.number, m.node_id, :sandbox, :started_at
    FROM (
        SELECT
            given.name, coalesce(nullif(:region, ''), a.region, '') AS region, coalesce(:zone, a.zone) AS zone,
            coalesce(nullif(:price, 0), a.hourly_price, 0) AS price, a.launch_id, a.number, a.node_id,
            l.tenant, l.principal, l.model_name, l.deployment
        FROM (SELECT :name AS name) AS given
        LEFT JOIN launch_attempts a ON a.cluster_name = given.name
        LEFT JOIN launches l ON l.id = a.launch_id
    ) AS m
    ON CONFLICT (cluster_name) DO UPDATE SET started_at = excluded.started_at
    WHERE excluded.started_at < cost_intervals.started_at
""").bindparams(
    *(
        bindparam(name, type_=String)
        for name in ("name", "id", "backend", "cloud", "region", "zone", "instance_type", "market")
    ),
    bindparam("price", type_=Numeric),
    bindparam("sandbox", type_=Boolean),
    bindparam("started_at", type_=DateTime(timezone=True)),
)


def cost_sql(price: str, moment: str) -> str:
    """SQL for what interval `i` had cost at a moment, by the rule of `skyfleet.domain.cost`."""
    # Twenty decimals, so that the quotient is never rounded twice.
    return f"round(CAST({price} AS numeric(34, 20)) * {_seconds(moment)} / 3600, 6)"


def _seconds(moment: str) -> str:
    """SQL for the seconds that interval `i` had been billed for at a moment."""
    return f"greatest(0, ceil(extract(epoch FROM least(coalesce(i.ended_at, :now), {moment}) - i.started_at)))"


_OUTCOME: Final = f"""
    CASE
        WHEN i.launch_id IS NULL THEN '{CostOutcome.STRAY}'
        WHEN a.state = 'succeeded' THEN '{CostOutcome.NODE}'
        WHEN a.state IN ('closing', 'closed') THEN '{CostOutcome.FAILED}'
        ELSE '{CostOutcome.STARTING}'
    END
"""

_KEYS: Final[Mapping[CostKey, str]] = {
    CostKey.PROVIDER: "i.provider",
    CostKey.REGION: "i.provider || '/' || i.region",
    CostKey.INSTANCE_TYPE: "i.instance_type",
    CostKey.MARKET: "i.market",
    CostKey.MODEL: "i.model_name",
    CostKey.DEPLOYMENT: "i.deployment",
    CostKey.EXPERIMENT: "i.experiment",
    CostKey.TENANT: "i.tenant",
    CostKey.USER: "i.principal",
    CostKey.LAUNCH: "i.launch_id",
    CostKey.NODE: "CASE WHEN a.state = 'succeeded' THEN i.node_id END",
    CostKey.OUTCOME: _OUTCOME,
    CostKey.DAY: "to_char(spans.since AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}

#: What intervals can be narrowed to: the column of each filter.
_FILTERS: Final = {
    "provider": "i.provider",
    "region": "i.region",
    "instance_type": "i.instance_type",
    "market": "i.market",
    "model_name": "i.model_name",
    "deployment": "i.deployment",
    "experiment": "i.experiment",
    "tenant": "i.tenant",
    "user": "i.principal",
    "launch_id": "i.launch_id",
    "node_id": "i.node_id",
    "outcome": _OUTCOME,
}


@dataclass(frozen=True, slots=True)
class CostTotal:
    """What the machines of one key cost in a period, US dollars.

    `on_demand_cost` is what the spot machines among them would have cost on demand, as far as that price is known, and
    `spot_cost` what just those did cost. `failed_cost` is for machines that never were a node, `machines` how many cost
    something, `billed_seconds` for how long.
    """

    key: str | None
    cost: Decimal
    spot_cost: Decimal
    on_demand_cost: Decimal
    failed_cost: Decimal
    machines: int
    billed_seconds: int

    @property
    def saving(self) -> Decimal:
        """What spot saved."""
        return self.on_demand_cost - self.spot_cost


def _totals(by: CostKey | None, filters: Sequence[str]) -> str:
    # A day of 24 hours, not of a calendar: the session's time zone may have daylight saving, UTC has none.
    days = """
        SELECT greatest(day, :since) AS since, least(day + interval '24 hours', :until) AS until
        FROM generate_series(date_trunc('day', CAST(:since AS timestamptz), 'UTC'), :until, interval '24 hours') AS day
        WHERE day < :until
    """
    comparable = "i.market = 'spot' AND i.on_demand_price IS NOT NULL"
    cost, on_demand = (
        f"{cost_sql(price, 'spans.until')} - {cost_sql(price, 'spans.since')}"
        for price in ("i.hourly_price", "i.on_demand_price")
    )
    key = "CAST(NULL AS text)" if by is None else _KEYS[by]
    return f"""
        WITH spans AS ({days if by is CostKey.DAY else "SELECT :since AS since, :until AS until"}),
        parts AS (
            SELECT
                {key} AS key,
                i.cluster_name,
                {cost} AS cost,
                {on_demand} AS on_demand,
                {_seconds("spans.until")} - {_seconds("spans.since")} AS seconds,
                {comparable} AS comparable,
                {_OUTCOME} IN ('{CostOutcome.FAILED}', '{CostOutcome.STRAY}') AS failed
            FROM spans
            JOIN cost_intervals i
              ON i.started_at < spans.until AND (i.ended_at IS NULL OR i.ended_at > spans.since)
            LEFT JOIN launch_attempts a ON a.cluster_name = i.cluster_name
            WHERE {" AND ".join(["true", *(f"{_FILTERS[name]} = :{name}" for name in filters)])}
        )
        SELECT
            grouping(key) AS whole,
            key,
            coalesce(sum(cost), 0) AS cost,
            coalesce(sum(cost) FILTER (WHERE comparable), 0) AS spot_cost,
            coalesce(sum(on_demand) FILTER (WHERE comparable), 0) AS on_demand_cost,
            coalesce(sum(cost) FILTER (WHERE failed), 0) AS failed_cost,
            count(DISTINCT cluster_name) FILTER (WHERE seconds > 0) AS machines,
            coalesce(sum(seconds), 0) AS billed_seconds
        FROM parts
        GROUP BY GROUPING SETS ((key), ())
        ORDER BY whole DESC, {"key" if by is CostKey.DAY else "cost DESC, key"}
        LIMIT :rows
    """  # noqa: S608 - of the fragments above alone


_PAGE: Final = f"""
    SELECT i.*, {_OUTCOME} AS outcome, {cost_sql("i.hourly_price", "coalesce(i.ended_at, :now)")} AS cost
    FROM cost_intervals i LEFT JOIN launch_attempts a ON a.cluster_name = i.cluster_name
    WHERE (:since IS NULL OR i.ended_at IS NULL OR i.ended_at > :since)
      AND (:until IS NULL OR i.started_at < :until)
      AND (:open IS NULL OR (i.ended_at IS NULL) = :open)
      AND (:before_at IS NULL OR (i.started_at, i.cluster_name) < (:before_at, :before_name))
"""  # noqa: S608


class CostRepository(Repository):
    """What machines cost."""

    # --- writing ------------------------------------------------------------------------------------------------

    async def has(self, instance: CloudInstance) -> None:
        """The cloud has, or had, this machine: it is billed from its creation. Told again, nothing changes.

        A time of creation that moves later (SkyPilot's, when a launch is taken up again) is not believed. An end that
        the machine tells of is not written here, see `ended`.
        """
        await self.session.execute(
            _OPEN,
            {
                "name": instance.name,
                "id": instance.id,
                "backend": instance.backend,
                "cloud": instance.cloud,
                "region": instance.region,
                "zone": instance.zone,
                "instance_type": instance.instance_type,
                "market": instance.market.value,
                "price": instance.hourly_price,
                "sandbox": instance.sandbox,
                "started_at": instance.created_at,
            },
        )

    async def ended(self, cluster_name: str, at: datetime, *, told: bool) -> None:
        """The machine is confirmed gone. The first time counts, but the cloud's own (`told`) before any of ours."""
        statement = (
            update(CostIntervalRow)
            .where(col(CostIntervalRow.cluster_name) == cluster_name)
            .values(ended_at=func.greatest(at, col(CostIntervalRow.started_at)))
        )
        if not told:
            statement = statement.where(col(CostIntervalRow.ended_at).is_(None))
        await self.session.execute(statement.execution_options(synchronize_session=False))

    async def reopen(self, cluster_name: str) -> None:
        """The machine was confirmed gone, and is there."""
        statement = (
            update(CostIntervalRow).where(col(CostIntervalRow.cluster_name) == cluster_name).values(ended_at=None)
        )
        await self.session.execute(statement.execution_options(synchronize_session=False))

    # --- looking ------------------------------------------------------------------------------------------------

    async def known(self, cluster_name: str) -> bool:
        """Whether the machine is in the ledger."""
        statement = select(col(CostIntervalRow.cluster_name)).where(col(CostIntervalRow.cluster_name) == cluster_name)
        return (await self.session.execute(statement)).first() is not None

    async def billed(self, backend: str) -> set[str]:
        """Names of the backend's machines that are billed still."""
        statement = select(col(CostIntervalRow.cluster_name)).where(
            col(CostIntervalRow.backend) == backend, col(CostIntervalRow.ended_at).is_(None)
        )
        return set((await self.session.execute(statement)).scalars())

    async def of_machines(self, names: Sequence[str]) -> dict[str, CostIntervalRow]:
        """The intervals of these machines, by name; without those that are not in the ledger."""
        statement = select(CostIntervalRow).where(
            col(CostIntervalRow.cluster_name) == func.any(bindparam("names", list(names), type_=ARRAY(String)))
        )
        return {row.cluster_name: row for row in (await self.session.execute(statement)).scalars()}

    async def totals(
        self,
        since: datetime,
        until: datetime,
        now: datetime,
        *,
        by: CostKey | None = None,
        limit: int = 1_000,
        **filters: str | None,
    ) -> tuple[CostTotal, list[CostTotal]]:
        """What machines cost from `since` to before `until`: in all, and by key; at most `limit` keys.

        Open intervals are billed up to `now`. The dearest key comes first, days in order. `filters` are those of
        `page`; by day, there should be no more than some thousand of them.
        """
        given = {name: value for name, value in filters.items() if value is not None}
        statement = text(_totals(by, sorted(given))).bindparams(
            *(bindparam(name, type_=DateTime(timezone=True)) for name in ("since", "until", "now")),
            *(bindparam(name, type_=String) for name in given),
            bindparam("rows", type_=Integer),
        )
        values = {"since": since, "until": until, "now": now, "rows": limit + 1, **given}
        rows = [_total(row) for row in (await self.session.execute(statement, values)).all()]
        return rows[0], [] if by is None else rows[1:]

    async def hourly_rate(self, **filters: str | None) -> Decimal:
        """What the machines that are billed now cost an hour; `filters` as of `page`, without `outcome`."""
        given = {name: value for name, value in filters.items() if value is not None}
        where = " AND ".join(["i.ended_at IS NULL", *(f"{_FILTERS[name]} = :{name}" for name in sorted(given))])
        statement = text(f"SELECT coalesce(sum(i.hourly_price), 0) FROM cost_intervals i WHERE {where}")  # noqa: S608
        rate: Decimal = (await self.session.execute(statement, given)).scalar_one()
        return rate

    async def page(
        self,
        now: datetime,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        billed: bool | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
        **filters: str | None,
    ) -> Sequence[Row[Any]]:
        """Machines that cost something between `since` and `until`, the newest first: the columns of the table, with
        `outcome` and `cost` (US dollars until `now` or their end).

        `billed`: only those that are billed still, or only those that are not. `before` is the (started_at,
        cluster_name) of the last row of the page before.
        """
        given = {name: value for name, value in filters.items() if value is not None}
        narrowed = "".join(f" AND {_FILTERS[name]} = :{name}" for name in sorted(given))
        statement = text(f"{_PAGE}{narrowed} ORDER BY i.started_at DESC, i.cluster_name DESC LIMIT :rows").bindparams(
            *(bindparam(name, type_=DateTime(timezone=True)) for name in ("now", "since", "until", "before_at")),
            *(bindparam(name, type_=String) for name in (*given, "before_name")),
            bindparam("open", type_=Boolean),
            bindparam("rows", type_=Integer),
        )
        values = {
            "now": now,
            "since": since,
            "until": until,
            "open": billed,
            "before_at": before[0] if before else None,
            "before_name": before[1] if before else None,
            "rows": limit,
            **given,
        }
        return (await self.session.execute(statement, values)).all()


def _total(row: Row[Any]) -> CostTotal:
    return CostTotal(
        key=row.key,
        cost=row.cost,
        spot_cost=row.spot_cost,
        on_demand_cost=row.on_demand_cost,
        failed_cost=row.failed_cost,
        machines=row.machines,
        billed_seconds=int(row.billed_seconds),
    )
