"""`NodeWorkflow`: a node's end."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from skyfleet.domain import ids, queues
from skyfleet.domain import messages as m
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
