"""A cancel at each stage: the launch ends `cancelled`, and only when the ledger shows nothing of it running."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skyfleet.client import ApiError
from skyfleet.domain.states import LaunchStage, LaunchStatus
from skyfleet.domain.views import LaunchStatusView
from tests.integration.conftest import PROVISION_SLOTS
from tests.stack import Kind, RunningStack, all_of
from tests.waiting import eventually


async def _cancelled(stack: RunningStack, job_id: str, timeout_s: float = 45.0) -> LaunchStatusView:
    """The launch once it ended, after asserting that it ended as a cancelled one must."""
    assert (await stack.client.cancel(job_id)).status in ("cancelling", "cancelled")
    view = await stack.ended(job_id, timeout_s)
    assert view.status is LaunchStatus.CANCELLED
    assert await stack.living(job_id) == [], "`cancelled` was said before the cloud had ended the machine"
    assert view.error is None
    await stack.told_once(job_id)
    await stack.all_owned()
    return view


async def _create(stack: RunningStack, kind: Kind, then: dict[str, Any], times: int = 1) -> None:
    await stack.bench.add_fault(then, match={"operation": "create", "instance_type": kind.aws}, times=times)


async def test_right_after_it_was_accepted(stack: RunningStack) -> None:
    """However far it came meanwhile."""
    kind = stack.kind()
    await _create(stack, kind, {"boot_delay_s": 60}, times=4)
    job_ids = await asyncio.gather(*(stack.launch(kind.aws) for _ in range(4)))
    await all_of(_cancelled(stack, job_id) for job_id in job_ids)


async def test_in_the_launch_queue(stack: RunningStack) -> None:
    kind, waiting = stack.kind(), stack.kind()
    create = {"operation": "create", "instance_type": kind.aws}
    rule = await stack.bench.add_fault({"delay_before_s": 120}, match=create, times=PROVISION_SLOTS)
    holders = await asyncio.gather(*(stack.launch(kind.aws) for _ in range(PROVISION_SLOTS)))
    await asyncio.gather(*(stack.event(job_id, lambda event: event.stage == "REQUESTING") for job_id in holders))
    queued = await stack.launch(waiting.aws)
    await stack.event(queued, lambda event: event.kind == "attempt")
    view = await _cancelled(stack, queued)
    assert await stack.ledger(queued) == [], "it was in the queue"
    assert LaunchStage.REQUESTING not in [event.stage for event in await stack.story(queued)]
    assert view.attempt_count == 1
    assert {(await stack.client.status(job_id)).stage for job_id in holders} == {LaunchStage.REQUESTING}
    await stack.remove_fault(rule)  # the slots are free again
    await all_of(_cancelled(stack, job_id) for job_id in holders)


async def test_while_the_cloud_is_asked(stack: RunningStack) -> None:
    kind = stack.kind()
    await _create(stack, kind, {"delay_before_s": 2.5})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "REQUESTING")
    await _cancelled(stack, job_id)


async def test_while_the_machine_comes_up(stack: RunningStack) -> None:
    kind = stack.kind()
    await _create(stack, kind, {"boot_delay_s": 120})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "PROVISIONING")
    await _cancelled(stack, job_id)
    [machine] = await stack.ledger(job_id)
    assert (machine["running_at"], machine["termination_reason"]) == (None, "requested")


async def test_while_the_engine_starts(stack: RunningStack) -> None:
    job_id = await stack.launch(stack.kind().aws, engine_args={"--start-delay-s": 120})
    await stack.event(job_id, lambda event: event.stage == "LOADING_MODEL")
    await _cancelled(stack, job_id)
    assert len(await stack.ledger(job_id)) == 1


async def test_while_the_registration_is_waited_for(stack: RunningStack) -> None:
    kind = stack.kind()
    await _create(stack, kind, {"agent_dead": True})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.message.endswith(" runs"))
    await _cancelled(stack, job_id)
    assert len(await stack.ledger(job_id)) == 1


async def test_while_an_attempt_is_torn_down(stack: RunningStack) -> None:
    kind = stack.kind()
    await _create(stack, kind, {"boot_fails": "Server.InternalError"})
    await stack.bench.add_fault(
        {"delay_before_s": 2}, match={"operation": "terminate", "instance_type": kind.aws}, times=1
    )
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "TEARING_DOWN")
    await _cancelled(stack, job_id)
    assert len(await stack.ledger(job_id)) == 1, "no other place was tried after the cancel"


async def test_ready_is_too_late_and_says_what_to_do(stack: RunningStack) -> None:
    job_id = await stack.launch(stack.kind().aws)
    view = await stack.ready(job_id)
    with pytest.raises(ApiError, match=f"/admin/nodes/{view.cluster_name}/terminate") as refused:
        await stack.client.cancel(job_id)
    assert refused.value.status == 409
    assert (await stack.client.status(job_id)).cancel_requested is False
    await stack.let_go(job_id)


async def test_a_machine_that_will_not_go_is_never_called_gone(stack: RunningStack) -> None:
    kind = stack.kind()
    await _create(stack, kind, {"boot_delay_s": 120})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "PROVISIONING")
    fault = {"real": "InternalError"}
    where = {"operation": "terminate", "instance_type": kind.aws}
    await stack.bench.add_fault(fault, match=where, times=None)
    await stack.client.cancel(job_id)
    alert = await stack.event(job_id, lambda event: event.kind == "alert")
    assert "will not terminate, still trying" in alert.message
    assert "InternalError" in alert.message
    view = await stack.client.status(job_id)
    assert (view.status, view.stage) == (LaunchStatus.IN_PROGRESS, LaunchStage.TEARING_DOWN)
    [machine] = await stack.ledger(job_id)
    assert machine["state"] == "pending"
    audit = await stack.client.audit(action="machine.teardown_alert", subject=machine["name"])
    assert [entry.outcome for entry in audit.entries] == ["failing"]

    [rule] = [one for one in await stack.bench.faults() if one["match"] == where]
    tries = rule["hits"]

    async def tried_again() -> bool:
        return any(one["match"] == where and one["hits"] > tries for one in await stack.bench.faults())

    await eventually(tried_again, timeout_s=30, what="another try after the alert")
    await stack.remove_fault(rule["id"])
    view = await stack.ended(job_id, timeout_s=60)
    assert view.status is LaunchStatus.CANCELLED
    await stack.nothing_left(job_id)
    alerts = [event for event in await stack.told_once(job_id) if event.kind == "alert"]
    assert len(alerts) == 1
