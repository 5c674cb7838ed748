"""From a typed command to a machine that is gone again, judged by the cloud's ledger."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sysconfig
import uuid
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyfleet.domain.health import Condition
from skyfleet.domain.states import AttemptState, LaunchStage, Market, NodeStatus
from tests.stack import MODEL, RunningStack
from tests.waiting import eventually


def _curl(stack: RunningStack, command: str) -> Any:
    """Run a command as the contract writes it, against the address of this stack; the JSON that it prints."""
    command = command.replace("http://localhost:8080", stack.endpoints.api).replace("curl ", "curl -sS --fail ", 1)
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], "ADMIN_TOKEN": stack.endpoints.admin_token},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def test_the_contracts_commands_work_as_written(stack: RunningStack) -> None:
    accepted = await asyncio.to_thread(
        _curl,
        stack,
        """curl -X POST http://localhost:8080/admin/instances/launch -H "X-Admin-Token: $ADMIN_TOKEN" \\
      -H "Content-Type: application/json" -d '{"model_name": "meta-llama/Llama-3.1-8B-Instruct",
      "provider": "azure", "region": "eastus", "instance_type": "Standard_NV36ads_A10_v5"}'""",
    )
    assert accepted["status"] == "launching"
    job_id = accepted["job_id"]
    assert job_id.startswith("launch-")
    assert accepted["estimated_time"]
    await stack.ready(job_id)
    status = await asyncio.to_thread(
        _curl,
        stack,
        'curl "http://localhost:8080/admin/instances/status?job_id=launch-12345678" '
        '-H "X-Admin-Token: $ADMIN_TOKEN"'.replace("launch-12345678", job_id),
    )
    assert (status["job_id"], status["status"], status["stage"], status["progress"]) == (
        *(job_id, "completed", "READY"),
        100,
    )
    assert status["stages"] == [
        "✓ validating configuration",
        "✓ requesting instance",
        "✓ provisioning instance",
        "✓ installing dependencies",
        "✓ loading model",
        "✓ starting the engine",
        "✓ registering node",
    ]
    assert status["sandbox"] is True
    await stack.let_go(job_id)


async def test_from_request_to_ready_to_chat_to_gone(stack: RunningStack) -> None:
    kind = stack.kind()
    job_id = await stack.launch(kind.aws, use_spot=True)
    view = await stack.ready(job_id)
    assert view.attempt_count == 1
    assert view.market is Market.SPOT
    [machine] = await stack.ledger(job_id)
    assert (machine["name"], machine["state"], machine["owner"]) == (view.cluster_name, "running", "skyfleet")
    assert (machine["region"], machine["instance_type"], machine["market"]) == ("us-east-1", kind.aws, "spot")

    # The node serves, and says itself which model.
    question = {"role": "user", "content": "What does it cost to ask?"}
    said, pieces = "", 0
    async with (
        httpx.AsyncClient(base_url=view.endpoint_url or "", trust_env=False) as http,
        http.stream(
            "POST", "/v1/chat/completions", json={"model": MODEL, "messages": [question], "stream": True}
        ) as reply,
    ):
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                said, pieces = said + (choice["delta"].get("content") or ""), pieces + 1
    assert question["content"] in said
    assert pieces > 3, "the answer did not come as a stream"

    async def beating() -> bool:
        node = await stack.client.node(view.node_id or "")
        return node.last_heartbeat_at is not None and node.health is Condition.HEALTHY

    await eventually(beating, what="heartbeats with a healthy engine")

    await stack.client.terminate(view.cluster_name or "", reason="the test is over")
    await stack.terminated(job_id)
    node = await stack.client.node(view.node_id or "")
    [machine] = await stack.ledger(job_id)
    assert machine["state"] == "terminated"
    # Whoever is quicker: the control plane ends the machine, and tells its agent to power it off.
    assert machine["termination_reason"] in ("requested", "shutdown")
    assert node.status_message == "terminated by admin-token: the test is over"

    # The bill of the control plane is the cloud's.
    assert node.terminated_at == datetime.fromisoformat(machine["terminated_at"])
    attempt = (await stack.client.status(job_id)).attempts[0]
    assert attempt.state is AttemptState.SUCCEEDED
    assert abs(attempt.cost - Decimal(machine["cost"])) < Decimal("0.001")
    await stack.all_owned()


async def test_a_node_is_terminated_only_once_the_ledger_says_so(stack: RunningStack) -> None:
    kind = stack.kind()
    job_id = await stack.launch(kind.aws)
    view = await stack.ready(job_id)
    await stack.bench.kill_agent(view.cluster_name or "")  # it would power its machine off by itself
    where = {"operation": "terminate", "instance_type": kind.aws}
    await stack.bench.add_fault({"delay_before_s": 1.5}, match=where)
    assert (await stack.client.terminate(view.cluster_name or "")).status == "terminating"
    seen: set[tuple[NodeStatus, str]] = set()

    async def gone() -> bool:
        node = await stack.client.node(view.node_id or "")
        [machine] = await stack.ledger(job_id)
        seen.add((node.status, machine["state"]))
        return node.status is NodeStatus.TERMINATED

    await eventually(gone, timeout_s=30, what="terminated")
    assert (NodeStatus.TERMINATING, "running") in seen
    assert {state for status, state in seen if status is NodeStatus.TERMINATED} == {"terminated"}
    assert [machine["termination_reason"] for machine in await stack.ledger(job_id)] == ["requested"]


async def test_a_late_listener_is_told_everything_from_the_start(stack: RunningStack) -> None:
    job_id = await stack.launch(stack.kind().aws)
    live = [event async for event in stack.client.events(job_id)]
    late = await stack.told_once(job_id)
    assert late == live
    stages = [event.stage for event in late if event.kind in ("stage", "end")]
    assert list(dict.fromkeys(stages)) == [
        LaunchStage.QUEUED,
        LaunchStage.VALIDATING,
        LaunchStage.REQUESTING,
        LaunchStage.PROVISIONING,
        LaunchStage.INSTALLING,
        LaunchStage.LOADING_MODEL,
        LaunchStage.STARTING_ENGINE,
        LaunchStage.REGISTERING,
        LaunchStage.READY,
    ]
    half = len(late) // 2
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        http.stream(
            "GET",
            f"{stack.endpoints.api}/admin/instances/launch/{job_id}/events",
            headers={"X-Admin-Token": stack.endpoints.admin_token, "Last-Event-ID": str(half)},
        ) as reply,
    ):
        ids = [int(line.removeprefix("id: ")) async for line in reply.aiter_lines() if line.startswith("id: ")]
    assert ids == list(range(half + 1, len(late) + 1))
    await stack.let_go(job_id)


async def test_twenty_requests_with_one_idempotency_key_are_one_launch(stack: RunningStack) -> None:
    kind, key = stack.kind(), uuid.uuid4().hex
    body = {"model_name": MODEL, "provider": "aws", "region": "us-east-1", "instance_type": kind.aws}
    answers = await asyncio.gather(*(stack.client.launch(body, idempotency_key=key) for _ in range(20)))
    [job_id] = {answer.job_id for answer in answers}
    await stack.ready(job_id)
    assert len(await stack.ledger(job_id)) == 1
    entries = await stack.bench.ledger()
    assert [entry["name"] for entry in entries if entry["instance_type"] == kind.aws] == [
        f"sf-{job_id.removeprefix('launch-')}-1"
    ]
    await stack.let_go(job_id)


async def test_temporals_web_ui_and_search_find_the_launch(stack: RunningStack) -> None:
    job_id = await stack.launch(stack.kind().aws)
    view = await stack.ready(job_id)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as http:
        page = await http.get(view.workflow_url)
        assert page.status_code == 200
        assert "<html" in page.text.lower()
        api = await http.get(f"{stack.endpoints.temporal_ui}/api/v1/namespaces/default")
        assert api.status_code == 200
    temporal = await stack.temporal()

    async def found(query: str, workflow_id: str) -> bool:
        return workflow_id in [execution.id async for execution in temporal.list_workflows(query)]

    place = "SkyfleetCloud = 'aws' AND SkyfleetRegion = 'us-east-1' AND SkyfleetMarket = 'on_demand'"
    launch_workflow = f"WorkflowType = 'LaunchWorkflow' AND SkyfleetStage = 'READY' AND {place}"
    await eventually(lambda: found(launch_workflow, view.workflow_id), what="the launch, by search attributes")
    node_workflow = f"node/{view.node_id}"
    await stack.terminate(job_id)
    await eventually(
        lambda: found("SkyfleetStage = 'TERMINATED' AND ExecutionStatus = 'Completed'", node_workflow),
        what="the node's workflow to have ended",
    )


def _temporal_program() -> Path:
    return Path(sysconfig.get_path("scripts")) / "temporal"


@pytest.mark.skipif(not _temporal_program().exists(), reason="the program `temporal` is not installed")
async def test_temporal_workflow_show_reads_like_the_story_of_the_launch(stack: RunningStack) -> None:
    kind = stack.kind()
    where = {"operation": "create", "instance_type": kind.aws, "zone": "us-east-1a"}
    await stack.bench.add_fault({"real": "InsufficientInstanceCapacity"}, match=where, times=None)
    job_id = await stack.launch(kind.aws, use_spot=True)
    view = await stack.ready(job_id)
    suffix = job_id.removeprefix("launch-")

    def show() -> str:
        done = subprocess.run(
            [
                *(str(_temporal_program()), "workflow", "show", "--workflow-id", view.workflow_id),
                *("--address", stack.endpoints.temporal or "", "--detailed", "--color", "never"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = await asyncio.to_thread(show)
    position = 0
    for line in (
        "attempt 1: where next?",
        "attempt 1: aws/us-east-1/us-east-1a",
        f"attempt 1: machine sf-{suffix}-1",
        "attempt 1 given up",
        f"end sf-{suffix}-1, until the cloud says that it is gone",
        "attempt 2: where next?",
        "attempt 2: aws/us-east-1/us-east-1b",
        f"attempt 2: machine sf-{suffix}-2",
        f"READY: node-{suffix}-2",
    ):
        assert line in shown[position:], f"{line!r} is not told, or not in its place:\n{shown}"
        position = shown.index(line, position)
    await stack.let_go(job_id)
