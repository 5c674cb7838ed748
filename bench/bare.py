"""A bare Temporal workflow: a launch's number of activities, and one signal. `python -m bench.bare` is its worker."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta

from pydantic import BaseModel
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from skyfleet.exit import leave
from workflows.registry import SANDBOX

QUEUE = "bench-bare"
#: validate, plan, open, provision; then the signal; then complete.
BEFORE_SIGNAL, AFTER_SIGNAL = 4, 1


class Message(BaseModel):
    """What goes in and out."""

    subject: str


@activity.defn
async def nothing(message: Message) -> Message:
    """An activity that does nothing."""
    return message


@workflow.defn(name="BareWorkflow")
class BareWorkflow:
    """Activities in a row, a signal, an activity."""

    def __init__(self) -> None:
        self._signalled = False

    @workflow.run
    async def run(self, message: Message) -> Message:
        """As the module says."""
        for _ in range(BEFORE_SIGNAL):
            message = await workflow.execute_activity(nothing, message, start_to_close_timeout=timedelta(seconds=30))
        await workflow.wait_condition(lambda: self._signalled)
        for _ in range(AFTER_SIGNAL):
            message = await workflow.execute_activity(nothing, message, start_to_close_timeout=timedelta(seconds=30))
        return message

    @workflow.signal
    def heard(self, message: Message) -> None:
        """The signal."""
        self._signalled = True


async def connect(address: str) -> Client:
    """A client with the converter that ours has."""
    return await Client.connect(address, data_converter=pydantic_data_converter)


async def _work(address: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Worker(
        await connect(address),
        task_queue=QUEUE,
        workflows=[BareWorkflow],
        activities=[nothing],
        workflow_runner=SANDBOX,
        max_concurrent_activities=50,
    ):
        print("up", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
    leave(0)
