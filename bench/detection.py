"""How soon a lost node is known to be lost, and how soon a node that its cloud takes away is out of rotation.

Real agents and engines on the local cloud, with the heartbeat interval of production. The ratio is the slowest verdict,
from the kill of a machine's processes to the verdict in the node's history, over the heartbeat interval; a preemption
notice that takes three seconds or more to reach the routing fails it.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from bench.report import Report
from bench.stack import LAUNCH, WORLD, running
from skyfleet.client import AsyncSkyfleetClient
from skyfleet.clouds.local.client import LocalCloudBench
from tests.waiting import eventually

KILLS = 4
NOTICES = 4
INTERVAL_S = 10.0
GOAL = 2.5
NOTICE_LIMIT_S = 3.0


async def run() -> Report:
    """Launch, then lose them one after the other, each at a moment of its own in its interval."""
    async with running(
        world=WORLD.replace('mode = "virtual"', 'mode = "process"'),
        arguments=("--no-dashboard",),
        SKYFLEET_HEARTBEAT_INTERVAL_SECONDS=str(INTERVAL_S),
    ) as stack:
        cloud = LocalCloudBench(stack["local_cloud"])
        async with AsyncSkyfleetClient(stack["api"], stack["admin_token"]) as client:
            nodes = await asyncio.gather(*(_ready(client) for _ in range(KILLS + NOTICES)))
            verdicts = [await _lost(client, cloud, node) for node in nodes[:KILLS]]
            notices = [await _warned(client, cloud, node) for node in nodes[KILLS:]]
        await cloud.aclose()
    late = max(notices) >= NOTICE_LIMIT_S
    return Report(
        "detection",
        {
            "verdict_s": [round(one, 1) for one in verdicts],
            "heartbeat_interval_s": INTERVAL_S,
            "notice_to_not_routed_s": [round(one, 2) for one in notices],
            "notice_limit_s": NOTICE_LIMIT_S,
        },
        99.0 if late else max(verdicts) / INTERVAL_S,
        GOAL,
        lower_is_better=True,
    )


async def _ready(client: AsyncSkyfleetClient) -> Any:
    """A node that the fleet watch found healthy."""
    job = await client.launch(dict(LAUNCH))

    async def sure() -> Any:
        view = await client.status(job.job_id)
        if view.node_id is None or not view.stage.terminal:
            return None
        node = await client.node(view.node_id)
        return node if node.health == "healthy" and (node.signals or {}).get("cloud") == "yes" else None

    return await eventually(sure, timeout_s=180, interval_s=0.2, what="a healthy node")


async def _lost(client: AsyncSkyfleetClient, cloud: LocalCloudBench, node: Any) -> float:
    """Seconds from the kill of all processes of a machine until the verdict that takes it out of rotation."""
    await asyncio.sleep(random.uniform(0, INTERVAL_S))
    began = time.time()
    await cloud.preempt(node.cluster_name, notice_s=0)

    async def verdict() -> float | None:
        events = (await client.node_events(node.node_id)).events
        found = (event for event in events if event.kind == "health" and event.data.get("routable") is False)
        return next((event.at.timestamp() - began for event in found), None)

    return await eventually(verdict, timeout_s=120, interval_s=0.1, what="a verdict") or 0.0


async def _warned(client: AsyncSkyfleetClient, cloud: LocalCloudBench, node: Any) -> float:
    """Seconds from a notice in the machine's metadata until no request is sent there."""
    await asyncio.sleep(random.uniform(0, 2))
    began = time.perf_counter()
    await cloud.preempt(node.cluster_name, notice_s=120)

    async def out() -> bool:
        return not (await client.node(node.node_id)).routable

    await eventually(out, timeout_s=60, interval_s=0.02, what="a node that is taken away out of rotation")
    return time.perf_counter() - began
