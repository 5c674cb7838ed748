"""kill -9 of each process while launches stand at each stage: they end as if nothing had happened.

One launch is held at each stage, by a fault of the cloud or a lock in the database, so that one kill strikes all
stages at once and none by chance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest

from skyfleet.domain.states import LaunchStage, LaunchStatus
from skyfleet.domain.views import LaunchEvent
from tests.stack import CHILDREN, RunningStack, all_of
from tests.waiting import eventually

pytestmark = pytest.mark.chaos

#: Long enough that every launch is where it should be before the first goes on, on a busy machine as well.
_HOLD_S = 8.0

_Launch = Callable[[RunningStack], Awaitable[str]]


async def _asking(stack: RunningStack) -> str:
    """The cloud was asked for the machine and has not answered."""
    kind = stack.kind()
    match = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"delay_before_s": _HOLD_S}, match=match)
    job_id = await stack.launch(kind.aws)
    await _hit(stack, match)
    return job_id


async def _created(stack: RunningStack) -> str:
    """The cloud made the machine, and its answer has not come."""
    kind = stack.kind()
    match = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"delay_after_s": _HOLD_S, "boot_delay_s": _HOLD_S}, match=match)
    job_id = await stack.launch(kind.aws)
    await _hit(stack, match)
    return job_id


async def _coming_up(stack: RunningStack) -> str:
    kind = stack.kind()
    match = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"boot_delay_s": _HOLD_S}, match=match)
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage is LaunchStage.PROVISIONING)
    return job_id


async def _starting_its_engine(stack: RunningStack) -> str:
    job_id = await stack.launch(stack.kind().aws, engine_args={"--start-delay-s": _HOLD_S})
    await stack.event(job_id, lambda event: event.stage is LaunchStage.LOADING_MODEL)
    return job_id


async def _tearing_down(stack: RunningStack) -> str:
    """It was cancelled, and the cloud does not answer the request to end the machine."""
    kind = stack.kind()
    await stack.bench.add_fault({"boot_delay_s": 600}, match={"operation": "create", "instance_type": kind.aws})
    match = {"operation": "terminate", "instance_type": kind.aws}
    await stack.bench.add_fault({"delay_before_s": _HOLD_S}, match=match)
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage is LaunchStage.PROVISIONING)
    await stack.client.cancel(job_id)
    await _hit(stack, match)
    return job_id


async def _hit(stack: RunningStack, match: dict[str, str]) -> None:
    async def hit() -> bool:
        return any(rule["match"] == match and rule["hits"] for rule in await stack.bench.faults())

    await eventually(hit, timeout_s=30, what=f"{match} at the cloud")


_HELD_BY_THE_CLOUD: dict[str, _Launch] = {
    "requesting": _asking,
    "requesting, created": _created,
    "provisioning": _coming_up,
    "installing": _starting_its_engine,
    "tearing down": _tearing_down,
}


async def _kill(stack: RunningStack, process: str) -> None:
    if process == "up":
        await stack.kill_up()
        await stack.start()
    else:
        before = stack.pids()[process]
        stack.kill(process)
        await eventually(lambda: stack.pids().get(process) not in (None, before), what=f"another {process}")


@pytest.mark.parametrize("process", [*CHILDREN, "up"])
async def test_a_launch_at_any_stage_ends_as_if_nothing_had_happened(battered: RunningStack, process: str) -> None:
    stack = battered
    launches: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as locks:
        # The last step of a launch forgets what its place refused; a registered node waits here for READY.
        await locks.enter_async_context(stack.holding("capacity_refusals IN SHARE MODE"))
        registered = await stack.launch(stack.kind().aws)
        await stack.event(registered, lambda event: event.stage is LaunchStage.REGISTERING)
        launches["registering"] = registered
        held = await all_of(launch(stack) for launch in _HELD_BY_THE_CLOUD.values())
        launches |= dict(zip(_HELD_BY_THE_CLOUD, held, strict=True))
        # The first step of a launch looks the model up.
        await locks.enter_async_context(stack.holding("models IN ACCESS EXCLUSIVE MODE"))
        launches["validating"] = await stack.launch(stack.kind().aws)
        await _waits_for_a_lock(stack)
        stages = {name: (await stack.client.status(job_id)).stage for name, job_id in launches.items()}
        assert stages == {
            "registering": LaunchStage.REGISTERING,
            "requesting": LaunchStage.REQUESTING,
            "requesting, created": LaunchStage.REQUESTING,
            "provisioning": LaunchStage.PROVISIONING,
            "installing": LaunchStage.LOADING_MODEL,
            "tearing down": LaunchStage.TEARING_DOWN,
            "validating": LaunchStage.QUEUED,  # until the step is committed
        }
        await _kill(stack, process)
    await stack.healthy()

    cancelled = launches.pop("tearing down")
    ready = list(launches.values())
    views = await all_of(stack.ready(job_id, timeout_s=90) for job_id in ready)
    assert [view.attempt_count for view in views] == [1] * len(views)
    for job_id in ready:
        machines = await stack.ledger(job_id)
        assert [machine["state"] for machine in machines] == ["running"]
        _in_order(await stack.told_once(job_id))
    assert (await stack.ended(cancelled, timeout_s=90)).status is LaunchStatus.CANCELLED
    assert [machine["state"] for machine in await stack.ledger(cancelled)] == ["terminated"]
    await stack.told_once(cancelled)
    await stack.all_owned()
    await stack.terminate(*ready)
    for job_id in ready:
        assert await stack.living(job_id) == []


async def test_a_cancel_that_a_killed_worker_never_heard(battered: RunningStack) -> None:
    """Its step ends as timed out, not as cancelled; the machine that it was making is ended all the same."""
    stack = battered
    kind = stack.kind()
    await stack.bench.add_fault({"boot_delay_s": 600}, match={"operation": "create", "instance_type": kind.aws})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage is LaunchStage.PROVISIONING)
    await _kill(stack, "worker")
    await stack.client.cancel(job_id)
    assert (await stack.ended(job_id, timeout_s=90)).status is LaunchStatus.CANCELLED
    assert [machine["state"] for machine in await stack.ledger(job_id)] == ["terminated"]


async def _waits_for_a_lock(stack: RunningStack) -> None:
    """Until the worker's first step stands before the locked table of models."""
    async with stack.database() as database:

        async def waits() -> bool:
            return bool(
                await database.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'models'::regclass"
                )
            )

        await eventually(waits, what="validation at the lock")


def _in_order(story: list[LaunchEvent]) -> None:
    """Assert that each stage was entered once, in the order of a launch."""
    order = list(LaunchStage)
    entered = [order.index(event.stage) for event in story if event.kind in ("stage", "end")]
    assert entered == sorted(entered), [(event.stage, event.message) for event in story]
