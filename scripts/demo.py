"""One launch from request to teardown, on this machine, checked against the cloud's ledger (`make demo`).

A stack of its own, on its own ports and folder. The region asked for has no spot capacity: the launch falls back,
reaches READY elsewhere, answers a streaming chat request, and is torn down. Any surprise ends with a status other
than 0 and says what it was. The cloud is the sandbox, and everything it shows is marked so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import httpx
from rich.console import Console

from skyfleet.client import AsyncSkyfleetClient
from skyfleet.domain.states import SHOWN_STAGES, LaunchStage, LaunchStatus, NodeStatus
from skyfleet.domain.views import LaunchStatusView
from skyfleet.exit import leave
from skyfleet.stack.embedded import EmbeddedStack, StackOptions
from skyfleet.stack.folder import USUAL_PORTS
from skyfleet.stack.supervisor import Notice

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
QUESTION = "Where do my GPUs run tonight?"
PATIENCE_S = 120.0

console = Console(highlight=False)


class Surprise(Exception):
    """Something was not as the demo says it is."""


def expect(true: bool, otherwise: str) -> None:
    """Go on, or end the demo saying why."""
    if not true:
        raise Surprise(otherwise)


async def main() -> None:
    """The story, in order."""
    with tempfile.TemporaryDirectory(prefix="skyfleet-demo-", ignore_cleanup_errors=True) as folder:
        console.rule("[bold]Skyfleet demo · sandbox")
        console.print("starting Temporal, PostgreSQL, API, worker, dashboard and the local cloud …")
        # 0: a free port for each, so that a demo beside a running stack disturbs nothing.
        options = StackOptions(ports=dict.fromkeys(USUAL_PORTS, 0))
        async with EmbeddedStack(Path(folder), options, notify=_say) as stack:
            ends = stack.endpoints
            assert ends.local_cloud is not None
            console.print(f"  up in {stack.seconds_to_healthy:.1f} s · dashboard {ends.dashboard}")
            console.print(f"  Temporal Web UI {ends.temporal_ui} · API {ends.api}")
            async with (
                AsyncSkyfleetClient(ends.api, ends.admin_token) as api,
                httpx.AsyncClient(base_url=ends.local_cloud, trust_env=False, timeout=30) as cloud,
                httpx.AsyncClient(trust_env=False, timeout=30) as plain,
            ):
                await _no_spot_capacity(cloud, "us-east-1")
                launch = await _launch(api)
                await _chat(plain, launch)
                launch = await api.status(launch.job_id, True)
                console.print(f"cost so far [bold]${launch.cost}[/] · sandbox money")
                console.print(f"the launch in the Temporal Web UI: {launch.workflow_url}")
                await _terminate(api, launch)
                await _nothing_left(cloud, launch)
    console.print("[bold green]✓ the demo went as told[/]")


def _say(notice: Notice) -> None:
    """What the supervisor reports while the demo runs is a surprise only if a process died."""
    if notice.kind.value in ("died", "hung"):
        console.print(f"[yellow]{notice.text}")


async def _no_spot_capacity(cloud: httpx.AsyncClient, region: str) -> None:
    """Nobody can have a spot machine there: the local cloud answers as AWS would."""
    answer = await cloud.put("/v1/capacity", json={"cloud": "aws", "region": region, "market": "spot", "capacity": 0})
    expect(answer.is_success, f"the local cloud did not take the capacity: {answer.status_code} {answer.text}")


async def _launch(api: AsyncSkyfleetClient) -> LaunchStatusView:
    """Launch on spot in a region that has none, and follow it to READY in another one."""
    console.rule("launch")
    console.print(f"{MODEL} on a g5.xlarge [bold]spot[/] machine in aws/us-east-1, or another region of AWS")
    accepted = await api.launch(
        {
            "model_name": MODEL,
            "provider": "aws",
            "region": "us-east-1",
            "instance_type": "g5.xlarge",
            "use_spot": True,
            "fallback": {"regions": ["us-west-2", "eu-west-1"]},
        }
    )
    figures = {stage: figure for stage, _, figure in SHOWN_STAGES}
    reached, began = 0, time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        async for event in api.events(accepted.job_id):
            if event.kind == "attempt" and event.data.get("state") == "open":
                reached = 0
            if event.kind == "stage":
                reached = figures.get(event.stage, reached)
            bar = ("█" * (reached // 5)).ljust(20, "░")
            console.print(f"  {event.at:%H:%M:%S} {bar} {reached:3d} %  {event.message}")
            error = event.data.get("error")
            if event.kind == "attempt" and error:
                console.print(f"           [yellow]{error['kind']} in this {error['scope']}[/]: {error['message']}")
                console.print(f"           [dim]{error['raw'][:160]}")
    launch = await api.status(accepted.job_id)
    expect(
        launch.status is LaunchStatus.COMPLETED and launch.stage is LaunchStage.READY,
        f"the launch ended {launch.stage}: {launch.error.message if launch.error else 'no error given'}",
    )
    refused = [attempt for attempt in launch.attempts if attempt.error is not None]
    expect(bool(refused), "the first place was to have no capacity, and had")
    expect(all(attempt.region == "us-east-1" for attempt in refused), f"refused elsewhere: {refused}")
    expect(launch.region != "us-east-1", "READY in the region that has no capacity")
    console.print(
        f"[green]READY[/] in {launch.provider}/{launch.zone} after {len(launch.attempts)} attempts"
        f" and {time.monotonic() - began:.1f} s · ${launch.hourly_price}/h · engine {launch.engine} · sandbox"
    )
    return launch


async def _chat(http: httpx.AsyncClient, launch: LaunchStatusView) -> None:
    """Ask the node itself, streaming."""
    console.rule("chat")
    console.print(f"POST {launch.endpoint_url}/v1/chat/completions")
    console.print(f"  you   {QUESTION}")
    console.print("  node  ", end="")
    body = {"model": launch.model_name, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    answer, chunks, ended = "", 0, False
    async with http.stream("POST", f"{launch.endpoint_url}/v1/chat/completions", json=body) as reply:
        expect(reply.is_success, f"the node answered {reply.status_code}")
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                piece = "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])
                answer, chunks = answer + piece, chunks + 1
                console.print(piece, end="", markup=False)
    console.print()
    expect(ended and chunks > 1, f"the answer did not stream to its end ({chunks} pieces)")
    expect(QUESTION in answer, f"the echo engine did not echo: {answer!r}")


async def _terminate(api: AsyncSkyfleetClient, launch: LaunchStatusView) -> None:
    """End the node, and wait until the cloud has confirmed it."""
    console.rule("terminate")
    assert launch.cluster_name is not None
    await api.terminate(launch.cluster_name)
    deadline = time.monotonic() + PATIENCE_S
    while (node := await api.node(launch.cluster_name)).status is not NodeStatus.TERMINATED:
        expect(time.monotonic() < deadline, f"{node.node_id} is still {node.status}: {node.status_message}")
        await asyncio.sleep(0.2)
    console.print(f"{node.node_id} is gone, as the cloud confirmed; it cost ${node.cost} · sandbox money")


async def _nothing_left(cloud: httpx.AsyncClient, launch: LaunchStatusView) -> None:
    """The cloud's own ledger is the judge."""
    ledger = (await cloud.get("/v1/ledger")).json()
    running = [machine["name"] for machine in ledger if machine["state"] != "terminated"]
    expect(not running, f"the cloud's ledger still has {running}")
    expect(
        [machine["name"] for machine in ledger] == [launch.cluster_name],
        f"the cloud made other machines than the one: {ledger}",
    )
    billed = sum((Decimal(machine["cost"]) for machine in ledger), Decimal(0))
    console.print(f"the cloud's ledger: {len(ledger)} machine ever, none running, ${billed} billed")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except Surprise as surprise:
        console.print(f"[bold red]✗ {surprise}")
        leave(1)
    except TimeoutError:
        console.print(f"[bold red]✗ the launch did not end within {PATIENCE_S:g} s")
        leave(1)
    except Exception as failure:
        console.print_exception()
        console.print(f"[bold red]✗ {type(failure).__name__}: {failure}")
        leave(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        leave(130)
    leave(0)
