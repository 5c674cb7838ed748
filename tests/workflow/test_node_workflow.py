"""`NodeWorkflow`: what is commanded of a node, what its cloud does to it, and its end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.testing import WorkflowEnvironment

from skyfleet.domain import ids, queues
from skyfleet.domain import messages as m
from skyfleet.domain.health import OURSELVES
from skyfleet.domain.states import LaunchStage
from tests.waiting import eventually
from tests.workflow.conftest import LAUNCH, World, working
from workflows.node import NodeWorkflow

NODE = m.NodeInput(
    node_id=ids.node_id(LAUNCH, 1),
    launch_id=LAUNCH,
    attempt=1,
    cluster_name=ids.cluster_name(LAUNCH, 1),
    backend="fake",
    cloud="aws",
    region="us-east-1",
    market="spot",
    tenant="t",
    hourly_price=Decimal("0.30"),
)


async def start(env: WorkflowEnvironment) -> WorkflowHandle[NodeWorkflow, m.NodeView]:
    """Start the node's workflow."""
    return await env.client.start_workflow(
        NodeWorkflow.run, NODE, id=ids.node_workflow_id(NODE.node_id), task_queue=queues.CONTROL
    )


async def test_a_terminated_node_is_gone_only_when_the_cloud_says_so(env: WorkflowEnvironment) -> None:
    """The agent is told first, then the machine is ended; failures are tried again."""
    world = World(machines={NODE.cluster_name}, teardown_fails=3)
    async with working(env.client, world):
        node = await start(env)
        assert (await node.query(NodeWorkflow.status)).status == "ready"
        await node.execute_update(NodeWorkflow.terminate, m.TerminateNode(requested_by="me", reason="done with it"))
        view = await node.result()
    assert (view.status, view.terminate_requested_by, view.terminate_reason) == ("terminated", "me", "done with it")
    assert world.machines == set()
    assert world.marks == ["terminating"]
    assert world.calls.count("terminate") == 4


async def test_asking_twice_ends_once(env: WorkflowEnvironment) -> None:
    """The second command joins the first."""
    world = World(machines={NODE.cluster_name}, hold={"terminate": asyncio.Event()})
    async with working(env.client, world):
        node = await start(env)
        for who in ("first", "second"):
            await node.execute_update(NodeWorkflow.terminate, m.TerminateNode(requested_by=who))
        world.hold["terminate"].set()
        assert (await node.result()).terminate_requested_by == "first"
    assert world.calls.count("terminate") == 1


async def test_cancelling_the_owner_ends_the_machine(env: WorkflowEnvironment) -> None:
    """`temporal workflow cancel` must not leave a machine without an owner."""
    world = World(machines={NODE.cluster_name})
    async with working(env.client, world):
        node = await start(env)
        await node.query(NodeWorkflow.status)
        await node.cancel()
        assert (await node.result()).status == "terminated"
    assert world.machines == set()


def drained(**fields: float) -> m.DrainNode:
    """The command."""
    return m.DrainNode(requested_by="me", reason="maintenance", **fields)


def looked_for(world: World) -> list[str]:
    """What was done, without the ends of machines that are looked at again."""
    return [call for call in world.calls if not call.startswith("check")]


async def test_a_drained_node_ends_when_its_requests_are_through(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, drain_looks=4)
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.drain, drained())
        view = await node.result()
    assert view.status == "terminated"
    assert looked_for(world) == ["mark draining", "mark terminating", "terminate"]
    assert world.calls.count("check drain") == 4
    assert world.machines == set()


async def test_a_drain_ends_at_its_deadline(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, drain_looks=10_000)
    async with working(env.client, world):
        began = await env.get_current_time()
        node = await start(env)
        await node.execute_update(NodeWorkflow.drain, drained(seconds=60))
        await node.result()
        times = [event.event_time.ToDatetime(UTC) async for event in node.fetch_history_events()]
    assert timedelta(seconds=60) <= times[-1] - began < timedelta(seconds=75)
    assert world.machines == set()


async def test_a_terminate_does_not_wait_for_a_drain(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, drain_looks=10_000)
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.drain, drained(seconds=86_400))
        await world.at("check drain")
        await node.execute_update(NodeWorkflow.terminate, m.TerminateNode(requested_by="me", reason="now"))
        view = await node.result()
    assert view.terminate_reason == "now"
    assert world.machines == set()


async def test_a_warned_node_is_replaced_before_it_drains(env: WorkflowEnvironment) -> None:
    """Its time runs: the other is asked for first, and elsewhere."""
    world = World(machines={NODE.cluster_name}, drain_looks=2)
    async with working(env.client, world):
        node = await start(env)
        deadline = datetime.now(UTC) + timedelta(minutes=2)
        await node.signal(NodeWorkflow.preemption_warned, m.PreemptionWarned(source="imds", deadline=deadline))
        view = await node.result()
    assert (view.status, view.replaced_by) == ("terminated", "launch-aaaaaaaa")
    assert looked_for(world) == ["replacement", "mark draining", "mark terminating", "terminate"]
    [asked] = world.replacements
    assert asked.preempted
    assert "imds" in asked.reason


async def test_a_warning_cuts_a_drain_short_of_its_patience(env: WorkflowEnvironment) -> None:
    """A drain that may take a day does not outlast the machine."""
    world = World(machines={NODE.cluster_name}, drain_looks=10_000)
    async with working(env.client, world):
        began = await env.get_current_time()
        node = await start(env)
        await node.execute_update(NodeWorkflow.drain, drained(seconds=86_400))
        await world.at("check drain")
        await node.signal(NodeWorkflow.preemption_warned, m.PreemptionWarned(source="imds"))
        await node.result()
        times = [event.event_time.ToDatetime(UTC) async for event in node.fetch_history_events()]
    assert times[-1] - began < timedelta(minutes=4)
    assert len(world.replacements) == 1


async def test_a_replaced_node_serves_until_the_other_is_ready(env: WorkflowEnvironment) -> None:
    stages = [LaunchStage.PROVISIONING, LaunchStage.LOADING_MODEL, LaunchStage.READY]
    world = World(machines={NODE.cluster_name}, replacement_stages=stages)
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.replace, m.ReplaceNode(requested_by="me"))
        await node.result()
    assert world.marks == ["ready", "draining", "terminating"]
    assert world.calls.index("mark draining") > len(world.calls) - 1 - world.calls[::-1].index("check replacement")


async def test_a_replacement_that_fails_leaves_the_node_serving(env: WorkflowEnvironment) -> None:
    """And a later one is a new try."""
    world = World(machines={NODE.cluster_name}, replacement_stages=[LaunchStage.FAILED])
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.replace, m.ReplaceNode(requested_by="me"))
        await world.at("check replacement")

        async def serving_on() -> bool:
            return "serves on" in (await node.query(NodeWorkflow.status)).doing

        await eventually(serving_on, what="the node serving on")
        view = await node.query(NodeWorkflow.status)
        assert view.status == "ready"
        assert "no capacity" in view.doing
        world.replacement_stages = [LaunchStage.READY]
        await node.execute_update(NodeWorkflow.replace, m.ReplaceNode(requested_by="me"))
        await node.result()
    assert world.machines == set()
    assert len(world.replacements) == 2


async def test_a_node_found_dead_ends_at_once_whether_or_not_there_is_another(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, replacement=m.ReplacementResult(why_not="launched by hand"))
    async with working(env.client, world):
        node = await start(env)
        command = m.ReplaceNode(requested_by=OURSELVES, reason="neither answers", at_once=True)
        await node.execute_update(NodeWorkflow.replace, command)
        view = await node.result()
    assert (view.status, view.replaced_by) == ("terminated", None)
    assert looked_for(world) == ["mark draining", "replacement", "mark terminating", "terminate"]


async def test_a_suspect_that_nobody_replaces_finishes_what_it_serves(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, replacement=m.ReplacementResult(why_not="by hand"), drain_looks=3)
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.replace, m.ReplaceNode(requested_by=OURSELVES, reason="suspect"))
        await node.result()
    assert world.calls.count("check drain") == 3
    assert world.machines == set()


async def test_a_node_that_is_being_ended_takes_no_other_command(env: WorkflowEnvironment) -> None:
    world = World(machines={NODE.cluster_name}, hold={"terminate": asyncio.Event()})
    async with working(env.client, world):
        node = await start(env)
        await node.execute_update(NodeWorkflow.terminate, m.TerminateNode(requested_by="me"))
        await world.at("terminate")
        for update, command in (
            (NodeWorkflow.drain, drained()),
            (NodeWorkflow.replace, m.ReplaceNode(requested_by="me")),
        ):
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await node.execute_update(update, command)
            assert "is being terminated" in str(refused.value.cause)
        world.hold["terminate"].set()
        await node.result()


@pytest.mark.parametrize("during", ["check drain", "replacement"])
async def test_cancelling_the_owner_in_mid_command_ends_the_machine(env: WorkflowEnvironment, during: str) -> None:
    world = World(machines={NODE.cluster_name}, drain_looks=10_000, hold={during: asyncio.Event()})
    async with working(env.client, world):
        node = await start(env)
        await node.signal(NodeWorkflow.preemption_warned, m.PreemptionWarned(source="imds"))
        await world.at(during)
        await node.cancel()
        assert (await node.result()).status == "terminated"
        world.hold[during].set()
    assert world.machines == set()
