"""Launches on Slurm, whole: what is shared, what is full, the agent on a node, a chat from outside, the end."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from skyfleet.domain.errors import ErrorKind
from tests.labs.slurm.lab import SlurmLab
from tests.stack import MODEL, RunningStack, running_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
async def cloud(started_slurm_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """`skyfleet up` where the clusters' nodes reach it."""
    lab = started_slurm_lab
    settings = {
        **lab.env,
        "TMPDIR": tempfile.gettempdir(),  # the lab's own is closed to PostgreSQL
        "SKYFLEET_SKYPILOT_SETTLE_SECONDS": "6",
        "SKYFLEET_CLOUD_INTERVAL_SECONDS": "5",
        "SKYFLEET_GRACE_UNREACHABLE_SECONDS": "30",
    }
    # The box has all ports to itself.
    arguments = ["--host", "0.0.0.0", "--api-port", "18080", "--public-url", f"http://{lab.host_address}:18080"]
    async with running_stack(
        tmp_path_factory.mktemp("e2e"), settings=settings, cloud="skypilot", arguments=arguments
    ) as stack:
        yield stack


async def launch(cloud: RunningStack, **body: Any) -> str:
    """Ask for one GPU on cluster alpha; the job id."""
    wanted = {"model_name": MODEL, "provider": "slurm", "region": "alpha", "gpu": "H100", "engine": "echo"}
    return (await cloud.client.launch(wanted | body)).job_id


async def chat(endpoint_url: str) -> Any:
    """One chat request to a node."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "is anybody there?"}]}
        answer = await http.post(f"{endpoint_url}/v1/chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"]


async def empty(lab: SlurmLab) -> None:
    """Nothing is in the queues, and SkyPilot knows of nothing."""

    async def is_empty() -> bool:
        return not await lab.jobs()

    await eventually(is_empty, timeout_s=60, what="empty queues")
    assert "sf-" not in await lab.sky("status")


async def test_two_launches_share_a_machine(cloud: RunningStack, slurm_lab: SlurmLab) -> None:
    """Each has a GPU and a port of its own."""
    jobs = [await launch(cloud) for _ in range(2)]
    views = [await cloud.ready(job_id, timeout_s=240) for job_id in jobs]
    endpoints = [view.endpoint_url for view in views]
    assert [job.nodes for job in await slurm_lab.jobs()] == [("alpha1",)] * 2
    assert len(set(endpoints)) == 2
    for endpoint in endpoints:
        assert endpoint is not None
        assert await chat(endpoint) == "is anybody there?"
    for job_id in jobs:
        await cloud.let_go(job_id)
    for job_id in jobs:
        await cloud.terminated(job_id, timeout_s=120)
    await empty(slurm_lab)


async def test_a_full_cluster_is_left_for_another(cloud: RunningStack, slurm_lab: SlurmLab) -> None:
    await slurm_lab.fill("alpha")
    job_id = await launch(cloud, fallback={"regions": ["beta"]})
    view = await cloud.ready(job_id, timeout_s=240)
    assert [attempt.region for attempt in view.attempts] == ["alpha", "beta"]
    refused = view.attempts[0].error
    assert refused is not None
    assert refused.kind is ErrorKind.CAPACITY
    assert "did not get nodes allocated" in refused.raw
    [job] = await slurm_lab.jobs()
    assert job.cluster == "beta"
    await slurm_lab.cancel(job)  # by an administrator: the node ends
    await cloud.terminated(job_id, timeout_s=180)
    await slurm_lab.free("alpha")
    await empty(slurm_lab)
