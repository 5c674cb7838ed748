"""Budgets as pure functions: whom they stop, what they tell, which nodes go first; and the months and forecasts."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.domain.budgets import Budget, DrainCandidate, Spender, drain_next, refusing
from skyfleet.domain.cost import BudgetScope, HardStop, forecast, interval_cost, month_of
from skyfleet.domain.launches import Fallback, LaunchSpec
from skyfleet.domain.states import Market

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ANN = Spender(tenant="acme", user="ann", deployment="chat")


def budget(spent: str, **changes: Any) -> Budget:
    """$100 that all launches share, with a hard stop."""
    values: dict[str, Any] = {"id": "b", "name": "b", "scope": BudgetScope.ALL, "hard_stop": HardStop.REFUSE}
    values |= {"created_by": "t", "created_at": NOW, "updated_at": NOW}
    return Budget(**values | changes, amount=Decimal(100), spent=Decimal(spent))


@pytest.mark.parametrize(
    ("spent", "crossed"), [("49.999999", []), ("50", ["0.5"]), ("99", ["0.5"]), ("120", ["0.5", "1", "1.2"])]
)
def test_a_fraction_is_crossed_when_it_is_spent(spent: str, crossed: list[str]) -> None:
    fractions = [Decimal(one) for one in ("0.5", "1", "1.2")]
    assert budget(spent, alert_fractions=fractions).crossed == [Decimal(one) for one in crossed]


@pytest.mark.parametrize(
    ("spent", "hard_stop", "stops"),
    [("99.999999", "refuse", False), ("100", "refuse", True), ("100", "drain", True), ("500", "none", False)],
)
def test_a_budget_stops_launches_once_all_is_spent(spent: str, hard_stop: str, stops: bool) -> None:
    stopped = refusing([budget(spent, hard_stop=hard_stop)], ANN, LaunchSpec(model_name="m"), {"aws"})
    assert (stopped is not None) == stops


@pytest.mark.parametrize(
    ("provider", "clouds", "sold", "refused"),
    [
        ("aws", [], {"aws", "gcp"}, True),
        ("gcp", [], {"aws", "gcp"}, False),
        ("aws", ["gcp"], {"aws", "gcp"}, False),
        ("aws", "any", {"aws", "gcp"}, False),
        ("aws", "any", {"aws"}, True),
        (None, [], {"aws", "gcp"}, False),
        (None, [], {"aws"}, True),
        ("aws", [], set(), False),
    ],
)
def test_a_providers_budget_refuses_what_can_go_nowhere_else(
    provider: str | None, clouds: Any, sold: set[str], refused: bool
) -> None:
    spent = budget("100", scope=BudgetScope.PROVIDER, value="aws")
    spec = LaunchSpec(model_name="m", provider=provider, fallback=Fallback(clouds=clouds))
    assert (refusing([spent], ANN, spec, sold) is spent) == refused


@given(
    st.lists(
        st.builds(
            DrainCandidate,
            node_id=st.uuids().map(str),
            market=st.sampled_from(Market),
            registered_at=st.datetimes().map(lambda at: at.replace(tzinfo=UTC)),
        ),
        max_size=30,
        unique_by=lambda node: node.node_id,
    )
)
def test_drains_end_with_nothing_left_spot_first_and_the_newest_first(nodes: list[DrainCandidate]) -> None:
    left = {node.node_id: node for node in nodes}
    order: list[DrainCandidate] = []
    rounds = 0
    while chosen := drain_next(list(left.values())):
        assert len(chosen) == -(-len(left) // 4)
        order += [left.pop(node_id) for node_id in chosen]
        rounds += 1
    assert not left
    assert rounds <= 12
    for before, after in itertools.pairwise(order):
        if before.market is after.market:
            assert before.registered_at >= after.registered_at
        else:
            assert (before.market, after.market) == (Market.SPOT, Market.ON_DEMAND)


@given(st.datetimes(datetime(1971, 1, 1), datetime(8999, 1, 1)), st.integers(-14, 14))  # noqa: DTZ001
def test_months_are_those_of_utc_and_follow_each_other(naive: datetime, offset_hours: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(hours=offset_hours)))
    start, end = month_of(moment)
    assert start <= moment < end
    assert (start.day, start.hour, start.tzinfo) == (1, 0, UTC)
    assert month_of(end)[0] == end
    assert month_of(end - timedelta(microseconds=1)) == (start, end)


def test_a_forecast_is_what_is_spent_and_the_rate_times_what_is_left() -> None:
    end = month_of(NOW)[1]
    assert (end - NOW) == timedelta(hours=132)
    assert forecast(Decimal("10.50"), Decimal("0.25"), NOW, end) == Decimal("10.50") + 33


def test_seconds_begun_count_whole_and_half_a_micro_dollar_rounds_up() -> None:
    def cost(price: str, seconds: float) -> Decimal:
        return interval_cost(Decimal(price), NOW, NOW + timedelta(seconds=seconds))

    assert cost("3600", 0.000001) == 1
    assert cost("0.0018", 1) == Decimal("0.000001")  # half a millionth
    assert cost("0.0017", 1) == 0
    assert cost("1", -5) == 0
