"""What outlives a stop of the whole stack, and what the sweep mends. On a stack of its own."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import httpx

from skyfleet.db.repositories import LaunchRepository
from skyfleet.db.repositories.launches import NewLaunch
from skyfleet.db.session import Database
from skyfleet.db.tables import utcnow
from skyfleet.domain import ids
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.states import LaunchStatus, NodeStatus
from tests.stack import MODEL, RunningStack, running_stack
from tests.waiting import eventually


async def test_state_outlives_a_stop_and_the_sweep_mends_what_fell_between(tmp_path: Path) -> None:
    async with running_stack(tmp_path) as stack:
        kind = stack.kind()
        waiting = stack.kind()
        await stack.bench.add_fault({"boot_delay_s": 6}, match={"operation": "create", "instance_type": waiting.aws})
        ready_id = await stack.launch(kind.aws)
        ready = await stack.ready(ready_id)
        story = await stack.story(ready_id)
        under_way = await stack.launch(waiting.aws)
        await stack.event(under_way, lambda event: event.stage == "PROVISIONING")

        assert await stack.stop() == 0
        assert stack.processes() == {}
        assert not (stack.data / "endpoints.json").exists()
        before = utcnow()
        await stack.start()

        # A node: the same machine, and it beats again.
        async def beats() -> bool:
            node = await stack.client.node(ready.node_id or "")
            return node.last_heartbeat_at is not None and node.last_heartbeat_at > before and node.routable

        await eventually(beats, timeout_s=45, what="heartbeats after the restart")
        [machine] = await stack.ledger(ready_id)
        assert (machine["name"], machine["state"]) == (ready.cluster_name, "running")
        async with httpx.AsyncClient(trust_env=False) as http:
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "still there?"}]}
            answer = await http.post(f"{ready.endpoint_url}/v1/chat/completions", json=chat)
        assert "still there?" in answer.json()["choices"][0]["message"]["content"]
        assert await stack.story(ready_id) == story
        # A launch: it goes on where it was.
        went_on = await stack.ready(under_way, timeout_s=60)
        assert went_on.attempt_count == 1
        assert len(await stack.ledger(under_way)) == 1
        await stack.told_once(under_way)

        await _a_lost_start_is_started(stack)
        await _a_lost_cancel_is_delivered(stack)
        await _a_lost_termination_is_delivered(stack, ready_id)
        await stack.all_owned()


async def _a_lost_start_is_started(stack: RunningStack) -> None:
    """The API died between the commit of the intent and the start of the workflow."""
    spec = LaunchSpec(model_name=MODEL, provider="aws", region="us-east-1", instance_type=stack.kind().aws)
    job_id = ids.new_launch_id()
    launch = NewLaunch(
        id=job_id,
        tenant="default",
        principal="admin-token",
        idempotency_key=None,
        request_hash="0" * 64,
        spec=spec.model_dump(mode="json"),
        model_name=MODEL,
        deployment=None,
        engine=None,
        sandbox=True,
        audit_detail={},
        remote=None,
        created_at=utcnow() - timedelta(seconds=6),  # an intent younger than 5 s is still on its way
    )
    database = Database(stack.database_url)
    async with database.transaction() as session:
        await LaunchRepository(session).add_all([launch])
    await database.aclose()
    await stack.ready(job_id, timeout_s=30)
    assert len(await stack.ledger(job_id)) == 1
    await stack.told_once(job_id)


async def _a_lost_cancel_is_delivered(stack: RunningStack) -> None:
    """It was written down, and the workflow never heard of it."""
    kind = stack.kind()
    await stack.bench.add_fault({"boot_delay_s": 60}, match={"operation": "create", "instance_type": kind.aws})
    job_id = await stack.launch(kind.aws)
    await stack.event(job_id, lambda event: event.stage == "PROVISIONING")
    async with stack.database() as database:
        await database.execute(
            "UPDATE launches SET cancel_requested_at = now() - interval '6 seconds', cancel_requested_by = 'tests' "
            "WHERE id = $1",
            job_id,
        )
    assert (await stack.ended(job_id)).status is LaunchStatus.CANCELLED
    await stack.nothing_left(job_id)


async def _a_lost_termination_is_delivered(stack: RunningStack, job_id: str) -> None:
    async with stack.database() as database:
        await database.execute(
            "UPDATE nodes SET terminate_requested_at = now() - interval '6 seconds', terminate_requested_by = 'tests' "
            "WHERE launch_id = $1",
            job_id,
        )
    await stack.terminated(job_id)
    node = await stack.client.node((await stack.client.status(job_id)).node_id or "")
    assert (node.status, node.status_message) == (NodeStatus.TERMINATED, "terminated by tests")
    assert await stack.living(job_id) == []
