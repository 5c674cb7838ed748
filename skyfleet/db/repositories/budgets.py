"""Budgets, what is spent of them, and the alerts that were given."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import DateTime, bindparam, delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import Boolean, String
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.repositories.costs import cost_sql
from skyfleet.db.tables import BudgetAlertRow, BudgetRow, CostIntervalRow, NodeRow
from skyfleet.domain.budgets import Budget, DrainCandidate
from skyfleet.domain.cost import BudgetScope, month_of
from skyfleet.domain.states import NodeStatus

#: The column of the ledger that a budget's value is compared with.
_COLUMNS: Final = {
    BudgetScope.TENANT: "tenant",
    BudgetScope.USER: "principal",
    BudgetScope.DEPLOYMENT: "deployment",
    BudgetScope.EXPERIMENT: "experiment",
    BudgetScope.PROVIDER: "provider",
}

# The ledger is added up once, whose money it is, and not once a budget. Where there is no budget it is not read.
_SPENT: Final = f"""
    WITH spent AS (
        SELECT i.tenant, i.principal, i.deployment, i.experiment, i.provider,
               sum({cost_sql("i.hourly_price", ":now")} - {cost_sql("i.hourly_price", ":since")}) AS cost,
               sum(i.hourly_price) FILTER (WHERE i.ended_at IS NULL) AS rate
        FROM cost_intervals i
        WHERE i.started_at < :now AND (i.ended_at IS NULL OR i.ended_at > :since)
        GROUP BY i.tenant, i.principal, i.deployment, i.experiment, i.provider
    )
    SELECT b.*, coalesce(sum(s.cost), 0) AS spent, coalesce(sum(s.rate), 0) AS hourly_rate
    FROM budgets b
    LEFT JOIN spent s ON CASE b.scope
        WHEN '{BudgetScope.ALL}' THEN true
        {" ".join(f"WHEN '{scope}' THEN s.{column} = b.value" for scope, column in _COLUMNS.items())}
    END
    WHERE (NOT :stops OR b.hard_stop <> 'none')
      AND (:name IS NULL OR b.name = :name)
      AND (:tenant IS NULL OR (b.scope = 'tenant' AND b.value = :tenant) OR (b.scope = 'user' AND b.value = :user))
    GROUP BY b.id
    ORDER BY b.name
"""  # noqa: S608 - of the fragments above alone


class BudgetRepository(Repository):
    """Budgets."""

    async def get(self, name: str, *, lock: bool = False) -> BudgetRow | None:
        """The budget of that name."""
        statement = select(BudgetRow).where(col(BudgetRow.name) == name)
        if lock:
            statement = statement.with_for_update()
        return (await self.session.execute(statement)).scalar_one_or_none()

    async def add_once(self, budget: BudgetRow) -> bool:
        """Write a new budget; False, and nothing is written, where there is one of its name."""
        statement = insert(BudgetRow).values(**budget.model_dump()).on_conflict_do_nothing(index_elements=["name"])
        return (await self.session.execute(statement.returning(col(BudgetRow.id)))).first() is not None

    async def delete(self, budget_id: str) -> None:
        """Remove the budget and its alerts."""
        await self.session.execute(delete(BudgetRow).where(col(BudgetRow.id) == budget_id))

    async def spending(
        self,
        now: datetime,
        *,
        stops: bool = False,
        name: str | None = None,
        tenant: str | None = None,
        user: str | None = None,
    ) -> list[Budget]:
        """The budgets by name, with what is spent of each in the UTC calendar month of `now`.

        With `stops` only those with a hard stop, with `name` that one, with `tenant` only its own and those of `user`.
        """
        statement = text(_SPENT).bindparams(
            *(bindparam(key, type_=DateTime(timezone=True)) for key in ("now", "since")),
            *(bindparam(key, type_=String) for key in ("name", "tenant", "user")),
            bindparam("stops", type_=Boolean),
        )
        values = {
            "now": now,
            "since": month_of(now)[0],
            "stops": stops,
            "name": name,
            "tenant": tenant,
            "user": user,
        }
        rows = (await self.session.execute(statement, values)).mappings().all()
        return [Budget.model_validate({field: row[field] for field in Budget.model_fields}) for row in rows]

    async def alert(self, budget: Budget, fraction: Decimal, now: datetime) -> bool:
        """Write that a fraction is spent; whether it was not written before in this month."""
        values: dict[str, Any] = {
            "budget_id": budget.id,
            "period_start": month_of(now)[0],
            "fraction": fraction,
            "spent": budget.spent,
            "amount": budget.amount,
            "at": now,
        }
        statement = insert(BudgetAlertRow).values(**values).on_conflict_do_nothing()
        return (await self.session.execute(statement.returning(col(BudgetAlertRow.at)))).first() is not None

    async def alerts(self, now: datetime, budget_ids: Sequence[str]) -> Sequence[BudgetAlertRow]:
        """The alerts of this month, in the order of their fractions."""
        statement = (
            select(BudgetAlertRow)
            .where(col(BudgetAlertRow.period_start) == month_of(now)[0], col(BudgetAlertRow.budget_id).in_(budget_ids))
            .order_by(col(BudgetAlertRow.fraction))
        )
        return (await self.session.execute(statement)).scalars().all()

    async def forget_alerts(self, budget: Budget, now: datetime) -> None:
        """The amount was changed: what is not spent of the new one is told again when it is."""
        statement = delete(BudgetAlertRow).where(
            col(BudgetAlertRow.budget_id) == budget.id,
            col(BudgetAlertRow.period_start) == month_of(now)[0],
            col(BudgetAlertRow.fraction) * budget.amount > budget.spent,
        )
        await self.session.execute(statement)

    async def drainable(self, budget: Budget) -> list[DrainCandidate]:
        """The nodes in the budget's scope whose end nobody asked for."""
        statement = (
            select(col(NodeRow.id), col(NodeRow.market), col(NodeRow.registered_at))
            .join(CostIntervalRow, col(CostIntervalRow.cluster_name) == col(NodeRow.cluster_name))
            .where(
                col(NodeRow.terminate_requested_at).is_(None),
                col(NodeRow.status).not_in([NodeStatus.TERMINATING.value, NodeStatus.TERMINATED.value]),
            )
        )
        if budget.scope is not BudgetScope.ALL:
            statement = statement.where(getattr(CostIntervalRow, _COLUMNS[budget.scope]) == budget.value)
        return [
            DrainCandidate(node_id=node_id, market=market, registered_at=at)
            for node_id, market, at in (await self.session.execute(statement)).all()
        ]
