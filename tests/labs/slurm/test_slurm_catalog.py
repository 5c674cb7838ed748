"""What SkyPilot's catalog makes of clusters of one's own: their nodes in parts, at the price that a person set."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from skyfleet.domain.offers import CloudAccess, Offer
from tests.labs.slurm.clusters import CLUSTERS, GPU, GPUS
from tests.labs.slurm.lab import PRICE, SlurmLab
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.timeout(600)]

#: In a process of its own: SkyPilot's SDK knows one server.
_READ = """
import asyncio, sys
from pydantic import TypeAdapter
from skyfleet.clouds.skypilot.server import SkyPilotServer
from skyfleet.clouds.skypilot.catalog import SkyPilotCatalog
from skyfleet.domain.offers import CloudAccess, Offer

async def read():
    catalog = SkyPilotCatalog(SkyPilotServer("catalog-test"))
    return await catalog.access(), await catalog.offers()

sys.stdout.buffer.write(TypeAdapter(tuple[list[CloudAccess], list[Offer]]).dump_json(asyncio.run(read())))
"""


def read(lab: SlurmLab) -> tuple[list[CloudAccess], list[Offer]]:
    """Access and offers, as a worker that uses this lab's SkyPilot finds them."""
    run = subprocess.run([sys.executable, "-c", _READ], env=lab.env, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr.decode()
    access, offers = json.loads(run.stdout.splitlines()[-1])
    return [CloudAccess(**one) for one in access], [Offer(**one) for one in offers]


async def test_clusters_of_ones_own_are_on_sale_in_parts(slurm_lab: SlurmLab) -> None:
    access, offers = read(slurm_lab)
    assert [one.cloud for one in access if one.enabled] == ["slurm"]
    assert "not in allowed_clouds of SkyPilot's configuration" in {one.reason for one in access if one.cloud == "aws"}

    assert {offer.region for offer in offers} == set(CLUSTERS)
    counts = sorted(offer.gpu_count for offer in offers if (offer.region, offer.zone) == ("alpha", "gpu"))
    assert counts[0] == 1
    assert counts[-1] == GPUS
    for offer in offers:
        assert (offer.gpu, offer.gpu_memory_gb) == ("H100", 80)
        assert offer.hourly_price == offer.gpu_count * PRICE
        assert offer.vcpus > 0
        assert offer.memory_gb > 0


async def test_an_instance_type_of_the_catalog_can_be_launched(slurm_lab: SlurmLab) -> None:
    offers = [offer for offer in read(slurm_lab)[1] if (offer.region, offer.zone) == ("alpha", "gpu")]
    whole = max(offers, key=lambda offer: offer.gpu_count)
    wanted = ("--infra", "slurm/alpha/gpu", "--instance-type", whole.instance_type, "--cluster", "part")
    assert "Cluster launched: part" in await slurm_lab.sky("launch", "--yes", "--detach-run", *wanted, "sleep infinity")
    [job] = await slurm_lab.jobs()
    described = await slurm_lab.run("alpha", "scontrol", "--oneliner", "show", "job", str(job.id))
    for part in (f"NumCPUs={whole.vcpus} ", f"mem={whole.memory_gb:g}G,", f"TresPerNode=gres:gpu:{GPU}:{GPUS} "):
        assert part in described
    await slurm_lab.sky("down", "--yes", "part")
    await eventually(lambda: _empty(slurm_lab), what="an empty queue")


async def _empty(lab: SlurmLab) -> bool:
    return not await lab.jobs()
