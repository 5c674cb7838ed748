"""Registrations that are forged, sent again, or late."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

import httpx

from skyfleet.domain.states import LaunchStage, LaunchStatus
from tests.stack import MODEL, RunningStack
from tests.waiting import eventually


async def _register(stack: RunningStack, node_id: str, **body: Any) -> httpx.Response:
    """Register as the agent of a machine on AWS, us-east-1, on-demand would."""
    said = {
        "provider": "aws",
        "region": "us-east-1",
        "model_name": MODEL,
        "endpoint_url": "http://127.0.0.1:9",
        "gpu_type": None,
        "spot_instance": False,
    }
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(
            f"{stack.endpoints.api}/admin/nodes/register", params={"node_id": node_id}, json=said | body
        )


async def _audited(stack: RunningStack, node_id: str, action: str) -> list[tuple[str, str | None]]:
    audit = await stack.client.audit(action=action, subject=node_id)
    return [(entry.outcome, entry.remote) for entry in audit.entries]


async def test_a_forged_token_is_refused_and_the_launch_goes_on(stack: RunningStack) -> None:
    kind = stack.kind()
    job_id = await stack.launch(kind.aws, engine_args={"--start-delay-s": 1.5})
    node_id = f"node-{job_id.removeprefix('launch-')}-1"
    await stack.event(job_id, lambda event: event.stage == "LOADING_MODEL")
    answer = await _register(stack, node_id, instance_type=kind.aws, registration_token="guessed")
    assert answer.status_code == 401
    assert await _audited(stack, node_id, "node.register.forged") == [("refused", "127.0.0.1")]
    assert (await stack.client.status(job_id)).status is LaunchStatus.IN_PROGRESS
    unknown = await _register(stack, "node-000000000000-1", instance_type=kind.aws, registration_token="guessed")
    assert unknown.status_code == 404
    view = await stack.ready(job_id)
    assert view.node_id == node_id
    assert view.endpoint_url != "http://127.0.0.1:9"
    await stack.let_go(job_id)


async def test_a_token_that_was_used_is_refused(stack: RunningStack) -> None:
    kind = stack.kind()
    job_id = await stack.launch(kind.aws)
    view = await stack.ready(job_id)
    node_id = view.node_id or ""
    [machine] = await stack.ledger(job_id)
    boot = json.loads((stack.machine_folder(machine) / "boot.json").read_text())
    answer = await _register(stack, node_id, instance_type=kind.aws, registration_token=boot["registration_token"])
    assert answer.status_code == 401
    assert "used before" in answer.json()["detail"]
    assert await _audited(stack, node_id, "node.register.replayed") == [("refused", "127.0.0.1")]
    assert (await stack.client.node(node_id)).endpoint_url == view.endpoint_url
    before = (await stack.client.node(node_id)).last_heartbeat_at

    async def beats_on() -> bool:
        return (await stack.client.node(node_id)).last_heartbeat_at not in (None, before)

    await eventually(beats_on, what="the true node's next heartbeat")
    await stack.let_go(job_id)


async def test_an_agent_that_comes_too_late_powers_its_machine_off(stack: RunningStack) -> None:
    """The attempt was given up, and the cloud does not end the machine: the agent does."""
    kind = stack.kind()
    where = {"operation": "terminate", "instance_type": kind.aws}
    rule = await stack.bench.add_fault({"real": "InternalError"}, match=where, times=None)
    job_id = await stack.launch(
        kind.aws, engine_args={"--start-delay-s": 2.5}, deadlines={"registration_seconds": 1.0}, max_attempts=1
    )
    await stack.event(job_id, lambda event: event.stage is LaunchStage.TEARING_DOWN)

    async def off() -> bool:
        return [machine["state"] for machine in await stack.ledger(job_id)] == ["terminated"]

    await eventually(off, timeout_s=30, what="the agent to power its machine off")
    [machine] = await stack.ledger(job_id)
    assert machine["termination_reason"] == "shutdown"
    # What it said before it was told: the next stage it reached, or its registration.
    assert (await stack.client.nodes()).nodes == [] or job_id not in {
        node.launch_id for node in (await stack.client.nodes()).nodes
    }
    await stack.remove_fault(rule)
    view = await stack.ended(job_id)
    assert view.status is LaunchStatus.TIMEOUT
    await stack.nothing_left(job_id)


async def test_a_registration_of_an_attempt_that_was_given_up_is_gone_and_audited(stack: RunningStack) -> None:
    kind = stack.kind()
    await stack.bench.add_fault(
        {"agent_dead": True}, match={"operation": "create", "instance_type": kind.aws}, times=None
    )
    where = {"operation": "terminate", "instance_type": kind.aws}
    rule = await stack.bench.add_fault({"real": "InternalError"}, match=where, times=None)
    job_id = await stack.launch(kind.aws, deadlines={"registration_seconds": 0.5}, max_attempts=1)
    await stack.event(job_id, lambda event: event.stage is LaunchStage.TEARING_DOWN)
    [machine] = await stack.living(job_id)
    token = await asyncio.to_thread(_token_of, stack, machine)
    node_id = f"node-{job_id.removeprefix('launch-')}-1"
    answer = await _register(stack, node_id, instance_type=kind.aws, registration_token=token)
    assert answer.status_code == 410
    assert "shut the machine down" in answer.json()["detail"]
    assert await _audited(stack, node_id, "node.register.late") == [("refused", "127.0.0.1")]
    await stack.remove_fault(rule)
    assert (await stack.ended(job_id)).status is LaunchStatus.TIMEOUT
    await stack.nothing_left(job_id)


def _token_of(stack: RunningStack, machine: dict[str, Any]) -> str:
    """The registration token that a machine was created with, as the ledger keeps it while the machine lives."""
    with sqlite3.connect(f"file:{stack.data}/local-cloud/ledger.sqlite3?mode=ro", uri=True) as ledger:
        [boot] = ledger.execute("SELECT boot FROM machines WHERE name = ?", (machine["name"],)).fetchone()
    return str(json.loads(boot)["registration_token"])
