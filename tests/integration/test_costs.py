"""Our bill and the cloud's own, after a random while of launches, faults, kills, preemptions and ends.

The seed is printed; `SKYFLEET_COSTS_SEED` repeats its choices, though not the scheduling of a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from skyfleet.client import ApiError, ApiUnreachable
from skyfleet.clouds.local.client import LocalCloud
from skyfleet.domain.cost import CostKey
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.states import LaunchStatus
from skyfleet.domain.views import CostInterval
from skyfleet.settings import Settings
from tests.localcloud.harness import request_for
from tests.stack import Kind, RunningStack, all_of, running_stack, world
from tests.waiting import eventually

_LAUNCHES = 16
_STRAYS = 2
_LASTS_S = 30.0
#: What is killed: whatever writes the ledger, or is written about.
_KILLED = ("worker", "local-cloud", "postgres", "worker")

#: What the cloud does to the first machines of a launch.
_FAULTS: list[dict[str, Any]] = [
    {},
    {},
    {"boot_delay_s": 2.0},
    {"delay_after_s": 2.0},
    {"drop_reply": True},
    {"boot_fails": "Server.InternalError: Internal error on launch"},
    {"real": "InsufficientInstanceCapacity"},
    {"never_boots": True},
    {"agent_dead": True},
]


@pytest.fixture(scope="module")
async def billed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """A stack of its own, at prices that do not divide well, which compares all the time."""
    config = world().replace('mode = "process"', 'mode = "virtual"')
    for plain, awkward in (("0.40", "0.4027"), ("1.00", "1.0061"), ("1.20", "1.2345")):
        config = config.replace(f'"{plain}"', f'"{awkward}"')
    settings = {"SKYFLEET_COMPARE_INTERVAL_SECONDS": "1"}
    async with running_stack(tmp_path_factory.mktemp("costs"), config, settings=settings) as stack:
        yield stack


@pytest.mark.chaos
async def test_our_bill_is_the_clouds_to_the_millionth_of_a_dollar(billed: RunningStack) -> None:
    seed = int(os.environ.get("SKYFLEET_COSTS_SEED") or secrets.randbelow(1_000_000))
    print(f"SKYFLEET_COSTS_SEED={seed}")
    dice = random.Random(seed)
    stack = billed
    started = datetime.now(UTC)
    kinds = [stack.kind() for _ in range(_LAUNCHES)]
    for kind in kinds:
        if fault := dice.choice(_FAULTS):
            match = {"operation": "create", "instance_type": kind.aws}
            await stack.bench.add_fault(fault, match=match, times=dice.choice((1, 2)))
    asking = [asyncio.create_task(_one_life(stack, kind, random.Random(dice.random()))) for kind in kinds]
    trouble = asyncio.create_task(_preempt_some(stack, random.Random(dice.random())))
    strays = [
        asyncio.create_task(_stray(stack, stack.kind(), f"sf-stray-{number}", dice.uniform(5, _LASTS_S / 2)))
        for number in range(_STRAYS)
    ]
    kills = await _kill_some(stack, random.Random(dice.random()))
    print(f"kills: {kills}")
    await stack.healthy(timeout_s=90)
    trouble.cancel()
    await asyncio.gather(trouble, return_exceptions=True)
    job_ids = await all_of(asking)
    await all_of(strays)
    views = await all_of(stack.ended(job_id, timeout_s=120) for job_id in job_ids)
    for view in views:
        if view.status is LaunchStatus.COMPLETED:
            await stack.client.terminate(view.node_id or "")

    async def all_gone() -> bool:
        return not (await stack.bench.summary())["living"]

    await eventually(all_gone, timeout_s=60, interval_s=0.2, what="an empty cloud")

    async def all_ended() -> bool:
        return not (await stack.client.cost_intervals(billed=True)).intervals

    await eventually(all_ended, timeout_s=60, interval_s=0.2, what="the end of every bill")

    theirs = {entry["name"]: entry for entry in await stack.bench.ledger(owner=Settings().owner)}
    ours = {one.machine: one for one in await _intervals(stack)}
    print(f"{len(theirs)} machines, {sorted({str(entry['termination_reason']) for entry in theirs.values()})}")
    assert len(theirs) >= _LAUNCHES, "the faults alone made that many"
    assert ours.keys() == theirs.keys()
    for name, entry in theirs.items():
        mine = ours[name]
        assert (mine.start.isoformat(), mine.end and mine.end.isoformat()) == (
            entry["created_at"],
            entry["terminated_at"],
        ), name
        assert (mine.price_per_hour, mine.total) == (Decimal(entry["hourly_price"]), Decimal(entry["cost"])), name
        assert (mine.provider, mine.region, mine.zone, mine.instance_type) == (
            *(entry["cloud"], entry["region"], entry["zone"]),
            entry["instance_type"],
        )
    bill = sum((Decimal(entry["cost"]) for entry in theirs.values()), Decimal(0))
    await _totals_agree(stack, started, bill)
    await _outcomes_agree(stack, ours)


async def _totals_agree(stack: RunningStack, started: datetime, bill: Decimal) -> None:
    """However the bill is told apart, and however its time is cut, it adds up to the cloud's."""
    start, end = started - timedelta(seconds=5), datetime.now(UTC) + timedelta(seconds=5)
    for by in CostKey:
        found = await stack.client.cost_breakdown(by, start=start, end=end)
        assert found.total.cost == bill, by
        assert sum((part.cost for part in found.parts), Decimal(0)) == bill, by
    cuts = [start + (end - start) * part / 7 for part in range(8)]
    pieces = [
        (await stack.client.cost_breakdown("provider", start=a, end=b)).total.cost for a, b in itertools.pairwise(cuts)
    ]
    assert sum(pieces, Decimal(0)) == bill
    assert (await stack.client.costs()).hourly_rate == 0


async def _outcomes_agree(stack: RunningStack, ours: dict[str, CostInterval]) -> None:
    """What came of each machine, and what a node and a launch are said to have cost, is what the ledger has."""
    for name, mine in ours.items():
        if mine.launch_id is None:
            assert name.startswith("sf-stray-")
            assert (mine.outcome, mine.tenant) == ("stray", None)
            continue
        status = await stack.client.status(mine.launch_id)
        [attempt] = [one for one in status.attempts if one.cluster_name == name]
        assert attempt.cost == mine.total
        succeeded = status.status is LaunchStatus.COMPLETED and name == status.cluster_name
        assert mine.outcome == ("node" if succeeded else "failed")
        assert (mine.user, mine.model_name) == ("admin-token", status.model_name)
        if succeeded:
            node = await stack.client.node(name)
            assert (node.cost, node.cost_per_hour) == (mine.total, mine.price_per_hour)
    for launch_id in {mine.launch_id for mine in ours.values() if mine.launch_id}:
        whole = sum((mine.total for mine in ours.values() if mine.launch_id == launch_id), Decimal(0))
        assert (await stack.client.status(launch_id)).cost == whole


async def _intervals(stack: RunningStack) -> list[CostInterval]:
    """The whole ledger, page by page."""
    found: list[CostInterval] = []
    cursor = None
    while True:
        page = await stack.client.cost_intervals(limit=7, cursor=cursor)
        found += page.intervals
        if page.next is None:
            return found
        cursor = page.next


async def _persist(call: Any) -> Any:
    """The answer of the API once it gives one, through restarts; None for a command that comes too late."""
    while True:
        try:
            return await call()
        except (ApiError, ApiUnreachable) as error:
            if isinstance(error, ApiError) and error.status == 409:
                return None
            if isinstance(error, ApiError) and error.status not in (502, 503, 504):
                raise
            await asyncio.sleep(0.2)


async def _one_life(stack: RunningStack, kind: Kind, dice: random.Random) -> str:
    """Ask for a node; cancel it on the way, or end it some time after, or leave it."""
    await asyncio.sleep(dice.uniform(0, _LASTS_S / 2))
    key = secrets.token_hex(8)
    body = {
        "use_spot": dice.random() < 0.6,
        "fallback": {"regions": "any", "on_demand": True},
        "deadlines": {"provision_seconds": 5, "registration_seconds": 5},
    }
    job_id: str = await _persist(lambda: stack.launch(kind.aws, key=key, **body))
    fate = dice.choice(("cancel", "terminate", "leave", "leave"))
    if fate == "cancel":
        await asyncio.sleep(dice.uniform(0, 4))
        await _persist(lambda: stack.client.cancel(job_id))
    elif fate == "terminate":
        await asyncio.sleep(dice.uniform(2, 12))
        view = await _persist(lambda: stack.client.status(job_id))
        if view.status is LaunchStatus.COMPLETED:
            await _persist(lambda: stack.client.terminate(view.node_id))
    return job_id


async def _preempt_some(stack: RunningStack, dice: random.Random) -> None:
    """Take a spot machine now and then, with and without notice."""
    while True:
        await asyncio.sleep(dice.uniform(1, 4))
        with contextlib.suppress(CloudError, CloudUnreachable):  # killed, or the machine ended meanwhile
            living = await stack.bench.ledger(state="running")
            spot = [entry["name"] for entry in living if entry["market"] == "spot"]
            if spot:
                await stack.bench.preempt(dice.choice(spot), notice_s=dice.choice((0, 0, 2)))


async def _stray(stack: RunningStack, kind: Kind, name: str, after_s: float) -> None:
    """A machine in our name that no launch asked for."""
    await asyncio.sleep(after_s)
    cloud = LocalCloud(stack.endpoints.local_cloud or "")
    try:
        while True:
            with contextlib.suppress(CloudUnreachable):
                offer = next(offer for offer in await cloud.offers() if offer.instance_type == kind.aws)
                await cloud.create(request_for(offer, name, owner=Settings().owner))
                return
            await asyncio.sleep(0.2)
    finally:
        await cloud.aclose()


async def _kill_some(stack: RunningStack, dice: random.Random) -> list[str]:
    """-9 to a process every so often, over the whole time."""
    killed = []
    for _ in range(len(_KILLED)):
        await asyncio.sleep(_LASTS_S / len(_KILLED) * dice.uniform(0.7, 1.3))
        name = dice.choice(_KILLED)
        if name in stack.pids():
            stack.kill(name)
            killed.append(name)
    return killed


async def test_a_spent_budget_alerts_refuses_and_drains(billed: RunningStack) -> None:
    stack = billed
    kind = stack.kind()
    first, other = await all_of(
        [
            stack.launch(kind.aws, deployment="drained", use_spot=True),
            stack.launch(kind.gcp, provider="gcp", region="us-central1", deployment="spared"),
        ]
    )
    drained, spared = await all_of(stack.ready(job_id) for job_id in (first, other))
    body = {"scope": "deployment", "value": "drained", "amount": "0.0001", "hard_stop": "drain"}
    await stack.client.set_budget("tiny", body)
    await stack.terminated(first)
    node = await stack.client.node(drained.node_id or "")
    assert node.status_message == "terminated by budget tiny"
    assert (await stack.client.node(spared.node_id or "")).status == "ready"
    alerts = (await stack.client.budget("tiny")).alerts
    assert [alert.fraction for alert in alerts] == [Decimal("0.5"), Decimal("0.8"), Decimal(1)]
    audited = (await stack.client.audit(action="budget.alert", subject="tiny")).entries
    assert len(audited) == 3
    with pytest.raises(ApiError, match="budget tiny of the deployment drained") as refused:
        await stack.launch(kind.aws, deployment="drained")
    assert refused.value.status == 402
    await stack.client.delete_budget("tiny")
    again = await stack.launch(kind.aws, deployment="drained")
    await stack.ready(again)
    await stack.terminate(again, other)
