"""What machines cost.

The one rule for money, here and in the queries of `skyfleet.db.repositories.costs`: what a machine had cost at a
moment is its price times the seconds begun since its start, rounded half up to a millionth of a dollar; what it cost in
a period is what it had cost at the period's end, less what it had at its start. So parts always add up to the whole.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

_SECONDS_PER_HOUR = Decimal(3600)
_MICRO_DOLLAR = Decimal("0.000001")


class CostKey(StrEnum):
    """What costs can be told apart by. `user` is who asked for the launch, `day` a UTC day."""

    PROVIDER = "provider"
    REGION = "region"
    INSTANCE_TYPE = "instance_type"
    MARKET = "market"
    MODEL = "model"
    DEPLOYMENT = "deployment"
    EXPERIMENT = "experiment"
    TENANT = "tenant"
    USER = "user"
    LAUNCH = "launch"
    NODE = "node"
    OUTCOME = "outcome"
    DAY = "day"


class CostOutcome(StrEnum):
    """What came of a machine that was paid for."""

    STARTING = "starting"  # its launch is still at it
    NODE = "node"
    FAILED = "failed"  # its attempt was given up: it never was a node
    STRAY = "stray"  # no launch claimed it


class BudgetScope(StrEnum):
    """Whose money a budget counts."""

    ALL = "all"
    TENANT = "tenant"
    USER = "user"  # who asked for the launch: a key's name
    DEPLOYMENT = "deployment"
    EXPERIMENT = "experiment"
    PROVIDER = "provider"


class HardStop(StrEnum):
    """What happens once all of a budget is spent, apart from the alert."""

    NONE = "none"
    REFUSE = "refuse"  # no new launch
    DRAIN = "drain"  # and the nodes in its scope are ended


def interval_cost(hourly_price: Decimal, start: datetime, end: datetime) -> Decimal:
    """US dollars for a machine held from `start` to `end`, exact to six decimals.

    Billed by the second, and a second begun is billed whole (as AWS, GCP and Azure bill instances by the second); half
    a micro-dollar rounds up. An interval that ends before it starts costs nothing.
    """
    seconds = max(0, math.ceil((end - start).total_seconds()))
    return (hourly_price * seconds / _SECONDS_PER_HOUR).quantize(_MICRO_DOLLAR, ROUND_HALF_UP)


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """The UTC calendar month that the moment is in: its first moment, and that of the next month."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + timedelta(days=32)).replace(day=1)


def forecast(spent: Decimal, hourly_rate: Decimal, now: datetime, end: datetime) -> Decimal:
    """US dollars at `end`: what is spent by now, plus what is left of the time at the rate of now."""
    return spent + interval_cost(hourly_rate, now, end)
