"""The clouds that the contract suite runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from skyfleet.clouds.local.client import LocalCloud
from skyfleet.domain.offers import Offer
from tests.contract.under_test import CloudUnderTest
from tests.localcloud.harness import QUICK_WORLD, RunningCloud, request_for, running_cloud


@pytest.fixture(scope="module")
async def local_cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningCloud]:
    """One local cloud for the whole suite."""
    async with running_cloud(tmp_path_factory.mktemp("contract"), config=QUICK_WORLD) as running:
        yield running


@pytest.fixture(params=["local"])
async def under_test(request: pytest.FixtureRequest, local_cloud: RunningCloud) -> AsyncIterator[CloudUnderTest]:
    """Each cloud in turn, with nothing on it. A new implementation adds a parameter and a branch."""
    assert request.param == "local"
    owner = f"contract-{request.node.name}"

    async def exhaust(offer: Offer) -> None:
        await local_cloud.bench.set_capacity(
            0, cloud=offer.cloud, region=offer.region, instance_type=offer.instance_type, market=offer.market.value
        )

    yield CloudUnderTest(
        cloud=local_cloud.client,
        request=lambda offer, name: request_for(offer, name, owner=owner),
        owner=owner,
        exhaust=exhaust,
        unreachable=lambda: LocalCloud("http://127.0.0.1:1"),
        patience_s=20.0,
    )
    for machine in await local_cloud.client.list(owner):
        await local_cloud.client.terminate(machine.name)
    await local_cloud.bench.set_capacity(None)
