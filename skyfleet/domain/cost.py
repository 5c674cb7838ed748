"""What machines cost."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

_SECONDS_PER_HOUR = Decimal(3600)


def interval_cost(hourly_price: Decimal, start: datetime, end: datetime) -> Decimal:
    """US dollars for a machine held from `start` to `end`, exact to six decimals.

    Billed by the second, and a second begun is billed whole (as AWS, GCP and Azure bill instances by the second); half
    a micro-dollar rounds up. An interval that ends before it starts costs nothing.
    """
    seconds = max(0, math.ceil((end - start).total_seconds()))
    return (hourly_price * seconds / _SECONDS_PER_HOUR).quantize(Decimal("0.000001"), ROUND_HALF_UP)
