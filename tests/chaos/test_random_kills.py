"""Launches that meet faults of the cloud while processes are killed at random; the ledger is the judge.

The seed is printed; `SKYFLEET_CHAOS_SEED` repeats its choices, though not the scheduling of a busy machine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import time
from typing import Any

import pytest

from skyfleet.client import ApiError, ApiUnreachable
from skyfleet.domain.states import LaunchStage, LaunchStatus
from tests.stack import CHILDREN, Kind, RunningStack, all_of

pytestmark = pytest.mark.chaos

_LAUNCHES = 10
_CANCELS = 3
_KILLING_S = 20.0

#: What the cloud does to the machine of a launch, in its first zone.
_FAULTS: list[dict[str, Any]] = [
    {},
    {"boot_delay_s": 3.0},
    {"delay_before_s": 2.0},
    {"delay_after_s": 2.0},
    {"drop_reply": True},
    {"rate_limit": True},
    {"real": "InsufficientInstanceCapacity"},
    {"boot_fails": "Server.InternalError: Internal error on launch"},
]


async def test_random_kills_lose_nothing_and_double_nothing(battered: RunningStack) -> None:
    seed = int(os.environ.get("SKYFLEET_CHAOS_SEED") or secrets.randbelow(1_000_000))
    print(f"SKYFLEET_CHAOS_SEED={seed}")
    dice = random.Random(seed)
    stack = battered
    before = await _count(stack)
    faults = [dice.choice(_FAULTS) for _ in range(_LAUNCHES)]
    kinds = [stack.kind() for _ in faults]
    for kind, fault in zip(kinds, faults, strict=True):
        if fault:
            match = {"operation": "create", "instance_type": kind.aws, "zone": "us-east-1a"}
            await stack.bench.add_fault(fault, match=match)
    pauses = [dice.uniform(0, 6) for _ in kinds]
    asking = [
        asyncio.create_task(_ask(stack, kind, pause, spot=dice.random() < 0.5))
        for kind, pause in zip(kinds, pauses, strict=True)
    ]
    cancelling = [
        asyncio.create_task(_cancel(stack, task, dice.uniform(0, 4))) for task in dice.sample(asking, _CANCELS)
    ]
    kills = await _kill_for(stack, dice, _KILLING_S)
    print(f"kills: {kills}")
    await stack.healthy(timeout_s=90)
    job_ids = await all_of(asking)
    await all_of(cancelling)
    views = await all_of(stack.ended(job_id, timeout_s=120) for job_id in job_ids)

    assert len(set(job_ids)) == _LAUNCHES
    assert await _count(stack) == before + _LAUNCHES, "a launch that was asked for twice is one launch"
    ready = [view for view in views if view.status is LaunchStatus.COMPLETED]
    assert {view.stage for view in views} <= {LaunchStage.READY, LaunchStage.CANCELLED}, [
        (view.job_id, view.error) for view in views if view.stage is LaunchStage.FAILED
    ]
    assert len(ready) >= _LAUNCHES - _CANCELS
    for view in views:
        story = await stack.told_once(view.job_id)
        pause_s, step = max(
            ((later.at - event.at).total_seconds(), later.message) for event, later in itertools.pairwise(story)
        )
        print(f"{view.job_id} {view.status.value}: waited longest, {pause_s:.0f} s, for: {step}")
        living = [machine["name"] for machine in await stack.living(view.job_id)]
        assert living == ([view.cluster_name] if view in ready else []), view.job_id
    await stack.all_owned()
    await stack.terminate(*(view.job_id for view in ready))
    for view in views:
        await stack.nothing_left(view.job_id)
    assert (await stack.bench.summary())["living"] == []


async def _ask(stack: RunningStack, kind: Kind, pause_s: float, *, spot: bool) -> str:
    """Ask for a node until the answer comes, as a person's script would: with one key."""
    await asyncio.sleep(pause_s)
    key = secrets.token_hex(8)
    while True:
        try:
            return await stack.launch(kind.aws, key=key, use_spot=spot, fallback={"regions": "any", "on_demand": True})
        except (ApiError, ApiUnreachable) as error:
            _only_away(error)
            await asyncio.sleep(0.2)


async def _cancel(stack: RunningStack, asking: asyncio.Task[str], pause_s: float) -> None:
    """Cancel until it is accepted, or refused since the node is up."""
    job_id = await asking
    await asyncio.sleep(pause_s)
    while True:
        try:
            await stack.client.cancel(job_id)
            return
        except (ApiError, ApiUnreachable) as error:
            if isinstance(error, ApiError) and error.status == 409:
                return
            _only_away(error)
            await asyncio.sleep(0.2)


def _only_away(error: ApiError | ApiUnreachable) -> None:
    """Raise what is more than an API that is away for a moment."""
    if isinstance(error, ApiError) and error.status not in (502, 503, 504):
        raise error


async def _kill_for(stack: RunningStack, dice: random.Random, seconds: float) -> list[str]:
    """Kill one process every second or two; which ones were."""
    killed = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(dice.uniform(1, 2))
        name = dice.choice(CHILDREN)
        if name in stack.pids():
            stack.kill(name)
            killed.append(name)
    return killed


async def _count(stack: RunningStack) -> int:
    async with stack.database() as database:
        return int(await database.fetchval("SELECT count(*) FROM launches"))
