"""A launch on AWS, whole: the command line, fall-back, the agent on the machine, a chat from outside, the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from skyfleet.domain.states import LaunchStatus
from tests.labs.aws.conftest import QUICK
from tests.labs.aws.lab import AwsLab
from tests.stack import MODEL, RunningStack, running_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]


@pytest.fixture(scope="module")
async def cloud(
    started_aws_lab_with_machines: AwsLab, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningStack]:
    """`skyfleet up` where the lab's machines reach it."""
    lab = started_aws_lab_with_machines
    settings = {**lab.env, **QUICK, "TMPDIR": tempfile.gettempdir()}
    # The box has all ports to itself.
    arguments = ["--host", "0.0.0.0", "--api-port", "18080", "--public-url", f"http://{lab.host_address}:18080"]
    async with running_stack(
        tmp_path_factory.mktemp("e2e"), settings=settings, cloud="skypilot", arguments=arguments
    ) as stack:
        yield stack


async def skyfleet(stack: RunningStack, *arguments: str) -> tuple[int, str]:
    """A command at a terminal: its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skyfleet.cli", "--data", str(stack.data), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **{key: value for key, value in stack.environment.items() if key == "PYTHONPATH"}},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def chat(endpoint_url: str) -> Any:
    """One chat request to a node."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "is anybody there?"}]}
        answer = await http.post(f"{endpoint_url}/v1/chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"]


async def empty(lab: AwsLab) -> None:
    """Nothing runs in the cloud, and SkyPilot knows of nothing."""

    async def is_empty() -> bool:
        return not await lab.running()

    await eventually(is_empty, timeout_s=90, what="an empty ledger")
    assert "sf-" not in await lab.sky("status")


async def test_a_launch_falls_back_over_regions_and_answers(cloud: RunningStack, aws_lab_with_machines: AwsLab) -> None:
    lab = aws_lab_with_machines
    await lab.fault("InsufficientInstanceCapacity", region="us-east-1", market="spot")
    await lab.fault("InsufficientInstanceCapacity", region="us-east-2")
    code, output = await skyfleet(
        cloud,
        *("launch", MODEL, "--provider", "aws", "--region", "us-east-1", "--gpu", "A10G", "--spot", "--engine", "echo"),
        *("--fallback-region", "us-east-2", "--fallback-region", "us-west-2", "--fallback-on-demand"),
        *("--instance-type", "g5.xlarge", "--json"),
    )
    assert code == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    view = lines[-1]
    assert view["type"] == "status"
    assert view["stage"] == "READY"
    tried = [(one["region"], one["market"]) for one in view["attempts"]]
    assert tried[0] == ("us-east-1", "spot")
    assert ("us-east-2", "spot") in tried
    assert all(one["error"]["kind"] == "capacity" for one in view["attempts"][:-1])
    [machine] = await lab.running()
    assert (machine.region, machine.instance_type) == (view["region"], "g5.xlarge")
    assert machine.public_ip is not None
    assert machine.public_ip in view["endpoint_url"]
    assert "is anybody there?" in await chat(view["endpoint_url"])
    told = {line.get("data", {}).get("milestone") for line in lines}
    assert {"asked", "accepted", "ssh", "runtime", "submitted"} <= told
    code, output = await skyfleet(cloud, "terminate", view["node_id"], "--wait")
    assert code == 0, output
    await empty(lab)


async def test_a_cancel_while_the_machine_is_set_up(cloud: RunningStack, aws_lab_with_machines: AwsLab) -> None:
    job_id = await cloud.launch("g5.xlarge", engine="echo")
    await cloud.event(job_id, lambda event: event.data.get("milestone") == "runtime", timeout_s=120)
    await cloud.client.cancel(job_id)
    assert (await cloud.ended(job_id, timeout_s=120)).status is LaunchStatus.CANCELLED
    await empty(aws_lab_with_machines)


async def test_a_node_whose_machine_is_taken_ends(cloud: RunningStack, aws_lab_with_machines: AwsLab) -> None:
    job_id = await cloud.launch("g5.xlarge", engine="echo", use_spot=True)
    await cloud.ready(job_id, timeout_s=180)
    [machine] = await aws_lab_with_machines.running()
    await aws_lab_with_machines.preempt(machine.id)
    await cloud.terminated(job_id, timeout_s=180)
    await empty(aws_lab_with_machines)


async def test_no_secret_is_where_people_look(cloud: RunningStack, aws_lab_with_machines: AwsLab) -> None:
    """Neither the launch's environment nor its token is in Temporal, in our logs or in what SkyPilot shows."""
    lab, secret = aws_lab_with_machines, "hf_thisIsTheSecretOfTheTest"
    job_id = await cloud.launch("g5.xlarge", engine="echo", env={"HF_TOKEN": secret})
    await cloud.event(job_id, lambda event: event.data.get("milestone") == "ssh", timeout_s=120)
    seen = [file.read_text(errors="replace") for file in (cloud.data / "logs").iterdir()]
    seen += [await lab.sky("status", "--verbose"), (lab.folder / "skypilot.log").read_text(errors="replace")]
    seen += [file.read_text(errors="replace") for file in (lab.home / "sky_logs").rglob("*.log")]
    client = await cloud.temporal()
    seen.append(str(await client.get_workflow_handle(f"launch/{job_id}").fetch_history()))
    assert not [text for text in seen if secret in text]
    await cloud.client.cancel(job_id)
    assert (await cloud.ended(job_id, timeout_s=120)).status is LaunchStatus.CANCELLED
    await empty(lab)
