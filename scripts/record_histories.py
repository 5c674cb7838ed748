"""Record workflow histories from real runs for `tests/replay`: `python scripts/record_histories.py NAME`.

Run it once for each released version that changes what workflows do; NAME becomes part of the file names. Old files
stay: runs of that version may still be under way somewhere, and must replay.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client

from skyfleet.client import AsyncSkyfleetClient
from skyfleet.domain import ids
from skyfleet.domain.states import LaunchStage, NodeStatus
from skyfleet.exit import leave
from skyfleet.stack.embedded import EmbeddedStack, StackOptions
from skyfleet.stack.folder import USUAL_PORTS

FOLDER = Path(__file__).parent.parent / "tests" / "replay" / "histories"
BODY = {
    "model_name": "meta-llama/Llama-3.1-8B-Instruct",
    "provider": "aws",
    "region": "us-east-1",
    "instance_type": "g5.xlarge",
    "use_spot": True,
}


async def main(name: str) -> None:
    """Launch, fall back, fail, cancel, terminate; write each workflow's history."""
    with tempfile.TemporaryDirectory(prefix="skyfleet-record-") as folder:
        options = StackOptions(ports=dict.fromkeys(USUAL_PORTS, 0), dashboard=False)
        async with EmbeddedStack(Path(folder), options) as stack:
            ends = stack.endpoints
            assert ends.temporal is not None
            assert ends.local_cloud is not None
            temporal = await Client.connect(ends.temporal)
            async with (
                AsyncSkyfleetClient(ends.api, ends.admin_token) as api,
                httpx.AsyncClient(base_url=ends.local_cloud, trust_env=False) as cloud,
            ):

                async def save(what: str, workflow_id: str) -> None:
                    history = await temporal.get_workflow_handle(workflow_id).fetch_history()
                    # Only what the run was, not where it was recorded.
                    (FOLDER / f"{name}-{what}.json").write_text(history.to_json() + "\n")
                    print(f"{what}: {len(history.events)} events")

                async def launch(what: str, wanted: LaunchStage, **fields: Any) -> str:
                    job = (await api.launch({**BODY, **fields})).job_id
                    await _until(lambda: _ended(api, job))
                    seen = (await api.status(job)).stage
                    assert seen is wanted, seen
                    await save(what, ids.launch_workflow_id(job))
                    return job

                ready = await launch("ready", LaunchStage.READY)
                node = (await api.status(ready)).node_id
                assert node is not None
                await api.terminate(node)
                await _until(lambda: _gone(api, node))
                await save("node", ids.node_workflow_id(node))
                await cloud.put("/v1/capacity", json={"cloud": "aws", "region": "us-east-1", "capacity": 0})
                await launch("fallback", LaunchStage.READY, fallback={"regions": ["us-west-2"]})
                await launch("failed", LaunchStage.FAILED)
                fault = {"match": {"operation": "create"}, "times": None, "then": {"boot_delay_s": 600}}
                assert (await cloud.post("/v1/faults", json=fault)).is_success
                job = (await api.launch({**BODY, "region": "eu-west-1"})).job_id
                await _until(lambda: _reached(api, job, LaunchStage.PROVISIONING))
                await api.cancel(job)
                await _until(lambda: _ended(api, job))
                await save("cancelled", ids.launch_workflow_id(job))


async def _until(probe: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await probe():  # noqa: ASYNC110  (a poll over HTTP)
            await asyncio.sleep(0.2)


async def _ended(api: AsyncSkyfleetClient, job: str) -> bool:
    return (await api.status(job)).stage.terminal


async def _reached(api: AsyncSkyfleetClient, job: str, stage: LaunchStage) -> bool:
    return (await api.status(job)).stage is stage


async def _gone(api: AsyncSkyfleetClient, node: str) -> bool:
    return (await api.node(node)).status is NodeStatus.TERMINATED


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: record_histories.py NAME  (the version, such as 0.1)")
    asyncio.run(main(sys.argv[1]))
    leave(0)
