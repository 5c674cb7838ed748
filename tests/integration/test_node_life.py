"""The life of a node after READY, on a whole stack: drained, replaced, lost, idle, old. The cloud's ledger judges."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import pytest

from skyfleet.client import ApiError
from skyfleet.domain.health import Condition
from skyfleet.domain.states import LaunchStatus, NodeStatus
from skyfleet.domain.views import LaunchStatusView, NodeInfo
from tests.stack import RunningStack, running_stack
from tests.waiting import eventually

WATCHFUL = {
    "SKYFLEET_HEARTBEAT_INTERVAL_SECONDS": "1",  # an agent waits a second for an engine that hangs
    "SKYFLEET_POLL_INTERVAL_SECONDS": "1",
    "SKYFLEET_CLOUD_INTERVAL_SECONDS": "1",
    "SKYFLEET_GRACE_ENGINE_SECONDS": "20",
    "SKYFLEET_GRACE_UNREACHABLE_SECONDS": "2",
    "SKYFLEET_GRACE_SUSPECT_SECONDS": "2",
}


@pytest.fixture(scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """A stack that looks often and has little patience."""
    async with running_stack(tmp_path_factory.mktemp("life"), settings=WATCHFUL) as stack:
        yield stack


async def healthy(stack: RunningStack, job_id: str) -> tuple[LaunchStatusView, NodeInfo]:
    """A launch that is READY, and its node once the watch found it well by all three signals."""
    view = await stack.ready(job_id)

    async def well() -> NodeInfo | None:
        node = await stack.client.node(view.node_id or "")
        sure = node.signals is not None and set(node.signals.values()) == {"yes"}
        return node if sure and node.health is Condition.HEALTHY else None

    node = await eventually(well, timeout_s=20, what="a healthy node")
    assert node is not None
    return view, node


async def replacement(stack: RunningStack, node_id: str) -> str:
    """The launch that was asked for in the node's place."""

    async def asked() -> str | None:
        return (await stack.client.node(node_id)).replaced_by

    found = await eventually(asked, timeout_s=30, what=f"a replacement of {node_id}")
    assert found is not None
    return found


async def kinds(stack: RunningStack, node_id: str) -> list[str]:
    """What the node's history tells, by kind."""
    return [event.kind for event in (await stack.client.node_events(node_id)).events]


async def test_a_drained_node_finishes_its_requests_and_ends(watched: RunningStack) -> None:
    job_id = await watched.launch(watched.kind().aws)
    view, node = await healthy(watched, job_id)
    accepted = await watched.client.drain(node.node_id, reason="maintenance", seconds=60)
    assert accepted.status == NodeStatus.DRAINING
    assert not (await watched.client.node(node.node_id)).routable
    await watched.terminated(job_id)
    ended = await watched.client.node(node.node_id)
    assert ended.status_message == "drained by admin-token: maintenance"
    assert ended.replaced_by is None
    await watched.nothing_left(job_id)
    assert "command" in await kinds(watched, node.node_id)
    with pytest.raises(ApiError, match="its end was asked for"):
        await watched.client.drain(node.node_id)
    assert view.cluster_name == ended.cluster_name


async def test_a_replaced_node_serves_until_the_other_is_ready(watched: RunningStack) -> None:
    job_id = await watched.launch(watched.kind().aws)
    _, node = await healthy(watched, job_id)
    await watched.client.replace(node.node_id, "a newer driver")
    other = await watched.ready(await replacement(watched, node.node_id))
    await watched.terminated(job_id)
    assert "replaced by admin-token: a newer driver" in (await watched.client.node(node.node_id)).status_message
    [old], [new] = await watched.ledger(job_id), await watched.ledger(other.job_id)
    assert new["running_at"] < old["terminated_at"]
    assert (new["instance_type"], new["state"]) == (old["instance_type"], "running")
    await watched.let_go(other.job_id)


async def test_a_node_that_cannot_be_replaced_serves_on(watched: RunningStack) -> None:
    """And may be asked again."""
    kind = watched.kind()
    job_id = await watched.launch(kind.aws)
    _, node = await healthy(watched, job_id)
    refused = await watched.bench.add_fault(
        {"error": {"code": "InsufficientInstanceCapacity"}},
        times=None,
        match={"operation": "create", "instance_type": kind.aws},
    )
    await watched.client.replace(node.node_id)
    failed = await watched.ended(await replacement(watched, node.node_id))
    assert failed.status is LaunchStatus.FAILED

    async def told() -> bool:
        return "serves on, not replaced" in (await watched.client.node(node.node_id)).status_message

    await eventually(told, timeout_s=30, what="the node serving on")
    still = await watched.client.node(node.node_id)
    assert (still.status, still.routable) == (NodeStatus.READY, True)
    await watched.remove_fault(refused)
    await watched.terminate(job_id)


async def test_a_noticed_preemption_is_replaced_before_the_machine_is_gone(watched: RunningStack) -> None:
    """The cloud's own metadata tells the agent: out of rotation at once, another elsewhere, nothing paid in vain."""
    job_id = await watched.launch(watched.kind().aws, use_spot=True, replace_lost=True)
    _, node = await healthy(watched, job_id)
    await watched.bench.preempt(node.cluster_name, notice_s=120)

    async def out_of_rotation() -> bool:
        return not (await watched.client.node(node.node_id)).routable

    await eventually(out_of_rotation, timeout_s=20, what="no requests")
    other = await watched.ready(await replacement(watched, node.node_id))
    await watched.terminated(job_id)  # drained, and ended by us long before the cloud would
    [old], [new] = await watched.ledger(job_id), await watched.ledger(other.job_id)
    assert old["termination_reason"] == "requested"
    assert new["zone"] != old["zone"]
    told = await kinds(watched, node.node_id)
    assert told.index("preemption") < told.index("replacement")
    await watched.let_go(other.job_id)


async def test_a_lost_machine_is_found_and_replaced(watched: RunningStack) -> None:
    """Taken without a notice: silence, a refused poll and the cloud's own word make one verdict."""
    job_id = await watched.launch(watched.kind().aws, use_spot=True, replace_lost=True)
    _, node = await healthy(watched, job_id)
    await watched.bench.preempt(node.cluster_name, notice_s=0)
    other = await watched.ready(await replacement(watched, node.node_id))
    await watched.terminated(job_id)
    events = (await watched.client.node_events(node.node_id)).events
    dead = next(event for event in events if event.message.startswith("dead"))
    assert dead.data["signals"] == {"heartbeat": "no", "engine": "no", "cloud": "no"}
    assert dead.data["routable"] is False
    await watched.nothing_left(job_id)
    [machine] = await watched.living(other.job_id)
    assert machine["market"] == "spot"
    await watched.let_go(other.job_id)


async def test_a_lost_machine_of_a_launch_by_hand_is_ended_and_not_replaced(watched: RunningStack) -> None:
    """Who did not ask for another gets no bill for one."""
    job_id = await watched.launch(watched.kind().aws)
    _, node = await healthy(watched, job_id)
    [machine] = await watched.ledger(job_id)
    await watched.bench.kill_agent(machine["name"])
    await watched.terminated(job_id)
    ended = await watched.client.node(node.node_id)
    assert ended.replaced_by is None
    messages = [event.message for event in (await watched.client.node_events(node.node_id)).events]
    assert any("launched by hand" in message for message in messages)
    await watched.nothing_left(job_id)


async def test_an_engine_that_hangs_takes_its_node_out_of_rotation_and_back(watched: RunningStack) -> None:
    job_id = await watched.launch(watched.kind().aws)
    _, node = await healthy(watched, job_id)
    [machine] = await watched.ledger(job_id)
    folder = str(watched.machine_folder(machine))
    of_engine = {pid: line for pid, line in watched.processes().items() if folder in line and "engine-echo" in line}
    engine = next(pid for pid, line in of_engine.items() if "engine-guard" not in line)
    os.kill(engine, signal.SIGSTOP)

    async def condition() -> tuple[Condition | None, bool]:
        found = await watched.client.node(node.node_id)
        return found.health, found.routable

    async def out() -> bool:
        return await condition() == (Condition.DEGRADED, False)

    async def back() -> bool:
        return await condition() == (Condition.HEALTHY, True)

    try:
        await eventually(out, timeout_s=20, what="a degraded node")
    finally:
        os.kill(engine, signal.SIGCONT)
    await eventually(back, timeout_s=20, what="a healthy node again")
    found = await watched.client.node(node.node_id)
    assert found.health_score is not None
    assert found.health_score < 1.0  # remembered for half an hour
    await watched.let_go(job_id)


async def test_an_idle_node_ends_and_an_old_one_drains(watched: RunningStack) -> None:
    idle, old = await watched.launch(watched.kind().aws), await watched.launch(watched.kind().aws)
    for job_id, column in ((idle, "idle_shutdown_seconds"), (old, "max_life_seconds")):
        _, node = await healthy(watched, job_id)
        async with watched.database() as connection:  # a minute is the least that can be asked for
            await connection.execute(f"UPDATE nodes SET {column} = 2 WHERE id = $1", node.node_id)  # noqa: S608
    await watched.terminated(idle)
    await watched.terminated(old)
    why = {
        job_id: (await watched.client.node((await watched.client.status(job_id)).node_id or "")).status_message
        for job_id in (idle, old)
    }
    assert "idle for" in why[idle]
    assert "it has lived its 2 s" in why[old]
    await watched.nothing_left(idle)
    await watched.nothing_left(old)


async def test_a_cloud_that_errs_for_long_kills_nobody(watched: RunningStack) -> None:
    """An error says nothing: the node stays healthy by its other signals, and the cloud's is unknown."""
    job_id = await watched.launch(watched.kind().aws)
    _, node = await healthy(watched, job_id)
    fault = await watched.bench.add_fault(
        {"error": {"code": "ServiceUnavailable"}}, times=None, match={"operation": "list"}
    )

    async def unknown() -> bool:
        async with watched.database() as connection:
            said = await connection.fetchval("SELECT clouds #>> '{local,error}' FROM fleet_watch")
        return bool(said)

    await eventually(unknown, timeout_s=30, what="an error of the cloud's list")
    found = await watched.client.node(node.node_id)
    assert (found.health, found.status) == (Condition.HEALTHY, NodeStatus.READY)
    await watched.remove_fault(fault)
    await watched.let_go(job_id)
