"""How well a node is, and what to do about it: pure functions of what was seen, of the time, and of nothing else.

Three signals are joined: the agent's heartbeat, a poll of the engine, and the cloud's list of machines. Each is yes, no
or unknown. The table and the rule for unknown signals are those of design/architecture.md, "A node".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import product
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

#: Who commands what the watch decides; people have other names.
OURSELVES = "skyfleet"


class Signal(StrEnum):
    """What one source says of a node. An error, or no answer from the source itself, is `UNKNOWN`."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Signals(NamedTuple):
    """The three together: the heartbeat came, the engine answers, the cloud has the machine."""

    heartbeat: Signal
    engine: Signal
    cloud: Signal


class Condition(StrEnum):
    """The verdict's name."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    SUSPECT = "suspect"
    UNREACHABLE = "unreachable"
    DEAD = "dead"


class Remedy(StrEnum):
    """What a verdict asks for once it has lasted its grace."""

    NONE = "none"
    ALERT = "alert"  # a person is told; the node serves on
    REPLACE = "replace"  # another is asked for, and this one ended


class Verdict(NamedTuple):
    """One row of the table. `base_score` is the row's part of the health score, from 0 to 1."""

    rank: int  # 0 is the best
    health: Condition
    detail: str
    routable: bool
    remedy: Remedy
    base_score: float


_Y, _N = Signal.YES, Signal.NO

#: Best first. Rows that may be routed to are better than rows that may not.
TABLE: Mapping[Signals, Verdict] = {
    Signals(*row[:3]): Verdict(rank, *row[3:])
    for rank, row in enumerate(
        (
            (_Y, _Y, _Y, Condition.HEALTHY, "", True, Remedy.NONE, 1.0),
            (_Y, _Y, _N, Condition.HEALTHY, "the cloud does not list its machine", True, Remedy.ALERT, 0.9),
            (_N, _Y, _Y, Condition.DEGRADED, "its agent is lost, its engine answers", True, Remedy.ALERT, 0.7),
            (
                *(
                    _N,
                    _Y,
                    _N,
                    Condition.SUSPECT,
                    "only its engine answers: no heartbeat, and the cloud does not list it",
                ),
                *(True, Remedy.REPLACE, 0.5),
            ),
            (_Y, _N, _Y, Condition.DEGRADED, "its engine does not answer", False, Remedy.REPLACE, 0.3),
            (
                *(
                    _Y,
                    _N,
                    _N,
                    Condition.DEGRADED,
                    "its engine does not answer, and the cloud does not list its machine",
                ),
                *(False, Remedy.REPLACE, 0.2),
            ),
            (_N, _N, _Y, Condition.UNREACHABLE, "neither agent nor engine answers", False, Remedy.REPLACE, 0.1),
            (
                *(_N, _N, _N, Condition.DEAD, "neither agent nor engine answers, and the cloud has no such machine"),
                *(False, Remedy.REPLACE, 0.0),
            ),
        )
    )
}


def verdict(signals: Signals) -> Verdict:
    """The table's row. An unknown signal is neither yes nor no: of all rows that it leaves possible, the best."""
    possible = product(*((_Y, _N) if signal is Signal.UNKNOWN else (signal,) for signal in signals))
    return min(TABLE[Signals(*row)] for row in possible)


class HealthPolicy(BaseModel):
    """How patient we are. All in seconds but the last two."""

    model_config = ConfigDict(frozen=True)

    #: A beat later than this many of the node's intervals is missing.
    late_intervals: float = 2.0
    #: A better verdict counts once it has lasted this long; a worse one at once, since the signals are settled already.
    recover_seconds: float = 15.0
    #: How long each verdict that asks for something may last before it gets it. The engine is restarted by its agent
    #: meanwhile; a machine that is cut off may come back; one that its cloud does not have won't.
    grace_seconds: Mapping[Condition, float] = {
        Condition.HEALTHY: 300.0,
        Condition.DEGRADED: 300.0,
        Condition.SUSPECT: 60.0,
        Condition.UNREACHABLE: 120.0,
        Condition.DEAD: 0.0,
    }
    #: Bad turns are held against a node for this long, each with a fifth of its score.
    remember_seconds: float = 1_800.0
    #: The breaker looks at the turns of so long, and opens when more than this share of the fleet, and more than so
    #: many nodes, turned sick in it.
    breaker_window_seconds: float = 300.0
    breaker_share: float = 0.2
    breaker_nodes: int = 2


class NodeHealth(BaseModel):
    """What is remembered of a node from one look to the next.

    `rank` names the row of the table in force since `since`; `sick_since` is when it last left the rows that ask for
    nothing; `better_since` when the signals began to say that it is better than `rank`; `turns` are the times at which
    it turned from a row that may be routed to into one that may not.
    """

    model_config = ConfigDict(frozen=True)

    rank: int
    since: datetime
    sick_since: datetime | None = None
    better_since: datetime | None = None
    turns: tuple[datetime, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The row in force."""
        return _BY_RANK[self.rank]


_BY_RANK = {row.rank: row for row in TABLE.values()}


def observe(before: NodeHealth | None, signals: Signals, now: datetime, policy: HealthPolicy) -> NodeHealth:
    """The node's health after one look. Equal to `before` when nothing is to be remembered of it."""
    seen = verdict(signals)
    if before is None:
        sick = now if seen.remedy is not Remedy.NONE else None
        return NodeHealth(rank=seen.rank, since=now, sick_since=sick, turns=() if seen.routable else (now,))
    turns = tuple(at for at in before.turns if now - at < timedelta(seconds=policy.remember_seconds))
    same = before if turns == before.turns else before.model_copy(update={"turns": turns})
    if seen.rank == before.rank:
        return same if same.better_since is None else same.model_copy(update={"better_since": None})
    if seen.rank < before.rank:
        if before.better_since is None:
            return same.model_copy(update={"better_since": now})
        if now - before.better_since < timedelta(seconds=policy.recover_seconds):
            return same
    elif before.verdict.routable and not seen.routable:
        turns = (*turns, now)
    sick_since = None if seen.remedy is Remedy.NONE else before.sick_since or now
    return NodeHealth(rank=seen.rank, since=now, sick_since=sick_since, turns=turns)


def due(health: NodeHealth, now: datetime, policy: HealthPolicy) -> Remedy:
    """What is to be done now: the remedy of the row in force, once the node has been unwell for the row's grace."""
    row = health.verdict
    if row.remedy is Remedy.NONE or health.sick_since is None:
        return Remedy.NONE
    lasted = now - health.sick_since
    return row.remedy if lasted >= timedelta(seconds=policy.grace_seconds[row.health]) else Remedy.NONE


def score(health: NodeHealth) -> float:
    """From 0 to 1: the row's own figure, less a fifth for each time that the node was lost of late.

    1.0 is a node that all three signals know, and that was not lost in the last half hour (`remember_seconds`).
    """
    return round(health.verdict.base_score * 0.8 ** len(health.turns), 3)


class Breaker(BaseModel):
    """Whether repair is stopped, since when, and for how many of how many nodes."""

    model_config = ConfigDict(frozen=True)

    open_since: datetime | None = None
    sick: int = 0
    serving: int = 0

    @property
    def open(self) -> bool:
        """Whether repair is stopped."""
        return self.open_since is not None


def breaker(
    before: Breaker, fleet: Sequence[tuple[NodeHealth, Signal]], now: datetime, policy: HealthPolicy
) -> Breaker:
    """Whether so many nodes turned sick at once that it is our network, and not their machines.

    `fleet` is every serving node's health, with what its cloud says of it. A node whose cloud says that its machine is
    gone does not count, however many there are: that was not our network, and it is not coming back. It opens when more
    than `breaker_share` of the fleet turned within the window, and closes when no more than that are sick.
    """
    window = timedelta(seconds=policy.breaker_window_seconds)
    sick = [health for health, cloud in fleet if not health.verdict.routable and cloud is not Signal.NO]
    limit = max(policy.breaker_share * len(fleet), float(policy.breaker_nodes))
    turned = sum(1 for health in sick if health.turns and now - health.turns[-1] <= window)
    since = before.open_since
    if since is None and turned > limit:
        since = now
    elif since is not None and len(sick) <= limit:
        since = None
    return Breaker(open_since=since, sick=len(sick), serving=len(fleet))


#: A node that was lost sooner than this may have been lost because of what it runs.
SHORT_LIFE = timedelta(minutes=10)
#: So many short lives in a row, and no other is asked for.
MAX_SHORT_LIVES = 3


def may_replace(lives: Sequence[timedelta]) -> bool:
    """Whether a lost node is replaced, given how long it and the nodes that it replaced lived, the latest first."""
    return len(lives) < MAX_SHORT_LIVES or any(life >= SHORT_LIFE for life in lives[:MAX_SHORT_LIVES])
