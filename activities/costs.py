"""What budgets do: alerts, and the drain of those that are spent."""

from __future__ import annotations

import logging

from temporalio import activity

from activities.signatures import CostSteps
from skyfleet.db.repositories import AuditRepository, BudgetRepository, NodeRepository, NotificationRepository
from skyfleet.db.session import Database, Session
from skyfleet.db.tables import utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.budgets import Budget, drain_next
from skyfleet.domain.cost import BudgetScope, HardStop
from skyfleet.domain.notifications import budget_alert

_log = logging.getLogger(__name__)


class CostActivities(CostSteps):
    """Steps that look after what the fleet costs; each is one transaction, and harmless when it runs twice."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn
    async def check_budgets(self, request: m.SweepInput) -> m.CheckBudgetsResult:
        """Tell of each fraction that was crossed, once a month; ask for the end of nodes where a spent budget drains.

        The end is asked for as a person would: the sweep delivers it.
        """
        result = m.CheckBudgetsResult()
        now = utcnow()
        async with self._database.transaction() as session:
            budgets = BudgetRepository(session)
            for budget in await budgets.spending(now):
                await self._tell(session, budget, request.dry_run, result)
                if budget.exhausted and budget.hard_stop is HardStop.DRAIN:
                    await self._drain(session, budget, request.dry_run, result)
        return result

    async def _tell(self, session: Session, budget: Budget, dry_run: bool, result: m.CheckBudgetsResult) -> None:
        budgets, now = BudgetRepository(session), utcnow()
        if dry_run:
            told = {row.fraction for row in await budgets.alerts(now, [budget.id])}
            result.alerts += [f"{budget.name}:{one:f}" for one in budget.crossed if one not in told]
            return
        for fraction in budget.crossed:
            if not await budgets.alert(budget, fraction, now):
                continue
            _log.warning("%s: %d %% is crossed", budget.told(), fraction * 100)
            result.alerts.append(f"{budget.name}:{fraction:f}")
            AuditRepository(session).add(
                principal="skyfleet",
                action="budget.alert",
                subject=budget.name,
                outcome="done",
                detail={
                    "fraction": f"{fraction:f}",
                    "spent": f"{budget.spent:f}",
                    "amount": f"{budget.amount:f}",
                    "scope": budget.scope.value,
                    "value": budget.value,
                    "hard_stop": budget.hard_stop.value,
                },
            )
            await NotificationRepository(session).add(
                budget_alert(
                    budget.id,
                    name=budget.name,
                    tenant=budget.value if budget.scope is BudgetScope.TENANT else None,
                    period=f"{now:%Y-%m}",
                    spent=budget.spent,
                    limit=budget.amount,
                    fraction=fraction,
                )
            )

    async def _drain(self, session: Session, budget: Budget, dry_run: bool, result: m.CheckBudgetsResult) -> None:
        asked_by = f"budget {budget.name}"
        for node_id in drain_next(await BudgetRepository(session).drainable(budget)):
            if not dry_run:
                node = await NodeRepository(session).get(node_id, lock=True)
                if node is None or node.terminate_requested_at is not None:
                    continue
                node.terminate_requested_at = utcnow()
                node.terminate_requested_by = asked_by
                AuditRepository(session).add(
                    principal=asked_by,
                    action="node.terminate",
                    subject=node_id,
                    outcome="accepted",
                    detail={"cluster_name": node.cluster_name, "reason": budget.told()},
                )
                _log.warning("%s: the end of %s is asked for", budget.told(), node_id)
            result.drained_nodes.append(node_id)
