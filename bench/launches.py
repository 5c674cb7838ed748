"""Launches a second, all the way to READY, against a bare Temporal workflow on the same server.

300 launches on virtual machines without delays, and 300 runs of a workflow with as many activities and one signal.
They take turns in one run; the rate is workflows completed a second, from the first request to the last end.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any

import aiohttp
from temporalio.client import Client, WorkflowHandle

from bench import bare
from bench.load import bounded
from bench.report import Report
from bench.stack import LAUNCH, running

COUNT = 300
ROUNDS = 2


async def run() -> Report:
    """Take turns, and compare."""
    async with running(
        arguments=("--no-dashboard",),
        SKYFLEET_PROVISION_CONCURRENCY="50",
        # The nodes of earlier rounds live on: their heartbeats are not what is measured, on either side.
        SKYFLEET_HEARTBEAT_INTERVAL_SECONDS="120",
    ) as stack:
        client = await bare.connect(stack["temporal"])
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.bare", stack["temporal"], stdout=asyncio.subprocess.PIPE
        )
        assert worker.stdout is not None
        await worker.stdout.readline()
        try:
            # Not counted: both sides once, so that caches and code paths are warm.
            await _bare(client, 20, "warm")
            await _ours(stack, 20)
            ours, theirs = [], []
            for number in range(ROUNDS):
                theirs.append(await _bare(client, COUNT, str(number)))
                ours.append(await _ours(stack, COUNT))
                print(f"round {number + 1}: bare {theirs[-1]:.1f}/s, launches {ours[-1]:.1f}/s", flush=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.terminate()
            await worker.wait()
    launches, workflows = len(ours) / sum(1 / rate for rate in ours), len(theirs) / sum(1 / rate for rate in theirs)
    return Report(
        "launches",
        {"launches_per_s": round(launches, 2), "bare_workflows_per_s": round(workflows, 2), "count": COUNT},
        launches / workflows,
        0.6,
    )


async def _bare(client: Client, count: int, tag: str) -> float:
    """Workflows a second."""

    async def one(number: int) -> None:
        message = bare.Message(subject=f"{tag}-{number}")
        handle = await client.start_workflow(
            bare.BareWorkflow.run, message, id=f"bare-{tag}-{number}", task_queue=bare.QUEUE
        )
        await handle.signal(bare.BareWorkflow.heard, message)
        handles.append(handle)

    handles: list[WorkflowHandle[Any, Any]] = []
    began = time.perf_counter()
    await bounded(count, one)
    await asyncio.gather(*(handle.result() for handle in handles))
    return count / (time.perf_counter() - began)


async def _ours(stack: dict[str, str], count: int) -> float:
    """Launches a second; an error or a launch that is not READY ends the benchmark."""
    headers = {"X-Admin-Token": stack["admin_token"]}
    async with aiohttp.ClientSession(stack["api"], headers=headers) as http:

        async def one(_: int) -> None:
            async with http.post("/admin/instances/launch", json=LAUNCH) as response:
                assert response.status == 202, await response.text()
                jobs.add((await response.json())["job_id"])

        jobs: set[str] = set()
        began = time.perf_counter()
        await bounded(count, one)
        # As cheap a question as there is: what is measured is launching, not listing.
        while True:
            async with http.get(
                "/admin/instances/launches", params={"status": "in_progress", "limit": "1"}
            ) as response:
                if not (await response.json())["launches"]:
                    break
            await asyncio.sleep(0.25)
        rate = count / (time.perf_counter() - began)
        async with http.get("/admin/instances/launches", params={"limit": str(count)}) as response:
            ended = {launch["job_id"]: launch["status"] for launch in (await response.json())["launches"]}
        assert {ended[job] for job in jobs} == {"completed"}, ended
        return rate
