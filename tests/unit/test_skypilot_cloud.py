"""What `SkyPilotCloud` makes of what SkyPilot's server says. The server itself is a stand-in here: the same class runs
against the real one in the contract suite (`tests/contract`) and on the labs (`tests/labs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from skyfleet.clouds.skypilot import labels
from skyfleet.clouds.skypilot.cloud import SkyPilotCloud
from skyfleet.clouds.skypilot.names import NameGivenUp
from skyfleet.clouds.skypilot.server import Cluster, ClusterState, LaunchRequest, RequestState, SkyPilotServer
from skyfleet.clouds.skypilot.task import NodeDefaults
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CreateRequest, InstanceState, Offer
from skyfleet.domain.states import Market
from tests.localcloud.harness import request_for

_ASKED = "D 11-24 00:18:24.562 PID=2 provisioner.py:281] ===== Provisioning ====="
_ACCEPTED = f"{_ASKED}\nD 11-24 00:18:24.562 PID=2 provisioner.py:144] Waiting for instances of 'm' to be ready..."
_SETTLE_S = 0.2

OFFER = Offer(
    backend="skypilot",
    cloud="aws",
    region="us-east-1",
    instance_type="g5.xlarge",
    market=Market.SPOT,
    hourly_price=Decimal("0.4021"),
)


class Server:
    """SkyPilot's server, as far as it is told what to say."""

    def __init__(self) -> None:
        self.record: Cluster | None = None
        self.machine = True  # what a refresh finds
        self.requests: list[LaunchRequest] = []
        self.log = ""
        self.job = False
        self.failure: Exception = RuntimeError("nothing failed")
        self.did: list[str] = []
        self.down_at: datetime | None = None

    async def launch(self, task: dict[str, Any], name: str) -> str:
        self.did.append("launch")
        self.request(RequestState.RUNNING)
        return self.requests[-1].id

    async def launches(self, name: str) -> list[LaunchRequest]:
        return list(self.requests)

    async def cluster(self, name: str, *, refresh: bool = False) -> Cluster | None:
        if refresh:
            self.did.append("refresh")
            if not self.machine:
                self.record = None
        return self.record

    async def clusters(self, *, refresh: bool = False) -> list[Cluster]:
        return [self.record] if self.record else []

    async def has_job(self, name: str) -> bool:
        self.did.append("queue")
        return self.job

    async def provision_log(self, name: str) -> str:
        return self.log

    async def outcome(self, request_id: str) -> Exception | None:
        return self.failure

    async def cancel(self, request_ids: list[str]) -> None:
        self.did.append("cancel")
        for number, request in enumerate(self.requests):
            if request.id in request_ids:
                ended = LaunchRequest(request.id, RequestState.CANCELLED, request.created_at, datetime.now(UTC))
                self.requests[number] = ended

    async def down(self, name: str) -> None:
        self.did.append("down")
        self.down_at = datetime.now(UTC)
        self.record = None

    def close(self) -> None: ...

    def request(self, state: RequestState, ago_s: float = 0.0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=ago_s)
        self.requests.append(LaunchRequest(f"r{len(self.requests)}", state, at, None if state.active else at))

    def has(self, state: ClusterState, ago_s: float = 60.0) -> None:
        self.record = Cluster(
            name="m",
            name_on_cloud="m-12345678",
            state=state,
            launched_at=datetime.now(UTC) - timedelta(seconds=ago_s),
            cloud="aws",
            region="us-east-1",
            zone="us-east-1b",
            instance_type="g5.xlarge",
            spot=True,
            address="54.1.2.3",
            labels={
                labels.OWNER: "tests",
                labels.OFFER: labels.offer_value(OFFER),
                labels.PRICE: labels.price_value(OFFER),
            },
        )


class Names:
    """Names in memory."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    @asynccontextmanager
    async def asking(self, name: str) -> AsyncIterator[None]:
        if name in self.gone:
            raise NameGivenUp(name)
        yield

    async def give_up(self, name: str) -> None:
        self.gone.add(name)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def cloud(server: Server) -> SkyPilotCloud:
    node = NodeDefaults(port=8000, disk_gb=100, image=None, autostop_minutes=10)
    return SkyPilotCloud(cast(SkyPilotServer, server), Names(), node, settle_s=_SETTLE_S, throttle_s=0.0)


def asked(offer: Offer = OFFER) -> CreateRequest:
    return request_for(offer, "m", virtual=False)


async def test_up_is_not_ready(server: Server, cloud: SkyPilotCloud) -> None:
    """A refresh of what a killed launch left can say UP; without a job nothing was ever set up there."""
    server.has(ClusterState.UP)
    machine = await cloud.get("m")
    assert machine is not None
    assert machine.state is InstanceState.PENDING
    assert machine.running_at is None
    server.log = _ACCEPTED
    assert await cloud.create(asked()) is not None
    assert "launch" in server.did


async def test_up_with_a_job_is_running_after_a_restart_of_the_server(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.UP)
    server.job = True
    machine = await cloud.get("m")
    assert machine is not None
    assert machine.state is InstanceState.RUNNING
    assert (await cloud.create(asked())).state is InstanceState.RUNNING
    assert "launch" not in server.did
    assert server.did.count("queue") == 1  # over SSH: found out once


async def test_what_the_record_says_is_asked_of_the_cloud(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.UP)
    server.request(RequestState.SUCCEEDED, ago_s=600)
    server.machine = False
    assert await cloud.get("m") is None


async def test_a_launch_that_just_succeeded_is_believed(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.UP)
    server.request(RequestState.SUCCEEDED)
    machine = await cloud.get("m")
    assert machine is not None
    assert machine.state is InstanceState.RUNNING
    assert "refresh" not in server.did
    assert (machine.hourly_price, machine.owner, machine.id) == (OFFER.hourly_price, "tests", "m-12345678")


async def test_a_running_launch_is_joined_not_asked_for_again(server: Server, cloud: SkyPilotCloud) -> None:
    server.request(RequestState.RUNNING)
    server.log = _ACCEPTED
    server.has(ClusterState.INIT)
    assert (await cloud.create(asked())).state is InstanceState.PENDING
    assert server.did == []


async def test_another_offer_under_the_name_is_refused(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT)
    with pytest.raises(CloudError, match="another machine"):
        await cloud.create(asked(OFFER.model_copy(update={"instance_type": "g5.2xlarge"})))
    assert server.did == []


async def test_a_forgotten_launch_is_no_answer(server: Server, cloud: SkyPilotCloud) -> None:
    """The server was restarted: nothing is known of the launch, and it is asked for again."""
    server.has(ClusterState.INIT)
    with pytest.raises(CloudUnreachable, match="forgot"):
        [step async for step in cloud.progress("m")]


async def test_a_failed_launch_is_told_in_the_clouds_words(server: Server, cloud: SkyPilotCloud) -> None:
    said = "An error occurred (VcpuLimitExceeded) when calling the RunInstances operation: limit of 0"
    server.log = f"{_ASKED}\nD 11-24 00:18:24.562 PID=2 p.py:1] botocore.exceptions.ClientError: {said}"
    server.failure = RuntimeError("\x1b[31mFailed to provision\x1b[0m")
    server.request(RequestState.FAILED)
    with pytest.raises(CloudError) as failed:
        [step async for step in cloud.progress("m")]
    assert failed.value.code == "VcpuLimitExceeded"
    assert failed.value.raw == f"botocore.exceptions.ClientError: {said}\nRuntimeError: Failed to provision"


async def test_a_cloud_that_puts_off_is_told(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT)
    server.request(RequestState.RUNNING)
    server.log = f"{_ASKED}\nD 11-24 00:18:24.562 PID=2 i.py:1] create_instances: RequestLimitExceeded, retrying."
    with pytest.raises(CloudError) as put_off:
        await cloud.create(asked())
    assert put_off.value.code == "RequestLimitExceeded"
    assert server.did == []


async def test_a_launch_is_not_stopped_while_the_cloud_is_being_asked(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT)
    server.request(RequestState.RUNNING)
    server.log = _ASKED
    ending = asyncio.create_task(cloud.terminate("m"))
    await asyncio.sleep(0)
    assert server.did == []
    server.log = _ACCEPTED
    await ending
    assert server.did == ["cancel", "down"]


async def test_a_launch_that_had_to_be_cut_off_is_given_time_to_show(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT)
    server.request(RequestState.RUNNING)
    server.log = _ASKED
    await cloud.terminate("m")
    assert server.did == ["cancel", "down"]
    cut = server.requests[-1].finished_at
    assert cut is not None
    assert server.down_at is not None
    assert (server.down_at - cut).total_seconds() >= _SETTLE_S * 0.99


async def test_a_launch_that_waits_for_its_turn_is_stopped_at_once(server: Server, cloud: SkyPilotCloud) -> None:
    server.request(RequestState.PENDING)
    await cloud.terminate("m")
    assert server.did == ["cancel"]


async def test_what_a_killed_server_left_is_given_time_to_show(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT, ago_s=0)
    server.log = _ASKED
    started = datetime.now(UTC)
    await cloud.terminate("m")
    assert server.did == ["down"]
    assert server.down_at is not None
    assert (server.down_at - started).total_seconds() >= _SETTLE_S * 0.9


async def test_a_refused_tear_down_is_an_error(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.UP)

    async def down(name: str) -> None:
        raise RuntimeError("botocore: AuthFailure")

    server.down = down  # type: ignore[method-assign]
    with pytest.raises(CloudError, match="AuthFailure"):
        await cloud.terminate("m")


async def test_a_given_up_name_is_not_made(server: Server, cloud: SkyPilotCloud) -> None:
    await cloud.terminate("m")
    with pytest.raises(CloudError, match="given up"):
        await cloud.create(asked())
    assert server.did == []


async def test_only_ours_are_listed(server: Server, cloud: SkyPilotCloud) -> None:
    server.has(ClusterState.INIT)
    assert [machine.name for machine in await cloud.list("tests")] == ["m"]
    assert await cloud.list("others") == []


def test_label_values_suit_every_cloud() -> None:
    assert labels.value("skyfleet") == "skyfleet"
    odd = [labels.value(text) for text in ("Team A", "team a", "x" * 80, "x" * 81, "é")]
    assert len(set(odd)) == len(odd)
    assert all(len(value) <= 63 for value in odd)
    assert labels.price_of(labels.price_value(OFFER)) == OFFER.hourly_price
