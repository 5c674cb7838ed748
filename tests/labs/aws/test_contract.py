"""What every `Cloud` keeps, kept by SkyPilot on the lab's AWS with machines. The tests are `tests/contract`'s."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from skyfleet.clouds.base import Cloud
from skyfleet.db.session import Database
from skyfleet.domain.offers import Offer
from tests.contract.test_cloud_contract import *  # noqa: F403 - the whole suite
from tests.contract.under_test import CloudUnderTest
from tests.labs.aws.lab import AwsLab
from tests.localcloud.harness import request_for
from worker import GivenUpNames

pytestmark = [pytest.mark.slow, pytest.mark.lab]


@pytest.fixture(scope="module")
def skypilot_here(started_aws_lab_with_machines: AwsLab) -> None:
    """SkyPilot's SDK in this process, which is the box's only one with it, speaks to the lab's server."""
    os.environ.update({name: value for name, value in started_aws_lab_with_machines.env.items() if name != "TMPDIR"})


@pytest.fixture
async def under_test(
    request: pytest.FixtureRequest, skypilot_here: None, aws_lab_with_machines: AwsLab, database: Database
) -> AsyncIterator[CloudUnderTest]:
    """SkyPilot, with nothing on it."""
    from sky.server.common import get_server_url

    from skyfleet.clouds.skypilot.cloud import SkyPilotCloud
    from skyfleet.clouds.skypilot.server import SkyPilotServer
    from skyfleet.clouds.skypilot.task import NodeDefaults

    lab = aws_lab_with_machines
    owner = f"contract-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    node = NodeDefaults(port=8000, disk_gb=100, image=None, autostop_minutes=10)

    def cloud() -> SkyPilotCloud:
        return SkyPilotCloud(SkyPilotServer(owner), GivenUpNames(database), node, settle_s=6.0, throttle_s=5.0)

    async def exhaust(offer: Offer) -> None:
        await lab.fault("InsufficientInstanceCapacity", instance_type=offer.instance_type, region=offer.region)

    def unreachable() -> Cloud:
        os.environ["SKYPILOT_API_SERVER_ENDPOINT"] = "http://127.0.0.1:1"
        get_server_url.cache_clear()
        return cloud()

    living = cloud()
    yield CloudUnderTest(
        cloud=living,
        request=lambda offer, name: request_for(offer, name, owner=owner, virtual=False),
        owner=owner,
        exhaust=exhaust,
        unreachable=unreachable,
        patience_s=180.0,
    )
    os.environ["SKYPILOT_API_SERVER_ENDPOINT"] = lab.endpoint
    get_server_url.cache_clear()
    await lab.clear_faults()
    for machine in await living.list(owner):
        await living.terminate(machine.name)
    await living.aclose()
    assert await lab.running() == []
