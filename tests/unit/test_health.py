"""The truth table, hysteresis, graces, the score and the breaker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.domain.health import (
    MAX_SHORT_LIVES,
    SHORT_LIFE,
    TABLE,
    Breaker,
    Condition,
    HealthPolicy,
    NodeHealth,
    Remedy,
    Signal,
    Signals,
    breaker,
    due,
    may_replace,
    observe,
    score,
    verdict,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = HealthPolicy()
Y, N, U = Signal.YES, Signal.NO, Signal.UNKNOWN
ALL_WELL, ENGINE_DOWN, CUT_OFF, GONE = Signals(Y, Y, Y), Signals(Y, N, Y), Signals(N, N, Y), Signals(N, N, N)

#: heartbeat, engine, cloud → health, routed, remedy. Written out by hand from design/architecture.md; for an unknown,
#: the better of the two rows.
EXPECTED = {
    "yyy": ("healthy", True, "none"),
    "yyn": ("healthy", True, "alert"),
    "yyu": ("healthy", True, "none"),
    "yny": ("degraded", False, "replace"),
    "ynn": ("degraded", False, "replace"),
    "ynu": ("degraded", False, "replace"),
    "yuy": ("healthy", True, "none"),
    "yun": ("healthy", True, "alert"),
    "yuu": ("healthy", True, "none"),
    "nyy": ("degraded", True, "alert"),
    "nyn": ("suspect", True, "replace"),
    "nyu": ("degraded", True, "alert"),
    "nny": ("unreachable", False, "replace"),
    "nnn": ("dead", False, "replace"),
    "nnu": ("unreachable", False, "replace"),
    "nuy": ("degraded", True, "alert"),
    "nun": ("suspect", True, "replace"),
    "nuu": ("degraded", True, "alert"),
    "uyy": ("healthy", True, "none"),
    "uyn": ("healthy", True, "alert"),
    "uyu": ("healthy", True, "none"),
    "uny": ("degraded", False, "replace"),
    "unn": ("degraded", False, "replace"),
    "unu": ("degraded", False, "replace"),
    "uuy": ("healthy", True, "none"),
    "uun": ("healthy", True, "alert"),
    "uuu": ("healthy", True, "none"),
}


@pytest.mark.parametrize("row", ["".join(row) for row in product("ynu", repeat=3)])
def test_the_table(row: str) -> None:
    found = verdict(Signals(*({"y": Y, "n": N, "u": U}[letter] for letter in row)))
    assert (found.health.value, found.routable, found.remedy.value) == EXPECTED[row]


@given(st.tuples(*[st.sampled_from(Signal)] * 3), st.integers(0, 2))
def test_not_knowing_is_never_worse_than_no(row: tuple[Signal, Signal, Signal], at: int) -> None:
    unknown = [*row]
    unknown[at] = U
    no = [*row]
    no[at] = N
    assert verdict(Signals(*unknown)).rank <= verdict(Signals(*no)).rank


def test_what_gets_no_requests_scores_less_than_what_does() -> None:
    rows = list(TABLE.values())
    assert sorted((row.base_score for row in rows), reverse=True) == [row.base_score for row in rows]
    assert min(row.base_score for row in rows if row.routable) > max(row.base_score for row in rows if not row.routable)


def seen(*looks: tuple[float, Signals], before: NodeHealth | None = None) -> NodeHealth:
    """The health after looks at these seconds."""
    health = before
    for second, signals in looks:
        health = observe(health, signals, NOW + timedelta(seconds=second), POLICY)
    assert health is not None
    return health


def at(second: float) -> datetime:
    """So many seconds in."""
    return NOW + timedelta(seconds=second)


def test_worse_counts_at_once_and_better_when_it_lasts() -> None:
    sick = seen((0, ALL_WELL), (10, ENGINE_DOWN))
    assert (sick.verdict.health, sick.since) == (Condition.DEGRADED, at(10))
    early = seen((11, ALL_WELL), (20, ALL_WELL), before=sick)
    assert early.verdict.health is Condition.DEGRADED
    well = seen((26, ALL_WELL), before=early)
    assert (well.verdict.health, well.since, well.sick_since) == (Condition.HEALTHY, at(26), None)


def test_a_node_that_flaps_stays_out_of_rotation() -> None:
    """Well for a moment, again and again, is not well; and its grace runs on."""
    looks = [(float(second), ENGINE_DOWN if second % 10 == 0 else ALL_WELL) for second in range(10, 320)]
    health = seen((0, ALL_WELL), *looks)
    assert not health.verdict.routable
    assert due(health, at(320), POLICY) is Remedy.REPLACE


@pytest.mark.parametrize(
    ("signals", "after", "remedy"),
    [
        (ENGINE_DOWN, 299, Remedy.NONE),
        (ENGINE_DOWN, 300, Remedy.REPLACE),
        (CUT_OFF, 119, Remedy.NONE),
        (CUT_OFF, 120, Remedy.REPLACE),
        (GONE, 0, Remedy.REPLACE),
        (Signals(N, Y, N), 59, Remedy.NONE),
        (Signals(N, Y, N), 60, Remedy.REPLACE),
        (Signals(N, Y, Y), 299, Remedy.NONE),
        (Signals(N, Y, Y), 300, Remedy.ALERT),
        (Signals(Y, Y, N), 300, Remedy.ALERT),
        (ALL_WELL, 100_000, Remedy.NONE),
    ],
)
def test_each_verdict_has_its_grace(signals: Signals, after: float, remedy: Remedy) -> None:
    health = seen((-5, ALL_WELL), (0, signals))
    assert due(health, at(after), POLICY) is remedy


def test_the_grace_counts_from_when_it_fell_ill_not_from_when_it_got_worse() -> None:
    health = seen((0, ALL_WELL), (10, Signals(N, Y, Y)), (100, CUT_OFF))
    assert due(health, at(129), POLICY) is Remedy.NONE
    assert due(health, at(130), POLICY) is Remedy.REPLACE


def test_the_score_falls_at_once_and_forgets_in_half_an_hour() -> None:
    well = seen((0, ALL_WELL))
    assert score(well) == 1.0
    twice = seen(
        (10, CUT_OFF), (20, ALL_WELL), (40, ALL_WELL), (50, CUT_OFF), (60, ALL_WELL), (80, ALL_WELL), before=well
    )
    assert score(twice) == pytest.approx(0.64)
    assert score(seen((10, CUT_OFF), before=well)) == pytest.approx(0.08)
    assert score(seen((10 + 1_800, ALL_WELL), before=twice)) == pytest.approx(0.8)
    assert score(seen((50 + 1_800, ALL_WELL), before=twice)) == 1.0


def test_a_look_that_changes_nothing_changes_nothing() -> None:
    """What is equal needs no write."""
    health = seen((0, ALL_WELL))
    assert seen((1, ALL_WELL), (500, Signals(U, U, Y)), before=health) is health


@given(st.lists(st.tuples(*[st.sampled_from(Signal)] * 3), max_size=60))
def test_the_verdict_in_force_was_seen(rows: list[tuple[Signal, Signal, Signal]]) -> None:
    """No verdict is made up, and no better one than was seen for the whole of the time that it must last."""
    health = observe(None, ALL_WELL, NOW, POLICY)
    ranks = [0]
    for second, row in enumerate(rows, start=1):
        signals = Signals(*row)
        ranks.append(verdict(signals).rank)
        health = observe(health, signals, at(second * 5), POLICY)
        assert health.rank >= verdict(signals).rank
        assert health.rank in ranks
        assert (health.sick_since is None) == (health.verdict.remedy is Remedy.NONE)


def fleet(well: int, cut_off: int, gone: int = 0, *, when: float = 0) -> list[tuple[NodeHealth, Signal]]:
    """Nodes, of which some turned at that second."""
    sick = seen((-5, ALL_WELL), (when, CUT_OFF))
    dead = seen((-5, ALL_WELL), (when, GONE))
    return [(seen((-5, ALL_WELL)), Y)] * well + [(sick, Y)] * cut_off + [(dead, N)] * gone


@pytest.mark.parametrize(
    ("nodes", "opens"),
    [
        (fleet(8, 2), False),
        (fleet(7, 3), True),
        (fleet(0, 2), False),  # two nodes: no share means anything
        (fleet(0, 3), True),
        (fleet(50, 50), True),
        (fleet(5, 0, 50), False),  # their clouds say that they are gone
        (fleet(80, 20), False),
        (fleet(79, 21), True),
    ],
)
def test_the_breaker_opens_above_a_fifth(nodes: list[tuple[NodeHealth, Signal]], opens: bool) -> None:
    assert breaker(Breaker(), nodes, at(10), POLICY).open is opens


def test_slow_decay_is_no_burst() -> None:
    """The same share over a longer time is machines, not our network."""
    assert not breaker(Breaker(), fleet(7, 3, when=0), at(301), POLICY).open


def test_the_breaker_closes_when_few_are_sick() -> None:
    opened = breaker(Breaker(), fleet(5, 5), at(10), POLICY)
    assert opened.open_since == at(10)
    still = breaker(opened, fleet(5, 5), at(5_000), POLICY)
    assert (still.open_since, still.sick, still.serving) == (at(10), 5, 10)
    assert not breaker(still, fleet(8, 2), at(5_001), POLICY).open


def test_short_lives_in_a_row_are_not_replaced_for_ever() -> None:
    short, long = timedelta(minutes=1), SHORT_LIFE
    assert may_replace([short] * (MAX_SHORT_LIVES - 1))
    assert not may_replace([short] * MAX_SHORT_LIVES)
    assert may_replace([short, short, long])
    assert may_replace([long, short, short, short])
    assert not may_replace([short] * MAX_SHORT_LIVES + [long])
