"""`LaunchWorkflow`: fall-back, cancel at each stage, deadlines, compensation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.testing import WorkflowEnvironment

from activities.failures import final
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.launches import Deadlines
from skyfleet.domain.states import LaunchStage
from tests.waiting import eventually
from tests.workflow.conftest import LAUNCH, World, error, lasted, refuse, register, silent, start, working
from workflows.launch import LaunchWorkflow


async def waiting_for_its_node(launch: WorkflowHandle[LaunchWorkflow, m.LaunchOutcome]) -> None:
    """The machine runs; nothing but the agent's word is missing."""

    async def waits() -> bool:
        return (await launch.query(LaunchWorkflow.status)).stage is LaunchStage.PROVISIONING

    await eventually(waits)


async def test_the_first_place_has_a_machine(env: WorkflowEnvironment) -> None:
    """READY with exactly one machine."""
    world = World()
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
        assert outcome.stage is LaunchStage.READY
        assert outcome.node_id == ids.node_id(LAUNCH, 1)
        assert outcome.endpoint_url == "http://n:1"
        assert world.machines == {ids.cluster_name(LAUNCH, 1)}
        assert world.calls == ["validate", "plan", "open", "provision", "complete"]


async def test_falls_back_until_a_place_has_capacity(env: WorkflowEnvironment) -> None:
    """Each refusal is closed, torn down for certain and remembered, then the next place is tried."""
    world = World(provision={1: refuse, 2: refuse})
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
    assert outcome.stage is LaunchStage.READY
    assert outcome.attempts == 3
    assert world.machines == {ids.cluster_name(LAUNCH, 3)}
    assert [item.refusal.zone for item in world.closed if item.refusal] == ["us-east-1a", "us-east-1b"]
    assert world.calls.count("terminate") == 2


async def test_fails_when_no_place_is_left(env: WorkflowEnvironment) -> None:
    """FAILED tells of all attempts, and leaves nothing."""
    world = World(provision={1: refuse, 2: refuse, 3: refuse})
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
    assert outcome.stage is LaunchStage.FAILED
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.CAPACITY
    assert "all 3 places" in outcome.error.message
    assert outcome.error.raw.count("raw capacity") == 3
    assert world.machines == set()
    assert world.finished[0].stage is LaunchStage.FAILED


async def test_a_permission_error_stops_at_once(env: WorkflowEnvironment) -> None:
    """An error of the whole cloud is not toured through its regions."""
    auth = error(ErrorKind.AUTH, ErrorScope.CLOUD, retryable=False)
    world = World(provision={1: lambda _: final(auth)})
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
    assert outcome.stage is LaunchStage.FAILED
    assert outcome.attempts == 1
    assert outcome.error == auth


async def test_no_more_attempts_than_allowed(env: WorkflowEnvironment) -> None:
    """`max_attempts` ends a tour."""
    world = World(provision={1: refuse, 2: refuse, 3: refuse})
    async with working(env.client, world):
        outcome = await (await start(env.client, max_attempts=2)).result()
    assert (outcome.stage, outcome.attempts) == (LaunchStage.FAILED, 2)


async def test_an_agent_that_never_registers_is_torn_down_and_the_next_place_tried(env: WorkflowEnvironment) -> None:
    """The registration deadline is separate, and a machine past it is ended."""
    world = World(provision={1: silent})
    async with working(env.client, world):
        launch = await start(env.client, deadlines=Deadlines(registration_seconds=600))
        outcome = await launch.result()
        took = await lasted(launch)
    assert outcome.stage is LaunchStage.READY
    assert outcome.attempts == 2
    assert timedelta(seconds=600) <= took < timedelta(seconds=700)
    first = world.closed[0].error
    assert first is not None
    assert first.kind is ErrorKind.TIMEOUT
    assert world.machines == {ids.cluster_name(LAUNCH, 2)}
    assert world.calls.count("look") == 10  # once a minute


async def test_a_lost_signal_is_found_in_the_database(env: WorkflowEnvironment) -> None:
    """A registration that the database holds counts although no signal came."""
    found = m.NodeRegistered(node_id=ids.node_id(LAUNCH, 1), attempt=1, endpoint_url="http://n:2", at=datetime.now(UTC))
    world = World(provision={1: silent}, look=m.CheckRegistrationResult(registered=found))
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
    assert outcome.stage is LaunchStage.READY
    assert outcome.endpoint_url == "http://n:2"
    assert world.calls.count("look") == 1


async def test_a_machine_that_vanishes_while_waiting_is_noticed(env: WorkflowEnvironment) -> None:
    """Preempted before it registered: the next place, without waiting for the deadline."""
    gone = error(ErrorKind.PREEMPTED)
    world = World(provision={1: silent}, look=m.CheckRegistrationResult(machine_lost=gone))
    async with working(env.client, world):
        outcome = await (await start(env.client)).result()
    assert outcome.stage is LaunchStage.READY
    assert world.closed[0].error == gone


async def test_an_engine_that_cannot_start_ends_the_launch_with_its_log(env: WorkflowEnvironment) -> None:
    """The same arguments would fail anywhere: no tour."""
    world = World(provision={1: silent})
    async with working(env.client, world):
        launch = await start(env.client)
        await world.at("provision")
        await launch.signal(
            LaunchWorkflow.engine_failed,
            m.EngineFailed(node_id=ids.node_id(LAUNCH, 1), attempt=1, detail="exit code 1", log_tail=["no such flag"]),
        )
        outcome = await launch.result()
    assert outcome.stage is LaunchStage.FAILED
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.ENGINE
    assert "no such flag" in outcome.error.raw
    assert (outcome.attempts, world.machines) == (1, set())


@pytest.mark.parametrize("step", ["validate", "plan", "open", "provision"])
async def test_cancel_at_each_stage_leaves_nothing(env: WorkflowEnvironment, step: str) -> None:
    """CANCELLED once the cloud confirmed; an open attempt is torn down, and no step of the way up runs after it."""
    world = World(hold={step: asyncio.Event()})
    async with working(env.client, world):
        launch = await start(env.client)
        await world.at(step)
        answer = await launch.execute_update(LaunchWorkflow.cancel, m.CancelLaunch(requested_by="me"))
        assert answer.stage
        if step != "provision":  # only a provision is waited for; the others are let go
            world.hold[step].set()
        outcome = await launch.result()
    assert outcome.stage is LaunchStage.CANCELLED
    assert world.machines == set()
    assert "complete" not in world.calls
    if step == "provision":
        assert world.calls.index("provision cancelled") < world.calls.index("terminate")


async def test_cancel_while_waiting_for_the_node(env: WorkflowEnvironment) -> None:
    """The machine runs and its agent is silent: a cancel ends it at once."""
    world = World(provision={1: silent})
    async with working(env.client, world):
        launch = await start(env.client)
        await waiting_for_its_node(launch)
        await launch.execute_update(LaunchWorkflow.cancel, m.CancelLaunch(requested_by="me"))
        outcome = await launch.result()
    assert outcome.stage is LaunchStage.CANCELLED
    assert (world.ever, world.machines) == ([ids.cluster_name(LAUNCH, 1)], set())


async def test_cancel_during_the_teardown_of_an_attempt_finishes_the_teardown(env: WorkflowEnvironment) -> None:
    """A cancel between two attempts waits for the first one's machine to be gone."""
    world = World(provision={1: refuse}, hold={"terminate": asyncio.Event()})
    async with working(env.client, world):
        launch = await start(env.client)
        await world.at("terminate")
        await launch.execute_update(LaunchWorkflow.cancel, m.CancelLaunch(requested_by="me"))
        world.hold["terminate"].set()
        outcome = await launch.result()
    assert outcome.stage is LaunchStage.CANCELLED
    assert outcome.attempts == 1
    assert world.machines == set()
    assert world.calls[-1] == "finish"


async def test_cancelling_the_workflow_in_temporal_compensates_too(env: WorkflowEnvironment) -> None:
    """`temporal workflow cancel`, as from the Web UI, leaves nothing behind either."""
    world = World(hold={"provision": asyncio.Event()})
    async with working(env.client, world):
        launch = await start(env.client)
        await world.at("provision")
        await launch.cancel()
        outcome = await launch.result()
    assert outcome.stage is LaunchStage.CANCELLED
    assert world.machines == set()


async def test_a_cancel_that_comes_when_the_node_is_up_is_refused(env: WorkflowEnvironment) -> None:
    """Too late is said, not ignored; the launch ends READY."""
    world = World(hold={"complete": asyncio.Event()})
    async with working(env.client, world):
        launch = await start(env.client)
        await world.at("complete")
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await launch.execute_update(LaunchWorkflow.cancel, m.CancelLaunch(requested_by="me"))
        assert "terminate it instead" in str(refused.value.cause)
        world.hold["complete"].set()
        assert (await launch.result()).stage is LaunchStage.READY


async def test_teardown_that_fails_for_an_hour_is_still_tried(env: WorkflowEnvironment) -> None:
    """The launch is not called cancelled before the cloud confirmed, however long that takes."""
    world = World(provision={1: silent}, teardown_fails=130)
    async with working(env.client, world):
        launch = await start(env.client)
        await waiting_for_its_node(launch)
        await launch.execute_update(LaunchWorkflow.cancel, m.CancelLaunch(requested_by="me"))
        outcome = await launch.result()
        took = await lasted(launch)
    assert outcome.stage is LaunchStage.CANCELLED
    assert timedelta(hours=1) < took < timedelta(hours=2)
    assert world.machines == set()
    assert world.calls.count("terminate") == 131


async def test_signals_of_an_attempt_that_was_given_up_are_not_heard(env: WorkflowEnvironment) -> None:
    """A late registration of attempt 1 does not make attempt 2 READY."""
    world = World(provision={1: refuse, 2: silent})
    async with working(env.client, world):
        launch = await start(env.client, deadlines=Deadlines(registration_seconds=120))
        await eventually(lambda: ids.cluster_name(LAUNCH, 2) in world.ever)
        await register(env.client, 1)
        view = await launch.query(LaunchWorkflow.status)
        assert not view.stage.terminal
        outcome = await launch.result()
    assert outcome.attempts == 3  # the second never registered, the third did
    assert world.machines == {ids.cluster_name(LAUNCH, 3)}
