"""What every `Cloud` keeps, kept by SkyPilot on the lab's Slurm clusters. The tests are `tests/contract`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from skyfleet.db.session import Database
from skyfleet.domain.offers import Offer
from tests.contract.test_cloud_contract import *  # noqa: F403 - the whole suite
from tests.contract.under_test import CloudUnderTest
from tests.labs.contract import skypilot_under_test, use_here
from tests.labs.slurm.clusters import CLUSTERS
from tests.labs.slurm.lab import SlurmLab
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]


@pytest.fixture(scope="module")
def skypilot_here(started_slurm_lab: SlurmLab) -> None:
    """SkyPilot's SDK in this process speaks to the lab's server."""
    use_here(started_slurm_lab)


@pytest.fixture
async def under_test(
    request: pytest.FixtureRequest, skypilot_here: None, slurm_lab: SlurmLab, database: Database
) -> AsyncIterator[CloudUnderTest]:
    """SkyPilot, with nothing in the queues."""

    async def exhaust(offer: Offer) -> None:
        await slurm_lab.fill(offer.region)

    async def queues_empty() -> bool:
        return not await slurm_lab.jobs()

    async with skypilot_under_test(slurm_lab, request.node.name, database, exhaust) as under:
        yield under
        for cluster in CLUSTERS:
            await slurm_lab.free(cluster)
    # Slurm is a moment at ending a job.
    await eventually(queues_empty, what="empty queues")
