"""Preemptions of real agents on the local cloud: announced by its metadata service, heard by a control plane."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from skyfleet.agent import bundle
from skyfleet.domain.offers import InstanceState
from tests.localcloud.control_plane import ControlPlane
from tests.localcloud.harness import RunningCloud, offer_of, request_for
from tests.waiting import eventually

SOURCES = {"aws": "aws-spot-instance-action", "gcp": "gcp-preempted", "azure": "azure-preempt"}


async def start(cloud: RunningCloud, plane: ControlPlane, provider: str, name: str) -> str:
    """A spot machine of that provider whose agent heartbeats; the node's id."""
    plane.agent = bundle.build()
    key = next(one.key for one in await cloud.client.offers() if one.cloud == provider and one.key.endswith("/spot"))
    request = request_for(
        await offer_of(cloud, key),
        name,
        virtual=False,
        control_plane_url=plane.url,
        agent_version=bundle.version(),
        agent_sha256=bundle.sha256(),
        heartbeat_interval_s=0.2,
    )
    await cloud.client.create(request)
    node = f"node-{name}"
    await eventually(lambda: plane.heartbeats[node] >= 2, timeout_s=40, what="heartbeats")
    return node


def preemptions(plane: ControlPlane) -> list[dict[str, object]]:
    """Warnings that a machine is taken away."""
    return [warning for warning in plane.warnings if warning["kind"] == "preemption"]


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
async def test_a_preemption_is_heard_within_two_seconds(
    cloud: RunningCloud, plane: ControlPlane, provider: str
) -> None:
    node = await start(cloud, plane, provider, f"taken-{provider}")
    announced, announced_at = time.monotonic(), datetime.now(UTC)
    await cloud.bench.preempt(f"taken-{provider}", notice_s=60)
    (warning,) = await eventually(lambda: preemptions(plane), interval_s=0.01, what="a warning")
    assert warning["heard_at"] - announced < 2
    assert (warning["node_id"], warning["source"]) == (node, SOURCES[provider])
    # Google names no time, and gives about half a minute.
    left = timedelta(seconds=30 if provider == "gcp" else 60)
    deadline = datetime.fromisoformat(str(warning["deadline"]))
    assert announced_at + left - timedelta(seconds=2) < deadline < announced_at + left + timedelta(seconds=4)
    await eventually(lambda: plane.last_heartbeat["engine"]["state"] == "stopped", what="the drained engine")
    beats = plane.heartbeats[node]
    await eventually(lambda: plane.heartbeats[node] >= beats + 10, what="ten more heartbeats")
    assert len(preemptions(plane)) == 1


async def test_a_preemption_while_nobody_listens_and_the_service_hangs(
    cloud: RunningCloud, plane: ControlPlane
) -> None:
    """First the metadata service hangs, then it answers errors, then the control plane is away; and it is heard."""
    node = await start(cloud, plane, "gcp", "unlucky")
    for effect in ({"delay_before_s": 600}, {"error": {"status": 500, "raw": "<html>"}}, {"drop_reply": True}):
        fault = await cloud.bench.add_fault(effect, times=None, match={"operation": "metadata", "name": "unlucky"})
        hits, beats = 2, plane.heartbeats[node]

        async def struck(fault: int = fault, hits: int = hits) -> bool:
            return any(rule["id"] == fault and rule["hits"] >= hits for rule in await cloud.bench.faults())

        await eventually(struck, what=f"requests struck by {effect}")
        await eventually(lambda beats=beats: plane.heartbeats[node] >= beats + 10, what="ten more heartbeats")
        assert plane.last_heartbeat["engine"]["healthy"]
        await cloud.bench.clear_faults()
    plane.away = True
    announced = time.monotonic()
    await cloud.bench.preempt("unlucky", notice_s=60)
    running = await cloud.client.get("unlucky")
    assert running is not None

    def drained() -> bool:
        return "event=drain.idle" in (cloud.data / "instances" / running.id / "console.log").read_text()

    await eventually(drained, what="a drain that nobody asked for")
    assert plane.warnings == []
    plane.away = False
    await eventually(lambda: preemptions(plane), what="the warning")
    assert time.monotonic() - announced < 30


async def test_a_machine_of_a_cloud_without_a_service_is_no_worse_for_it(
    own_cloud: RunningCloud, plane: ControlPlane
) -> None:
    plane.agent = bundle.build()
    offer = next(one for one in await own_cloud.client.offers() if one.cloud == "lambda")
    request = request_for(
        offer,
        "plain",
        virtual=False,
        control_plane_url=plane.url,
        agent_version=bundle.version(),
        agent_sha256=bundle.sha256(),
        heartbeat_interval_s=0.2,
    )
    await own_cloud.client.create(request)
    await eventually(lambda: plane.heartbeats["node-plain"] >= 15, timeout_s=40, what="heartbeats")
    assert plane.warnings == []
    assert plane.last_heartbeat["engine"]["healthy"]
    plane.directive = "shutdown"

    async def ended() -> bool:
        machine = await own_cloud.client.get("plain")
        return machine is not None and machine.state is InstanceState.TERMINATED

    await eventually(ended, timeout_s=40, what="power-off")
