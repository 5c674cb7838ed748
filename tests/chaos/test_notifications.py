"""kill -9 of the worker while a message is on its way: it is sent again, and not lost."""

from __future__ import annotations

import pytest

from skyfleet.domain.notifications import DeliveryState
from skyfleet.domain.states import LaunchStatus
from skyfleet.domain.views import DeliveryView
from tests.receiver import receiving
from tests.stack import RunningStack
from tests.waiting import eventually

pytestmark = pytest.mark.chaos


async def test_a_message_in_the_hands_of_a_killed_worker_is_sent_again(battered: RunningStack) -> None:
    stack = battered
    with receiving() as receiver:
        await stack.client.create_channel(
            {"name": "hook", "url": f"{receiver.url('hook')}?rto=60", "kinds": ["launch_failed"]}
        )
        receiver.hanging = True
        kind = stack.kind()
        await stack.bench.add_fault(
            {"real": "InsufficientInstanceCapacity"},
            match={"operation": "create", "instance_type": kind.aws},
            times=None,
        )
        job_id = await stack.launch(kind.aws)
        assert (await stack.ended(job_id)).status is LaunchStatus.FAILED
        await eventually(receiver.posts, timeout_s=30, what="the message at the receiver")

        stack.kill("worker")
        receiver.hanging = False

        async def delivery() -> DeliveryView:
            (one,) = (await stack.client.notifications(subject=job_id)).notifications
            (found,) = one.deliveries
            return found

        await stack.healthy()
        assert (await delivery()).state is DeliveryState.PENDING
        async with stack.database() as connection:  # nobody waits for the lease of the dead worker here
            await connection.execute(
                "UPDATE notification_deliveries SET next_attempt_at = now() WHERE state = 'pending'"
            )

        async def sent() -> bool:
            return (await delivery()).state is DeliveryState.SENT

        await eventually(sent, timeout_s=60, interval_s=0.2, what="the delivery")
        # At least once: the receiver had it when the worker was killed, and nobody knew.
        assert [job_id in post["message"] for post in receiver.posts()] == [True, True]
        assert (await delivery()).attempts == 2
        await stack.client.remove_channel("hook")
