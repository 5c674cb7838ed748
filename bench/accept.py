"""Launches accepted a second, against bare `start_workflow` calls on the same server.

Concurrency 50 on both sides. No worker polls the queues meanwhile, so that only the accepting is measured: on ours
authentication, validation against the catalog, the intent and its audit row committed, the workflow started.
"""

from __future__ import annotations

import time

import aiohttp

from bench import bare
from bench.load import bounded
from bench.report import Report
from bench.stack import LAUNCH, running

COUNT = 1_000
ROUNDS = 3


async def run() -> Report:
    """Take turns, and compare."""
    async with running(arguments=("--no-dashboard",), SKYFLEET_WORKER_QUEUES='["teardown"]') as stack:
        client = await bare.connect(stack["temporal"])
        headers = {"X-Admin-Token": stack["admin_token"]}
        errors = 0
        async with aiohttp.ClientSession(
            stack["api"], headers=headers, connector=aiohttp.TCPConnector(limit=50)
        ) as http:

            async def start(number: int) -> None:
                message = bare.Message(subject=str(number))
                await client.start_workflow(
                    bare.BareWorkflow.run, message, id=f"accept-{began}-{number}", task_queue="nobody"
                )

            async def post(_: int) -> None:
                nonlocal errors
                async with http.post("/admin/instances/launch", json=LAUNCH) as response:
                    await response.read()
                    errors += response.status != 202

            began = 0.0
            await bounded(50, post)
            ours, theirs = [], []
            for number in range(ROUNDS):
                began = time.perf_counter()
                await bounded(COUNT, start)
                theirs.append(COUNT / (time.perf_counter() - began))
                began = time.perf_counter()
                await bounded(COUNT, post)
                ours.append(COUNT / (time.perf_counter() - began))
                print(f"round {number + 1}: bare {theirs[-1]:.0f}/s, accepted {ours[-1]:.0f}/s", flush=True)
    accepted, started = len(ours) / sum(1 / rate for rate in ours), len(theirs) / sum(1 / rate for rate in theirs)
    if errors:
        print(f"{errors} of {COUNT * ROUNDS} requests failed", flush=True)
    return Report(
        "accept",
        {"accepted_per_s": round(accepted, 1), "bare_starts_per_s": round(started, 1), "errors": errors},
        0.0 if errors else accepted / started,
        0.5,
    )
