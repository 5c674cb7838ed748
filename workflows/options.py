"""Timeouts and retries of activities, in one place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from skyfleet.domain import queues

#: A step on our own database: quick, and tried for ever, since the database coming back is all it waits for. One that
#: was under way when its worker was killed waits out its time before it is done again.
CONTROL: dict[str, Any] = {
    "task_queue": queues.CONTROL,
    "start_to_close_timeout": timedelta(seconds=10),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=500), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=15)
    ),
}

_HEARTBEAT = timedelta(seconds=15)

#: Ending a machine: tried for ever. Giving up would be a leak.
TEARDOWN: dict[str, Any] = {
    "task_queue": queues.TEARDOWN,
    "start_to_close_timeout": timedelta(minutes=5),
    "heartbeat_timeout": _HEARTBEAT,
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
    ),
}

#: One look at a machine.
LOOK: dict[str, Any] = {
    "task_queue": queues.TEARDOWN,
    "start_to_close_timeout": timedelta(seconds=60),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=15)
    ),
}

#: A reading of the model bucket. The next is due soon anyway.
BUCKET: dict[str, Any] = {
    "task_queue": queues.TEARDOWN,
    "start_to_close_timeout": timedelta(minutes=10),
    "heartbeat_timeout": _HEARTBEAT,
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=30),
        maximum_attempts=5,
    ),
}

#: Telling people. It is bounded by itself, and not tried again: the next run is due soon, or somebody waits for it.
NOTIFY: dict[str, Any] = {
    "task_queue": queues.TEARDOWN,
    "start_to_close_timeout": timedelta(seconds=90),
    "schedule_to_start_timeout": timedelta(seconds=60),
    "heartbeat_timeout": _HEARTBEAT,
    "retry_policy": RetryPolicy(maximum_attempts=1),
}


#: A stretch of the fleet watch. It beats every two seconds; without it nobody looks, so another worker soon carries on.
WATCH: dict[str, Any] = {
    "task_queue": queues.TEARDOWN,
    "start_to_close_timeout": timedelta(minutes=90),
    "heartbeat_timeout": timedelta(seconds=10),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=500), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=5)
    ),
}


def provision(deadline_seconds: float) -> dict[str, Any]:
    """Creating a machine. The deadline is kept by the activity itself, from its first start, over retries.

    No schedule-to-start limit: waiting for a slot of this queue is waiting in the launch queue.
    """
    return {
        "task_queue": queues.PROVISION,
        "start_to_close_timeout": timedelta(seconds=deadline_seconds + 120),
        "heartbeat_timeout": _HEARTBEAT,
        # A cancel must not overtake a create that is under way: wait until the activity has really stopped.
        "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        "retry_policy": RetryPolicy(
            initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=15)
        ),
    }
