"""What Skyfleet adds to a SkyPilot launch, against a bare `sky.launch` of the same task, on the AWS lab with machines.

Both take turns in one run, on the same SkyPilot server, from the request until the task is submitted on the machine.
The ratio is of the medians. Then 20 launches are asked for at once, each READY on a real machine; one that is lost or
made twice fails the benchmark.

It runs itself anew in the lab's private box (`tests/labs/box.sh`), which needs root and `make debian-packages`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import Report
from skyfleet.agent import bundle
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import LaunchStatus, Market
from tests.labs.aws import runtime
from tests.labs.aws.conftest import QUICK
from tests.labs.aws.lab import AwsLab, missing, running_lab
from tests.labs.contract import use_here
from tests.localcloud.harness import request_for
from tests.stack import RunningStack, running_stack
from tests.waiting import eventually

if TYPE_CHECKING:
    from skyfleet.clouds.skypilot.server import SkyPilotServer

ROUNDS = 5
AT_ONCE = 20
GOAL = 1.1

_BOX = Path(__file__).parents[1] / "tests" / "labs" / "box.sh"
_INSTANCE_TYPE = "g5.xlarge"
_REGION = "us-east-1"
_API_PORT = 18080  # the box has all ports to itself
_READY_SECONDS = 900.0


async def run() -> Report:
    """Build what the lab's machines need, and measure in a box."""
    await asyncio.to_thread(runtime.build)
    box = await asyncio.create_subprocess_exec(
        str(_BOX), sys.executable, "-m", "bench.skypilot", stdout=asyncio.subprocess.PIPE
    )
    assert box.stdout is not None
    line = b""
    try:
        async for line in box.stdout:
            if not line.startswith(b"{"):
                print(line.decode(), end="", flush=True)
    finally:
        if box.returncode is None:
            box.terminate()
        status = await box.wait()
    if status:
        raise SystemExit(f"the benchmark in the box ended with status {status}")
    return Report(**json.loads(line))


async def _in_the_box() -> Report:
    why_not = missing(machines=True)
    if why_not is not None:
        raise SystemExit(why_not)
    with tempfile.TemporaryDirectory(prefix="skyfleet-bench-", ignore_cleanup_errors=True) as folder:
        async with running_lab(Path(folder) / "lab", machines=True) as lab:
            use_here(lab)
            settings = {**lab.env, **QUICK, "SKYFLEET_LAUNCH_RATE_PER_MINUTE": "0"}
            public = f"http://{lab.host_address}:{_API_PORT}"
            arguments = ["--host", "0.0.0.0", "--api-port", str(_API_PORT), "--public-url", public]
            async with running_stack(Path(folder), settings=settings, cloud="skypilot", arguments=arguments) as stack:
                return await _measure(lab, stack, public)


async def _measure(lab: AwsLab, stack: RunningStack, public: str) -> Report:
    from skyfleet.clouds.skypilot.catalog import SkyPilotCatalog
    from skyfleet.clouds.skypilot.server import SkyPilotServer

    server = SkyPilotServer("bench")
    offer = next(
        offer
        for offer in await SkyPilotCatalog(server).offers()
        if (offer.region, offer.instance_type, offer.market) == (_REGION, _INSTANCE_TYPE, Market.ON_DEMAND)
    )
    # Not counted: both once, so that SkyPilot's wheel of itself and all caches are there.
    await _bare(lab, server, offer, public, 0)
    await _ours(lab, stack, server)
    bare, ours, slots = [], [], []
    for number in range(1, ROUNDS + 1):
        bare.append(await _bare(lab, server, offer, public, number))
        seconds, slot = await _ours(lab, stack, server)
        ours.append(seconds)
        slots.append(slot)
        print(f"round {number}: bare {bare[-1]:.1f} s, Skyfleet {seconds:.1f} s, slot {slot:.2f} of it", flush=True)
    at_once = await _at_once(lab, stack)
    server.close()
    whole = at_once["ready"] == at_once["machines_ever"] == AT_ONCE
    return Report(
        "skypilot",
        {
            "bare_s": round(statistics.median(bare), 2),
            "skyfleet_s": round(statistics.median(ours), 2),
            "slot_over_skypilots": round(statistics.median(slots), 3),
            "at_once": at_once,
        },
        statistics.median(ours) / statistics.median(bare) if whole else 99.0,
        GOAL,
        lower_is_better=True,
    )


async def _bare(lab: AwsLab, server: SkyPilotServer, offer: Offer, public: str, number: int) -> float:
    """Seconds of a `sky.launch` of the task that Skyfleet would launch."""
    from skyfleet.clouds.skypilot.task import NodeDefaults, task_config

    name = f"bare-{number}"
    agent = bundle.build()
    request = request_for(
        offer,
        name,
        owner="bench",
        virtual=False,
        control_plane_url=public,
        agent_version=bundle.version(),
        agent_sha256=hashlib.sha256(agent).hexdigest(),
    )
    task = task_config(request, NodeDefaults(port=8000, disk_gb=256, image=None, autostop_minutes=30))
    began = time.perf_counter()
    launch = await server.launch(task, name)
    failure = await server.outcome(launch)
    took = time.perf_counter() - began
    if failure is not None:
        raise failure
    await server.down(name)
    await _empty(lab)
    return took


async def _ours(lab: AwsLab, stack: RunningStack, server: SkyPilotServer) -> tuple[float, float]:
    """Seconds of a launch; how long its worker slot was held, as a ratio to SkyPilot's own request."""
    began = time.perf_counter()
    job_id = await _launch(stack)
    await stack.event(job_id, lambda event: event.data.get("milestone") == "submitted", timeout_s=300)
    took = time.perf_counter() - began
    view = await stack.ready(job_id, timeout_s=300)
    assert view.cluster_name is not None
    [request] = await server.launches(view.cluster_name)
    assert request.finished_at is not None
    slot = await _slot(stack, job_id) / (request.finished_at - request.created_at).total_seconds()
    await stack.terminate(job_id)
    await _empty(lab)
    return took, slot


async def _slot(stack: RunningStack, job_id: str) -> float:
    """Seconds that `provision_machine` ran, by the launch's history."""
    client = await stack.temporal()
    scheduled, started = 0, 0.0
    async for event in client.get_workflow_handle(f"launch/{job_id}").fetch_history_events():
        if event.activity_task_scheduled_event_attributes.activity_type.name == "provision_machine":
            scheduled = event.event_id
        elif scheduled and event.activity_task_started_event_attributes.scheduled_event_id == scheduled:
            started = event.event_time.ToNanoseconds() / 1e9
        elif scheduled and event.activity_task_completed_event_attributes.scheduled_event_id == scheduled:
            return event.event_time.ToNanoseconds() / 1e9 - started
    raise AssertionError(f"{job_id} has no completed provision_machine")


async def _at_once(lab: AwsLab, stack: RunningStack) -> dict[str, Any]:
    """Ask for all at once; each machine is ended as soon as it is READY, so that their memory does not add up."""
    before = {instance.id for instance in await lab.instances()}
    began = time.perf_counter()
    jobs = await asyncio.gather(*(_launch(stack) for _ in range(AT_ONCE)))

    async def see_to(job_id: str) -> LaunchStatus:
        view = await stack.ended(job_id, timeout_s=_READY_SECONDS)
        print(f"  {job_id} {view.status} after {time.perf_counter() - began:.0f} s {view.error or ''}", flush=True)
        if view.status is LaunchStatus.COMPLETED:
            await stack.let_go(job_id)
        return view.status

    ended = await asyncio.gather(*map(see_to, jobs))
    seconds = time.perf_counter() - began
    await _empty(lab)
    made = [instance for instance in await lab.instances() if instance.id not in before]
    return {
        "asked": AT_ONCE,
        "ready": sum(status is LaunchStatus.COMPLETED for status in ended),
        "machines_ever": len(made),
        "seconds": round(seconds, 1),
    }


async def _launch(stack: RunningStack) -> str:
    return await stack.launch(_INSTANCE_TYPE, engine="echo", region=_REGION)


async def _empty(lab: AwsLab) -> None:
    async def is_empty() -> bool:
        return not await lab.running()

    await eventually(is_empty, timeout_s=300, what="an empty ledger")


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_in_the_box()))), flush=True)
