"""How long a launch spent in each of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from skyfleet.domain.states import LaunchStage


def seconds_by_stage(timeline: Sequence[tuple[LaunchStage, datetime]]) -> dict[LaunchStage, float]:
    """Seconds in each stage of a launch that has ended; its last stage, which does not pass, is left out.

    `timeline` is the stage after each event and when that was, in the order in which they were written. A stage that
    was entered more than once (one attempt after another) counts in sum. Times of agents come from the clocks of their
    machines: one that lies before the event before it counts as that one, so that the sum is the time that passed.
    """
    spent: dict[LaunchStage, float] = {}
    current: tuple[LaunchStage, datetime] | None = None
    for stage, at in timeline:
        if current is None:
            current = stage, at
            continue
        before, since = current
        until = max(at, since)
        spent[before] = spent.get(before, 0.0) + (until - since).total_seconds()
        current = stage, until
    if current is not None and current[0].terminal:
        spent.pop(current[0], None)
    return spent
