"""What every `Cloud` keeps, kept by SkyPilot on the lab's AWS with machines. The tests are `tests/contract`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from skyfleet.db.session import Database
from skyfleet.domain.offers import Offer
from tests.contract.test_cloud_contract import *  # noqa: F403 - the whole suite
from tests.contract.under_test import CloudUnderTest
from tests.labs.aws.lab import AwsLab
from tests.labs.contract import skypilot_under_test, use_here

pytestmark = [pytest.mark.slow, pytest.mark.lab]


@pytest.fixture(scope="module")
def skypilot_here(started_aws_lab_with_machines: AwsLab) -> None:
    """SkyPilot's SDK in this process speaks to the lab's server."""
    use_here(started_aws_lab_with_machines)


@pytest.fixture
async def under_test(
    request: pytest.FixtureRequest, skypilot_here: None, aws_lab_with_machines: AwsLab, database: Database
) -> AsyncIterator[CloudUnderTest]:
    """SkyPilot, with nothing on it."""
    lab = aws_lab_with_machines

    async def exhaust(offer: Offer) -> None:
        await lab.fault("InsufficientInstanceCapacity", instance_type=offer.instance_type, region=offer.region)

    async with skypilot_under_test(lab, request.node.name, database, exhaust) as under:
        yield under
        await lab.clear_faults()
    assert await lab.running() == []
