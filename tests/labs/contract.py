"""SkyPilot on a lab, as the contract suite (`tests/contract`) wants a cloud."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from skyfleet.clouds.base import Cloud
from skyfleet.db.session import Database
from skyfleet.domain.offers import Offer
from tests.contract.under_test import CloudUnderTest
from tests.localcloud.harness import request_for
from worker import GivenUpNames

_ENDPOINT = "SKYPILOT_API_SERVER_ENDPOINT"


class Lab(Protocol):
    """What is needed of a lab."""

    @property
    def endpoint(self) -> str:
        """The address of SkyPilot's API server."""
        ...

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that asks it."""
        ...


def use_here(lab: Lab) -> None:
    """Let SkyPilot's SDK in this process speak to the lab. Before its first import, and one lab to a process."""
    os.environ.update({name: value for name, value in lab.env.items() if name != "TMPDIR"})


@asynccontextmanager
async def skypilot_under_test(
    lab: Lab, test: str, database: Database, exhaust: Callable[[Offer], Awaitable[None]]
) -> AsyncIterator[CloudUnderTest]:
    """SkyPilot with nothing on it, for the test of that name; what the test leaves is terminated at the end."""
    from sky.server.common import get_server_url

    from skyfleet.clouds.skypilot.cloud import SkyPilotCloud
    from skyfleet.clouds.skypilot.server import SkyPilotServer
    from skyfleet.clouds.skypilot.task import NodeDefaults

    owner = f"contract-{hashlib.sha256(test.encode()).hexdigest()[:8]}"
    node = NodeDefaults(port=8000, disk_gb=100, image=None, autostop_minutes=10)

    def cloud() -> SkyPilotCloud:
        return SkyPilotCloud(SkyPilotServer(owner), GivenUpNames(database), node, settle_s=6.0, throttle_s=5.0)

    def unreachable() -> Cloud:
        os.environ[_ENDPOINT] = "http://127.0.0.1:1"
        get_server_url.cache_clear()
        return cloud()

    living = cloud()
    try:
        yield CloudUnderTest(
            cloud=living,
            request=lambda offer, name: request_for(offer, name, owner=owner, virtual=False),
            owner=owner,
            exhaust=exhaust,
            unreachable=unreachable,
            patience_s=180.0,
        )
    finally:
        os.environ[_ENDPOINT] = lab.endpoint
        get_server_url.cache_clear()
        for machine in await living.list(owner):
            await living.terminate(machine.name)
        await living.aclose()
