"""The real node agent with the echo engine on a machine of the local cloud."""

from __future__ import annotations

from pathlib import Path

import httpx

from skyfleet.agent import bundle
from skyfleet.domain.offers import InstanceState
from tests.localcloud.control_plane import ControlPlane
from tests.localcloud.harness import RunningCloud, offer_of, request_for
from tests.waiting import eventually


def processes_in(session_folder: Path) -> list[int]:
    """Living processes whose command line names the machine's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(session_folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def test_the_real_agent_serves_rests_resumes_and_powers_off(own_cloud: RunningCloud, plane: ControlPlane) -> None:
    plane.agent = bundle.build()
    offer = await offer_of(own_cloud, "aws/us-east-1/us-east-1a/g5.xlarge/spot")
    machine = await own_cloud.client.create(
        request_for(
            offer,
            "real",
            virtual=False,
            control_plane_url=plane.url,
            agent_version=bundle.version(),
            agent_sha256=bundle.sha256(),
            heartbeat_interval_s=0.2,
        )
    )
    folder = own_cloud.data / "instances" / machine.id

    def log() -> str:
        return (folder / "console.log").read_text()

    try:
        await eventually(lambda: plane.heartbeats["node-real"] >= 2, timeout_s=40, what="heartbeats")
    except AssertionError as error:
        raise AssertionError(log()) from error
    assert {"LOADING_MODEL", "STARTING_ENGINE"} <= set(plane.stages)
    running = await own_cloud.client.get("real")
    assert running is not None
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{running.address}/v1/models")).json()["data"][0]["id"] == "test/model"
    assert processes_in(folder)

    await own_cloud.stop()
    assert processes_in(folder) == []
    beats = plane.heartbeats["node-real"]
    await own_cloud.start()
    await eventually(lambda: plane.heartbeats["node-real"] >= beats + 2, timeout_s=40, what="heartbeats after the rest")
    assert len(plane.keys) == 1
    rested = await own_cloud.client.get("real")
    assert rested == running

    plane.directive = "shutdown"

    async def ended() -> bool:
        gone = await own_cloud.client.get("real")
        return gone is not None and gone.state is InstanceState.TERMINATED

    await eventually(ended, timeout_s=40, what="power-off")
    gone = await own_cloud.client.get("real")
    assert gone is not None
    assert gone.termination_reason == "shutdown", log()
    assert processes_in(folder) == []
