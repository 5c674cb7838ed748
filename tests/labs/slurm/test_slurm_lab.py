"""The lab itself: real Slurm clusters, on which SkyPilot's launches are jobs."""

from __future__ import annotations

import subprocess

import httpx
import pytest

from tests.labs.slurm.lab import Job, SlurmLab
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.timeout(600)]


async def launch(lab: SlurmLab, name: str, infra: str, command: str, gpus: str = "H100:1") -> str:
    """SkyPilot's words about a launch whose task is that command; it is left running."""
    wanted = ("--infra", infra, "--gpus", gpus, "--cpus", "4", "--memory", "8", "--cluster", name)
    return await lab.sky("launch", "--yes", "--detach-run", *wanted, command)


async def only_job(lab: SlurmLab) -> Job:
    """The one job in the queues."""
    [job] = await lab.jobs()
    return job


async def queue_empty(lab: SlurmLab) -> bool:
    return not await lab.jobs()


async def test_a_launch_is_a_job_on_a_node_with_an_address_of_its_own(slurm_lab: SlurmLab) -> None:
    serve = "(hostname; id -un; echo $CUDA_VISIBLE_DEVICES) >name; exec python3 -m http.server 8000"
    assert "Cluster launched: whole" in await launch(slurm_lab, "whole", "slurm/alpha/gpu", serve, "H100:2")
    job = await only_job(slurm_lab)
    assert job.name.startswith("whole-")
    assert (job.cluster, job.state, job.partition, job.nodes) == ("alpha", "RUNNING", "gpu", ("alpha1",))
    address = (await slurm_lab.run("alpha", "getent", "hosts", "alpha1")).split()[0]

    async def answer() -> str:
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"http://{address}:8000/name")).text
        except httpx.TransportError:
            return ""

    assert (await eventually(answer, what="an answer of the task")).split() == ["alpha1", "researcher", "0,1"]
    await slurm_lab.sky("down", "--yes", "whole")
    await eventually(lambda: queue_empty(slurm_lab), what="an empty queue")


async def test_a_full_cluster_refuses_and_another_does_not(slurm_lab: SlurmLab) -> None:
    await slurm_lab.fill("alpha")
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        await launch(slurm_lab, "refused", "slurm/alpha", "true")
    assert "Failed to acquire resources in gpu" in refusal.value.output
    assert "did not get nodes allocated within 6 seconds" in await slurm_lab.sky("logs", "--provision", "refused")
    await eventually(lambda: queue_empty(slurm_lab), what="an empty queue")
    await launch(slurm_lab, "granted", "slurm/beta", "sleep infinity")
    assert (await only_job(slurm_lab)).nodes == ("beta1",)
    await slurm_lab.free("alpha")
    assert (await only_job(slurm_lab)).cluster == "beta"
    await slurm_lab.sky("down", "--yes", "granted")
