"""Machines as processes and virtual ones: boot, power-off, crashes, and the cloud's own death and rest."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from skyfleet.clouds.local import processes
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudInstance, InstanceState
from tests.localcloud.control_plane import ControlPlane
from tests.localcloud.harness import QUICK_WORLD, RunningCloud, offer_of, request_for, running_cloud
from tests.waiting import eventually

AWS = "aws/us-east-1/us-east-1a/g5.xlarge/on_demand"
AWS_SPOT = "aws/us-east-1/us-east-1a/g5.xlarge/spot"


async def boot(
    cloud: RunningCloud,
    plane: ControlPlane,
    name: str,
    *,
    virtual: bool = False,
    key: str = AWS,
    interval_s: float = 0.1,
) -> CloudInstance:
    """Create a machine that the control plane expects."""
    return await cloud.client.create(
        request_for(
            await offer_of(cloud, key),
            name,
            virtual=virtual,
            control_plane_url=plane.url,
            agent_sha256=plane.agent_sha256,
            heartbeat_interval_s=interval_s,
        )
    )


def folder(cloud: RunningCloud, machine: CloudInstance) -> Path:
    return cloud.data / "instances" / machine.id


async def started(cloud: RunningCloud, machine: CloudInstance, times: int = 1) -> tuple[int, int]:
    """Pids of the agent and of its engine, once it has started that often."""
    file = folder(cloud, machine) / "state" / "starts"
    await eventually(lambda: file.exists() and len(file.read_text().splitlines()) == times, what="the agent's start")
    agent, engine, _ = file.read_text().splitlines()[-1].split()
    return int(agent), int(engine)


def lives(pid: int) -> bool:
    process = processes.look(pid)
    return process is not None and not process.zombie


def session(pid: int) -> list[int]:
    """Living processes of the session that `pid` leads, found in /proc by this test's own means."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def cpu_seconds(cloud: RunningCloud) -> float:
    """What the cloud's own process has used so far; proc_pid_stat(5), utime and stime."""
    assert cloud.process is not None
    fields = Path(f"/proc/{cloud.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def state(cloud: RunningCloud, name: str) -> InstanceState | None:
    machine = await cloud.client.get(name)
    return None if machine is None else machine.state


async def reach(cloud: RunningCloud, name: str, wanted: InstanceState) -> CloudInstance:
    async def there() -> bool:
        return await state(cloud, name) is wanted

    await eventually(there, timeout_s=15, what=f"{name} {wanted}")
    machine = await cloud.client.get(name)
    assert machine is not None
    return machine


# --- processes --------------------------------------------------------------------------------------------------


async def test_a_machine_is_a_session_that_runs_its_agent(cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(cloud, plane, "session")
    agent, engine = await started(cloud, machine)
    home = folder(cloud, machine)
    running = await reach(cloud, "session", InstanceState.RUNNING)
    instructions = json.loads((home / "boot.json").read_text())
    assert stat.S_IMODE((home / "boot.json").stat().st_mode) == 0o600
    assert instructions["registration_token"] == "token-session"
    assert instructions["host"] == "127.0.0.1"
    assert running.address == f"http://127.0.0.1:{instructions['port']}"
    assert instructions["metadata_url"] == f"{cloud.url}/metadata/{machine.id}"
    assert session(agent) == [agent]
    environment = json.loads((home / "state" / "environment.json").read_text())
    assert set(environment) - {"LC_CTYPE"} <= {
        "PATH",
        "HOME",
        "LANG",
        "LLAMA_SERVER",
        "LD_LIBRARY_PATH",
        processes.MARK,
    }
    assert environment["HOME"] == str(home)
    helper = int((home / "state" / "starts").read_text().split()[2])
    assert lives(helper)
    await cloud.client.terminate("session")
    ended = await reach(cloud, "session", InstanceState.TERMINATED)
    assert ended.termination_reason == "requested"
    assert session(agent) == session(engine) == []
    assert not lives(engine)
    assert not lives(helper)
    assert not (home / "boot.json").exists()


async def test_a_process_that_ignores_sigterm_is_killed_and_stopping_until_then(
    cloud: RunningCloud, plane: ControlPlane
) -> None:
    machine = await boot(cloud, plane, "stubborn")
    agent, engine = await started(cloud, machine)
    os.kill(agent, signal.SIGSTOP)  # does not act on SIGTERM any more
    await cloud.client.terminate("stubborn")
    assert await state(cloud, "stubborn") is InstanceState.STOPPING
    await reach(cloud, "stubborn", InstanceState.TERMINATED)
    assert not lives(agent)
    assert not lives(engine)


async def test_the_boot_script_waits_for_the_agent_and_checks_it(cloud: RunningCloud, plane: ControlPlane) -> None:
    plane.download_status = 503
    right, plane.agent = plane.agent, b"something else"
    offer = await offer_of(cloud, AWS)
    sha256 = ControlPlane(agent=right).agent_sha256
    request = request_for(offer, "patient", virtual=False, control_plane_url=plane.url, agent_sha256=sha256)
    machine = await cloud.client.create(request)
    await eventually(lambda: plane.downloads >= 1, what="a first try")
    plane.download_status, tries = 200, plane.downloads
    await eventually(lambda: plane.downloads > tries, what="a try that gets the wrong file")
    assert await state(cloud, "patient") is InstanceState.RUNNING
    plane.agent = right
    await started(cloud, machine)
    assert "SHA-256" in (folder(cloud, machine) / "console.log").read_text()


async def test_an_agent_that_powers_off_ends_its_machine(cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(cloud, plane, "power-off")
    agent, engine = await started(cloud, machine)
    os.kill(agent, signal.SIGUSR1)
    ended = await reach(cloud, "power-off", InstanceState.TERMINATED)
    assert ended.termination_reason == "shutdown"
    assert not lives(engine)


async def test_an_agent_that_asks_for_power_off_and_hangs_is_ended(cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(cloud, plane, "hanging")
    agent, _ = await started(cloud, machine)
    command = json.loads((folder(cloud, machine) / "boot.json").read_text())["shutdown_command"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    ended = await reach(cloud, "hanging", InstanceState.TERMINATED)
    assert ended.termination_reason == "shutdown"
    assert not lives(agent)


async def test_a_killed_agent_leaves_the_machine_running_and_billed(cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(cloud, plane, "killed")
    agent, engine = await started(cloud, machine)
    await cloud.bench.kill_agent("killed")
    await eventually(lambda: not lives(agent), what="the agent's end")
    with pytest.raises(CloudError, match="no running agent"):
        await cloud.bench.kill_agent("killed")
    assert lives(engine)
    assert await state(cloud, "killed") is InstanceState.RUNNING
    (entry,) = await cloud.bench.ledger(name="killed")
    assert entry["terminated_at"] is None
    assert entry["billed_seconds"] >= 1
    await cloud.client.terminate("killed")
    await reach(cloud, "killed", InstanceState.TERMINATED)


async def test_a_machine_whose_agent_never_starts_runs(cloud: RunningCloud, plane: ControlPlane) -> None:
    for name, virtual in (("dead-process", False), ("dead-virtual", True)):
        await cloud.bench.add_fault({"agent_dead": True}, match={"name": name})
        await boot(cloud, plane, name, virtual=virtual)
        await reach(cloud, name, InstanceState.RUNNING)
    await boot(cloud, plane, "alive", virtual=True)
    await eventually(lambda: plane.heartbeats["node-alive"] > 1, what="the other node's heartbeats")
    assert plane.downloads == 0
    assert [one["node_id"] for one in plane.registrations] == ["node-alive"]


async def test_a_preempted_process_machine_is_gone(cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(cloud, plane, "preempted", key=AWS_SPOT)
    agent, engine = await started(cloud, machine)
    await cloud.bench.preempt("preempted", notice_s=0.1)
    ended = await reach(cloud, "preempted", InstanceState.TERMINATED)
    assert ended.termination_reason == "preempted"
    assert not lives(agent)
    assert not lives(engine)


async def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:  # noqa: ASYNC220 - returns at once
        seen = processes.look(stranger.pid)
        assert seen is not None
        await processes.end("i-gone", tmp_path, (stranger.pid, seen.started - 1))
        processes.kill(processes.Process(stranger.pid, 1, stranger.pid, seen.started - 1, False), signal.SIGKILL)
        assert stranger.poll() is None
        await processes.end("i-gone", tmp_path, (stranger.pid, seen.started))
        assert stranger.wait(5) == -signal.SIGTERM


# --- death and rest of the cloud --------------------------------------------------------------------------------


@pytest.mark.chaos
async def test_machines_survive_the_clouds_death_and_are_adopted(own_cloud: RunningCloud, plane: ControlPlane) -> None:
    cloud = own_cloud
    machine = await boot(cloud, plane, "survivor")
    doomed = await boot(cloud, plane, "doomed")
    crashed = await boot(cloud, plane, "crashed")
    off = await boot(cloud, plane, "off")
    agent, engine = await started(cloud, machine)
    doomed_agent, doomed_engine = await started(cloud, doomed)
    crashed_agent, _ = await started(cloud, crashed)
    off_agent, _ = await started(cloud, off)
    os.kill(doomed_agent, signal.SIGSTOP)
    await cloud.client.terminate("doomed")
    before = await cloud.client.get("survivor")
    await cloud.kill()
    with pytest.raises(CloudUnreachable):
        await cloud.client.get("survivor")
    os.kill(crashed_agent, signal.SIGKILL)
    os.kill(off_agent, signal.SIGUSR1)
    await eventually(lambda: not lives(off_agent), what="power-off")
    await cloud.start()
    assert await cloud.client.get("survivor") == before
    assert lives(agent)
    assert lives(engine)
    assert (await reach(cloud, "doomed", InstanceState.TERMINATED)).termination_reason == "requested"
    assert not lives(doomed_agent)
    assert not lives(doomed_engine)
    assert (await reach(cloud, "off", InstanceState.TERMINATED)).termination_reason == "shutdown"
    assert await state(cloud, "crashed") is InstanceState.RUNNING
    os.kill(agent, signal.SIGUSR1)
    assert (await reach(cloud, "survivor", InstanceState.TERMINATED)).termination_reason == "shutdown"
    assert await started(cloud, machine) == (agent, engine)


@pytest.mark.chaos
async def test_what_was_accepted_goes_on_after_the_clouds_death(tmp_path: Path, plane: ControlPlane) -> None:
    world = QUICK_WORLD.replace("provisioning_delay_s = 0", "provisioning_delay_s = 0.5")
    async with running_cloud(tmp_path, config=world) as cloud:
        machine = await boot(cloud, plane, "accepted")
        await boot(cloud, plane, "spot", key=AWS_SPOT)
        await boot(cloud, plane, "virtual", virtual=True)
        await cloud.bench.preempt("spot", notice_s=0.2)
        await cloud.bench.set_capacity(3, cloud="gcp")
        await cloud.bench.add_fault({"real": "InternalError"}, times=None, match={"operation": "offers"})
        await cloud.client.terminate("unknown")
        await cloud.kill()
        await cloud.start()
        assert len(await cloud.bench.ledger()) == 3
        await started(cloud, machine)
        await eventually(lambda: plane.heartbeats["node-virtual"] > 0, what="the virtual node")
        assert (await reach(cloud, "spot", InstanceState.TERMINATED)).termination_reason == "preempted"
        assert {pool["capacity"] for pool in await cloud.bench.capacity(cloud="gcp")} == {3}
        with pytest.raises(CloudError, match="InternalError"):
            await cloud.client.offers()
        await cloud.bench.clear_faults()
        with pytest.raises(CloudError, match="a name is used once"):
            await boot(cloud, plane, "unknown")


@pytest.mark.chaos
@pytest.mark.parametrize("kill_after_s", [0.0, 0.03, 0.1])
async def test_creates_that_are_repeated_after_a_kill_make_one_machine_with_one_agent_each(
    own_cloud: RunningCloud, plane: ControlPlane, kill_after_s: float
) -> None:
    """The kill lands anywhere between the first request and the last agent's start."""
    names = [f"torn-{n}" for n in range(6)]

    async def ask(name: str) -> CloudInstance | None:
        try:
            return await boot(own_cloud, plane, name)
        except CloudUnreachable:
            return None

    first = [asyncio.ensure_future(ask(name)) for name in names]
    await asyncio.wait(first, timeout=kill_after_s)
    await own_cloud.kill()
    known = {machine.name: machine.id for machine in await asyncio.gather(*first) if machine is not None}
    await own_cloud.start()
    machines = [await boot(own_cloud, plane, name) for name in names]
    for machine in machines:
        assert known.get(machine.name, machine.id) == machine.id
    assert len(await own_cloud.bench.ledger()) == len(names)
    for machine in machines:
        agent, _ = await started(own_cloud, machine)  # one start, no second
        assert session(agent) == [agent]


@pytest.mark.chaos
async def test_virtual_nodes_go_on_after_the_clouds_death(own_cloud: RunningCloud, plane: ControlPlane) -> None:
    for n in range(5):
        await boot(own_cloud, plane, f"v-{n}", virtual=True)
    await eventually(lambda: len(plane.heartbeats) == 5, what="heartbeats")
    await own_cloud.bench.kill_agent("v-4")
    await own_cloud.kill()
    plane.heartbeats.clear()
    await own_cloud.start()
    await eventually(lambda: min(plane.heartbeats[f"node-v-{n}"] for n in range(4)) >= 2, what="heartbeats again")
    assert len(plane.registrations) == 5
    assert plane.heartbeats["node-v-4"] == 0
    assert await state(own_cloud, "v-4") is InstanceState.RUNNING


async def test_a_clean_stop_suspends_and_the_next_start_boots_again(
    own_cloud: RunningCloud, plane: ControlPlane
) -> None:
    cloud = own_cloud
    machine = await boot(cloud, plane, "resting")
    await boot(cloud, plane, "virtual", virtual=True)
    agent, engine = await started(cloud, machine)
    await eventually(lambda: plane.heartbeats["node-virtual"] > 0, what="the virtual node")
    before = await reach(cloud, "resting", InstanceState.RUNNING)
    waiting = asyncio.ensure_future(
        httpx.AsyncClient(trust_env=False, timeout=30).get(f"{cloud.url}/v1/instances/resting/wait?state=terminated")
    )
    assert await cloud.stop() == 0
    assert (await asyncio.wait_for(waiting, 5)).json()["state"] == "running"
    assert not lives(agent)
    assert not lives(engine)
    await cloud.start()
    assert await cloud.client.get("resting") == before
    again, _ = await started(cloud, machine, times=2)
    assert again != agent
    seen = plane.heartbeats["node-virtual"]
    await eventually(lambda: plane.heartbeats["node-virtual"] > seen, what="the virtual node again")
    assert len(plane.registrations) == 1
    assert (await cloud.bench.summary())["by_state"]["running"] == 2


async def test_after_a_reboot_of_the_host_machines_boot_again(own_cloud: RunningCloud, plane: ControlPlane) -> None:
    machine = await boot(own_cloud, plane, "rebooted")
    agent, engine = await started(own_cloud, machine)
    await own_cloud.kill()
    with sqlite3.connect(own_cloud.data / "ledger.sqlite3") as book:
        book.execute("UPDATE meta SET value = 'the boot before' WHERE key = 'host_boot'")
    book.close()
    await own_cloud.start()
    again, _ = await started(own_cloud, machine, times=2)
    assert again != agent
    assert not lives(engine)
    assert await state(own_cloud, "rebooted") is InstanceState.RUNNING


async def test_one_folder_has_one_cloud(own_cloud: RunningCloud) -> None:
    command = [sys.executable, "-m", "skyfleet.clouds.local", "--data", str(own_cloud.data)]
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "another local cloud runs" in second.stderr


async def test_a_world_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(
        '[clouds.aws]\nregions = {}\n[clouds.aws.types."x"]\nvcpus = 1\nmemory_gb = 1\nregions = ["mars"]\n'
    )
    command = [sys.executable, "-m", "skyfleet.clouds.local", "--data", str(tmp_path / "c"), "--config", str(config)]
    refused = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1
    assert "mars" in refused.stderr


# --- virtual ----------------------------------------------------------------------------------------------------


async def test_a_virtual_node_registers_and_sends_heartbeats(cloud: RunningCloud, plane: ControlPlane) -> None:
    await boot(cloud, plane, "node", virtual=True)
    await eventually(lambda: plane.heartbeats["node-node"] >= 3, what="heartbeats")
    (registration,) = plane.registrations
    assert registration["registration_token"] == "token-node"
    assert (registration["provider"], registration["region"], registration["instance_type"]) == (
        "aws",
        "us-east-1",
        "g5.xlarge",
    )
    assert registration["sandbox"] is True
    assert plane.last_heartbeat["gpus"] == []
    assert plane.last_heartbeat["sequence"] >= 3
    assert plane.stages == []
    machine = await cloud.client.get("node")
    assert machine is not None
    assert machine.address == registration["endpoint_url"] == f"{cloud.url}/virtual/node"
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.post(f"{machine.address}/v1/chat/completions", json={})).status_code == 503


@pytest.mark.parametrize("how", ["directive", "heartbeat-410", "register-410"])
async def test_a_virtual_node_obeys(cloud: RunningCloud, plane: ControlPlane, how: str) -> None:
    plane.register_status = 410 if how == "register-410" else 200
    await boot(cloud, plane, how, virtual=True)
    if how != "register-410":
        await eventually(lambda: plane.heartbeats[f"node-{how}"] >= 1, what="heartbeats")
    if how == "directive":
        plane.directive = "shutdown"
    elif how == "heartbeat-410":
        plane.heartbeat_status = 410
    ended = await reach(cloud, how, InstanceState.TERMINATED)
    assert ended.termination_reason == "shutdown"


@pytest.mark.parametrize("status", [401, 404, 409, 503])
async def test_a_virtual_node_keeps_trying(cloud: RunningCloud, plane: ControlPlane, status: int) -> None:
    plane.register_status = status
    await boot(cloud, plane, f"trying-{status}", virtual=True)
    await eventually(lambda: len(plane.registrations) >= 2, what="a second try")
    plane.register_status = 200
    await eventually(lambda: plane.heartbeats[f"node-trying-{status}"] >= 1, what="a heartbeat")
    plane.heartbeat_status, seen = status, plane.heartbeats[f"node-trying-{status}"]
    await eventually(lambda: plane.heartbeats[f"node-trying-{status}"] > seen + 1, what="more heartbeats")
    assert await state(cloud, f"trying-{status}") is InstanceState.RUNNING


async def test_a_terminated_virtual_node_is_silent(cloud: RunningCloud, plane: ControlPlane) -> None:
    await boot(cloud, plane, "silent", virtual=True)
    await boot(cloud, plane, "loud", virtual=True)
    await eventually(lambda: plane.heartbeats["node-silent"] >= 1, what="heartbeats")
    await cloud.client.terminate("silent")
    await reach(cloud, "silent", InstanceState.TERMINATED)
    seen, others = plane.heartbeats["node-silent"], plane.heartbeats["node-loud"]
    await eventually(lambda: plane.heartbeats["node-loud"] >= others + 5, what="the other node's heartbeats")
    assert plane.heartbeats["node-silent"] <= seen + 1  # one may have been under way


async def test_300_virtual_launches_cost_the_cloud_little(cloud: RunningCloud, plane: ControlPlane) -> None:
    """Measured in the cloud's CPU time, which a busy machine stretches little, unlike the wall clock."""
    await cloud.bench.set_capacity(1000)
    offer = await offer_of(cloud, AWS)
    free = asyncio.Semaphore(20)  # as many as a worker provisions at a time

    async def launch(n: int) -> None:
        async with free:
            await cloud.client.create(request_for(offer, f"many-{n}", control_plane_url=plane.url))
            states = [step.state async for step in cloud.client.progress(f"many-{n}")]
        assert states[-1] is InstanceState.RUNNING

    before = cpu_seconds(cloud)
    await asyncio.gather(*(launch(n) for n in range(300)))
    await eventually(lambda: len(plane.keys) == 300, timeout_s=60, what="300 registrations")
    assert cpu_seconds(cloud) - before < 300 * 0.010
    assert re.fullmatch(r"i-0[0-9a-f]{16}", (await cloud.client.list("tests"))[0].id)
