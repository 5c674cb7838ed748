"""From a launch that fails to the message that a real HTTP receiver gets, through every process between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skyfleet.client import ApiError
from skyfleet.domain.notifications import DeliveryState
from skyfleet.domain.states import LaunchStatus
from skyfleet.domain.views import NotificationView
from tests.receiver import Receiver, receiving
from tests.stack import RunningStack
from tests.waiting import eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


async def fail(stack: RunningStack) -> str:
    """A launch that fails; its id."""
    kind = stack.kind()
    await stack.bench.add_fault(
        {"real": "InsufficientInstanceCapacity"}, match={"operation": "create", "instance_type": kind.aws}, times=None
    )
    job_id = await stack.launch(kind.aws)
    assert (await stack.ended(job_id)).status is LaunchStatus.FAILED
    return job_id


async def told(stack: RunningStack, job_id: str) -> NotificationView:
    """The one notification about a launch."""
    (one,) = (await stack.client.notifications(subject=job_id)).notifications
    return one


async def test_a_failed_launch_is_posted_once(stack: RunningStack, receiver: Receiver) -> None:
    made = await stack.client.create_channel(
        {"name": "hook", "url": receiver.url("s3cret"), "kinds": ["launch_failed", "node_lost"]}
    )
    try:
        assert made.masked_url == f"json://127.0.0.1:{receiver.port}/****"
        tested = await stack.client.test_channel("hook")
        assert tested.ok, tested.detail
        assert receiver.titles() == ["[sandbox] Test of the channel hook"]
        receiver.answers = [503]  # and then it takes it
        job_id = await fail(stack)

        async def sent() -> bool:
            deliveries = [one for one in (await told(stack, job_id)).deliveries if one.channel == "hook"]
            return [one.state for one in deliveries] == [DeliveryState.SENT]

        await eventually(sent, timeout_s=60, interval_s=0.2, what="the delivery")
        ours = [post for post in receiver.posts() if job_id in post["message"]]
        assert len(ours) == 2  # the one that was refused, and the one that was taken
        assert ours[-1]["title"] == "[sandbox] Launch failed: meta-llama/Llama-3.1-8B-Instruct"
        assert "No capacity" in ours[-1]["message"]
        (delivery,) = (await told(stack, job_id)).deliveries
        assert delivery.attempts == 2

        other = await fail(stack)
        await eventually(lambda: any(other in post["message"] for post in receiver.posts()), what="the next message")
        assert len([post for post in receiver.posts() if job_id in post["message"]]) == 2
        assert len([post for post in receiver.posts() if other in post["message"]]) == 1
    finally:
        await stack.client.remove_channel("hook")
    logs = "".join(path.read_text(errors="replace") for path in (stack.data / "logs").iterdir() if path.is_file())
    assert "s3cret" not in logs


async def test_an_address_that_is_refused_says_what_is_taken(stack: RunningStack) -> None:
    with pytest.raises(ApiError) as refused:
        await stack.client.create_channel({"name": "desk", "url": "dbus://"})
    assert refused.value.status == 422
    assert "not allowed" in str(refused.value)
    assert "slack://" in str(refused.value)
