"""Where a launch goes when a place refuses, with the errors that the clouds really answer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.states import AttemptState, LaunchStatus, Market
from skyfleet.domain.views import LaunchStatusView
from tests.stack import RunningStack
from tests.waiting import eventually


def _places(view: LaunchStatusView) -> list[str]:
    return [f"{one.provider}/{one.zone or one.region}/{one.market.value}" for one in view.attempts]


async def _refuse(stack: RunningStack, code: str, **where: Any) -> None:
    await stack.bench.add_fault({"real": code}, match={"operation": "create", **where}, times=None)


#: Longer than the cloud's client waits for an answer (30 s), so that the teardown comes first.
_LATE_CREATE_S = 32.0


@pytest.fixture(scope="module", autouse=True)
async def late_create(stack: RunningStack) -> tuple[str, datetime]:
    """A launch that was cancelled while its create hangs, and when the cloud comes to it. It takes as long as all else
    here, so it begins first."""
    kind = stack.kind()
    match = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"delay_before_s": _LATE_CREATE_S}, match=match)
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "REQUESTING")

    async def asked() -> bool:
        return any(rule["match"] == match and rule["hits"] for rule in await stack.bench.faults())

    await eventually(asked, what="the create at the cloud")
    due = datetime.now(UTC) + timedelta(seconds=_LATE_CREATE_S)
    await stack.client.cancel(job_id)
    return job_id, due


async def test_over_zones_regions_clouds_and_to_on_demand(stack: RunningStack) -> None:
    kind = stack.kind()
    await _refuse(stack, "InsufficientInstanceCapacity", instance_type=kind.aws, market="spot")
    await _refuse(stack, "SkuNotAvailable", instance_type=kind.azure, market="spot")
    await _refuse(stack, "ZONE_RESOURCE_POOL_EXHAUSTED", instance_type=kind.gcp, market="spot")
    fallback = {"regions": "any", "clouds": ["azure", "gcp"], "on_demand": True}
    job_id = await stack.launch(kind.aws, use_spot=True, fallback=fallback)
    view = await stack.ready(job_id, timeout_s=60)
    assert _places(view) == [
        "aws/us-east-1a/spot",
        "aws/us-east-1b/spot",
        "aws/us-west-2a/spot",
        "azure/eastus/spot",
        "azure/westus2/spot",
        "gcp/us-central1-a/spot",
        "gcp/us-central1-b/spot",
        "aws/us-east-1a/on_demand",
    ]
    *refused, taken = view.attempts
    for attempt in refused:
        error = attempt.error
        assert error is not None
        assert error.kind is ErrorKind.CAPACITY
        assert (attempt.zone or attempt.region) in error.message
        assert error.next_steps
        assert attempt.state is AttemptState.CLOSED
        assert attempt.cost == 0
    assert "InsufficientInstanceCapacity" in (refused[0].error.raw if refused[0].error else "")
    assert "us-east-1a" in (refused[0].error.raw if refused[0].error else "")
    assert "currently not available in location 'eastus'" in (refused[3].error.raw if refused[3].error else "")
    assert "zones/us-central1-a" in (refused[5].error.raw if refused[5].error else "")
    assert (taken.state, taken.error, view.error) == (AttemptState.SUCCEEDED, None, None)
    assert (view.provider, view.zone, view.market) == ("aws", "us-east-1a", Market.ON_DEMAND)
    [machine] = await stack.ledger(job_id)
    assert (machine["name"], machine["state"]) == (taken.cluster_name, "running")
    await stack.told_once(job_id)
    await stack.let_go(job_id)


async def test_no_place_left_is_told_with_every_refusal(stack: RunningStack) -> None:
    kind = stack.kind()
    await _refuse(stack, "InsufficientInstanceCapacity", instance_type=kind.aws)
    job_id = await stack.launch(kind.aws, use_spot=True)
    view = await stack.ended(job_id)
    assert view.status is LaunchStatus.FAILED
    assert _places(view) == ["aws/us-east-1a/spot", "aws/us-east-1b/spot"]
    assert view.error is not None
    assert view.error.kind is ErrorKind.CAPACITY
    assert "No capacity in all 2 places tried (aws/us-east-1a, aws/us-east-1b)" in view.error.message
    assert (view.raw_error or "").count("InsufficientInstanceCapacity") == 2
    assert await stack.ledger(job_id) == []
    await stack.told_once(job_id)


async def test_what_is_refused_for_a_region_is_not_asked_for_in_its_other_zones(stack: RunningStack) -> None:
    kind = stack.kind()
    await _refuse(stack, "VcpuLimitExceeded", instance_type=kind.aws, region="us-east-1")
    job_id = await stack.launch(kind.aws, fallback={"regions": "any"})
    view = await stack.ready(job_id)
    assert _places(view) == ["aws/us-east-1a/on_demand", "aws/us-west-2a/on_demand"]
    error = view.attempts[0].error
    assert error is not None
    assert (error.kind, error.scope) == (ErrorKind.QUOTA, ErrorScope.REGION)
    assert "quota" in error.message.lower()
    await stack.let_go(job_id)


async def test_refused_credentials_fail_at_once_without_a_tour(stack: RunningStack) -> None:
    """On a cloud of its own: no launch tries a cloud again for minutes after it refused the credentials."""
    kind = stack.kind()
    await _refuse(stack, "NotAuthorizedOrNotFound", instance_type=kind.oci)
    job_id = await stack.launch(kind.oci, provider="oci", region="us-ashburn-1", fallback={"regions": "any"})
    view = await stack.ended(job_id)
    assert view.status is LaunchStatus.FAILED
    assert len(view.attempts) == 1
    assert view.error is not None
    assert view.error.kind is ErrorKind.AUTH
    assert "NotAuthorizedOrNotFound" in (view.raw_error or "")
    assert await stack.ledger(job_id) == []


async def test_a_rate_limit_is_waited_out_in_place(stack: RunningStack) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"rate_limit": True}, match=where, times=2)
    job_id = await stack.launch(kind.aws, fallback={"regions": "any", "clouds": "any"})
    view = await stack.ready(job_id)
    assert _places(view) == ["aws/us-east-1a/on_demand"]
    [rule] = [rule for rule in await stack.bench.faults() if rule["match"].get("instance_type") == kind.aws]
    assert rule["hits"] == 2
    await stack.let_go(job_id)


async def test_the_capacity_memory_steers_the_next_launch_away(stack: RunningStack) -> None:
    kind = stack.kind()
    await _refuse(stack, "InsufficientInstanceCapacity", instance_type=kind.aws, zone="us-east-1a", market="spot")
    first = await stack.launch(kind.aws, use_spot=True)
    assert _places(await stack.ready(first)) == ["aws/us-east-1a/spot", "aws/us-east-1b/spot"]
    second = await stack.launch(kind.aws, use_spot=True)
    assert _places(await stack.ready(second)) == ["aws/us-east-1b/spot"]
    [plan] = [event for event in await stack.story(second) if event.kind == "plan"]
    [(key, why)] = plan.data["refused"].items()
    assert key == f"aws/us-east-1/us-east-1a/{kind.aws}/spot"
    assert "capacity" in why
    # What was refused is the spot market's: on-demand is asked for where it is cheapest.
    third = await stack.launch(kind.aws)
    assert _places(await stack.ready(third)) == ["aws/us-east-1a/on_demand"]
    await stack.let_go(first, second, third)


@pytest.mark.parametrize("effect", ["boot_fails", "never_boots"])
async def test_a_machine_that_does_not_come_up_is_ended_and_another_tried(stack: RunningStack, effect: str) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws, "zone": "us-east-1a"}
    then = (
        {"boot_fails": "Server.InternalError: Internal error on launch"} if effect == "boot_fails" else {effect: True}
    )
    await stack.bench.add_fault(then, match=where)
    job_id = await stack.launch(kind.aws, deadlines={"provision_seconds": 2.0})
    view = await stack.ready(job_id)
    assert _places(view) == ["aws/us-east-1a/on_demand", "aws/us-east-1b/on_demand"]
    error = view.attempts[0].error
    assert error is not None
    if effect == "boot_fails":
        assert "Server.InternalError" in error.raw
    else:
        assert error.kind is ErrorKind.TIMEOUT
        assert "provisioning instance" in error.message
    first, second = await stack.ledger(job_id)
    assert (first["state"], second["state"]) == ("terminated", "running")
    assert first["running_at"] is None
    await stack.let_go(job_id)


async def test_agents_that_never_speak_end_in_a_timeout(stack: RunningStack) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws}
    await stack.bench.add_fault({"agent_dead": True}, match=where, times=None)
    job_id = await stack.launch(kind.aws, deadlines={"registration_seconds": 1.0})
    view = await stack.ended(job_id)
    assert view.status is LaunchStatus.TIMEOUT
    assert _places(view) == ["aws/us-east-1a/on_demand", "aws/us-east-1b/on_demand"]
    assert view.error is not None
    assert view.error.kind is ErrorKind.TIMEOUT
    assert "Timed out in all 2 places tried" in view.error.message
    assert [machine["state"] for machine in await stack.ledger(job_id)] == ["terminated", "terminated"]
    await stack.nothing_left(job_id)


async def test_a_spot_machine_taken_back_before_it_is_up_is_replaced(stack: RunningStack) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws, "zone": "us-east-1a"}
    await stack.bench.add_fault({"boot_delay_s": 60}, match=where)
    job_id = await stack.launch(kind.aws, use_spot=True)
    await stack.event(job_id, lambda event: event.stage == "PROVISIONING")
    [machine] = await stack.living(job_id)
    await stack.bench.preempt(machine["name"], notice_s=0)
    view = await stack.ready(job_id)
    assert _places(view) == ["aws/us-east-1a/spot", "aws/us-east-1b/spot"]
    error = view.attempts[0].error
    assert error is not None
    assert error.kind is ErrorKind.PREEMPTED
    assert [one["termination_reason"] for one in await stack.ledger(job_id)] == ["preempted", None]
    await stack.let_go(job_id)


async def test_an_engine_that_does_not_start_is_told_with_its_last_lines(stack: RunningStack) -> None:
    kind = stack.kind()
    job_id = await stack.launch(kind.aws, engine_args={"--fail-at": "load"}, fallback={"regions": "any"})
    view = await stack.ended(job_id)
    assert view.status is LaunchStatus.FAILED
    assert len(view.attempts) == 1, "the same engine fails everywhere"
    assert view.error is not None
    assert view.error.kind is ErrorKind.ENGINE
    assert "model could not be loaded: --fail-at load was given" in (view.raw_error or "")
    await stack.nothing_left(job_id)


async def test_a_lost_reply_to_create_does_not_make_two_machines(stack: RunningStack) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws}
    # Twice: the HTTP client asks again by itself when a connection that it kept open is closed.
    await stack.bench.add_fault({"drop_reply": True}, match=where, times=2)
    job_id = await stack.launch(kind.aws, fallback={"regions": "any"})
    view = await stack.ready(job_id)
    assert len(view.attempts) == 1
    [machine] = await stack.ledger(job_id)
    assert (machine["name"], machine["state"]) == (view.cluster_name, "running")
    assert [event.data["adopted"] for event in await stack.told_once(job_id) if "adopted" in event.data] == [True]
    await stack.let_go(job_id)


async def test_a_create_that_the_cloud_comes_to_after_the_teardown_makes_no_machine(
    stack: RunningStack, late_create: tuple[str, datetime]
) -> None:
    job_id, due = late_create
    view = await stack.ended(job_id, timeout_s=60)
    assert view.status is LaunchStatus.CANCELLED
    assert view.ended_at is not None
    assert view.ended_at < due, "the teardown was to come first"
    # Nothing tells when the cloud refused the late request, so wait until it must have, and look.
    await asyncio.sleep(0.5 + (due - datetime.now(UTC)).total_seconds())
    assert await stack.ledger(job_id) == []
    await stack.nothing_left(job_id)
