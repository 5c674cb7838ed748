"""Budgets: whose money they count, whom they stop, and which nodes go first. See docs/adr/0017."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from skyfleet.domain.cost import BudgetScope, HardStop
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.states import Market

#: One sweep asks for the end of this part of a scope's nodes.
_DRAINED_AT_ONCE = 4


class Budget(BaseModel):
    """A budget and what is spent of it in this UTC calendar month. Amounts in US dollars, the rate an hour."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    scope: BudgetScope
    value: str | None = None
    amount: Decimal
    alert_fractions: list[Decimal] = []
    hard_stop: HardStop = HardStop.NONE
    created_by: str
    created_at: datetime
    updated_at: datetime
    spent: Decimal = Decimal(0)
    hourly_rate: Decimal = Decimal(0)

    @property
    def exhausted(self) -> bool:
        """Whether all of it is spent."""
        return self.spent >= self.amount

    @property
    def stops(self) -> bool:
        """Whether it refuses launches now."""
        return self.exhausted and self.hard_stop is not HardStop.NONE

    @property
    def crossed(self) -> list[Decimal]:
        """The alert fractions that are spent."""
        return [fraction for fraction in self.alert_fractions if self.spent >= fraction * self.amount]

    def told(self) -> str:
        """What is spent, in words."""
        whose = "all launches" if self.value is None else f"the {self.scope.value} {self.value}"
        return f"budget {self.name} of {whose}: ${self.spent:.2f} of ${self.amount:.2f} spent this month"


class Spender(BaseModel):
    """Whose money a launch would spend."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    user: str
    deployment: str | None = None
    experiment: str | None = None

    def in_scope(self, budget: Budget) -> bool:
        """Whether the budget counts all that the launch costs, wherever it goes."""
        match budget.scope:
            case BudgetScope.ALL:
                return True
            case BudgetScope.PROVIDER:
                return False
            case scope:
                return budget.value is not None and getattr(self, scope.value) == budget.value


def closed_providers(budgets: Iterable[Budget]) -> dict[str, Budget]:
    """The providers where nothing may be launched any more, and by which budget."""
    return {one.value: one for one in budgets if one.scope is BudgetScope.PROVIDER and one.stops and one.value}


def refusing(budgets: Collection[Budget], spender: Spender, spec: LaunchSpec, sold: Collection[str]) -> Budget | None:
    """The budget that refuses a launch; None if it may go on. `sold`: the providers that there are.

    A provider's budget refuses a launch that may go nowhere else; others go on without that provider.
    """
    for budget in budgets:
        if budget.stops and spender.in_scope(budget):
            return budget
    closed = closed_providers(budgets)
    reachable = set(sold)
    if spec.provider is not None and spec.fallback.clouds != "any":
        reachable &= {spec.provider, *spec.fallback.clouds}
    if reachable and reachable <= closed.keys():
        return closed[min(reachable)]
    return None


def refusal(budget: Budget) -> ClassifiedError:
    """Why a launch may not go on, for the people who asked for it."""
    message = f"No launch: {budget.told()}."
    return ClassifiedError(
        kind=ErrorKind.QUOTA,
        scope=ErrorScope.ACCOUNT,
        retryable=False,
        cloud=budget.value or "" if budget.scope is BudgetScope.PROVIDER else "",
        message=message,
        next_steps=["ask an admin to raise the budget", "wait for the next month"],
        raw=message,
    )


class DrainCandidate(BaseModel):
    """A node in the scope of a budget that drains."""

    model_config = ConfigDict(frozen=True)

    node_id: str
    market: Market
    registered_at: datetime


def drain_next(nodes: Sequence[DrainCandidate]) -> list[str]:
    """The nodes whose end is asked for now: a quarter of those that are left, at least one, in order of priority.

    Spot nodes go before on-demand ones, since what runs on them must bear losing them anyway; of each, the newest
    first.
    """
    order = sorted(nodes, key=lambda node: node.registered_at, reverse=True)
    order.sort(key=lambda node: node.market is not Market.SPOT)
    return [node.node_id for node in order[: math.ceil(len(order) / _DRAINED_AT_ONCE)]]
