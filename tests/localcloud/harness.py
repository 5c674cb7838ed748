"""A local cloud in its own process for a test: started on a free port, killed, restarted and stopped at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from skyfleet.clouds.local.client import LocalCloud, LocalCloudBench
from skyfleet.domain.offers import CreateRequest, EngineSpec, NodeBoot, Offer
from tests.ports import free_port
from tests.waiting import eventually

#: No delays, and few machines of each type: what the tests of the cloud itself run on.
QUICK_WORLD = """
provisioning_delay_s = 0
capacity = { spot = 8, on_demand = 8 }

[clouds.aws]
preemption_notice_s = 120
[clouds.aws.regions]
us-east-1 = { zones = ["us-east-1a", "us-east-1b"] }
eu-west-1 = { zones = ["eu-west-1a"], price_factor = "1.10" }
[clouds.aws.types."g5.xlarge"]
vcpus = 4
memory_gb = 16
gpu = "A10G"
gpu_count = 1
gpu_memory_gb = 24
on_demand = "1.006"
spot = "0.4024"
[clouds.aws.types."p3.2xlarge"]
vcpus = 8
memory_gb = 61
gpu = "V100"
gpu_count = 1
gpu_memory_gb = 16
on_demand = "3.06"
spot = "0.918"
capacity = { spot = 1 }

[clouds.gcp.regions]
us-central1 = { zones = ["us-central1-a"] }
[clouds.gcp.types."n1-standard-4"]
vcpus = 4
memory_gb = 15
gpu = "T4"
gpu_count = 1
gpu_memory_gb = 16
on_demand = "0.54"
spot = "0.18"

[clouds.azure.regions]
eastus = {}
[clouds.azure.types."Standard_NV36ads_A10_v5"]
vcpus = 36
memory_gb = 440
gpu = "A10"
gpu_count = 1
gpu_memory_gb = 24
on_demand = "3.20"
spot = "0.64"

[clouds.lambda.regions]
us-west-1 = {}
[clouds.lambda.types."gpu_1x_a10"]
vcpus = 30
memory_gb = 200
gpu = "A10"
gpu_count = 1
gpu_memory_gb = 24
on_demand = "0.75"
"""


@dataclass
class RunningCloud:
    """The process, and clients of it."""

    data: Path
    url: str
    command: list[str]
    client: LocalCloud
    bench: LocalCloudBench
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        async with httpx.AsyncClient(trust_env=False) as probe:

            async def healthy() -> bool:
                assert self.process is not None
                assert self.process.poll() is None, (self.data.parent / f"{self.data.name}.log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    return (await probe.get(f"{self.url}/v1/health")).status_code == 200
                return False

            await eventually(healthy, timeout_s=30, interval_s=0.02, what="local cloud")

    async def stop(self) -> int:
        """A clean stop; the exit status."""
        return await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """-9."""
        await self._signal(signal.SIGKILL)

    async def _signal(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = await asyncio.to_thread(self.process.wait, 30)
        self.process = None
        return status

    async def empty(self) -> None:
        """Remove faults and capacity overrides, and end every machine, so that no process is left."""
        await self.bench.clear_faults()
        await self.bench.set_capacity(None)
        for name in (await self.bench.summary())["living"]:
            await self.client.terminate(name)

        async def gone() -> bool:
            return not (await self.bench.summary())["living"]

        await eventually(gone, timeout_s=30, what="an empty cloud")

    async def clean(self) -> None:
        """Empty the cloud and stop it."""
        if self.process is None or self.process.poll() is not None:
            await self.start()
        await self.empty()
        await self.client.aclose()
        await self.bench.aclose()
        await self.stop()


@asynccontextmanager
async def running_cloud(tmp_path: Path, config: str | Path | None = None, seed: int = 0) -> AsyncIterator[RunningCloud]:
    """A local cloud with its data in `tmp_path`; at the end its machines are terminated and it is stopped.

    `config`: the world, as TOML text or as a file's path; None: the default world.
    """
    port = free_port()
    command = [sys.executable, "-m", "skyfleet.clouds.local", "--data", str(tmp_path / "cloud")]
    command += ["--port", str(port), "--host", "127.0.0.1", "--seed", str(seed)]
    if isinstance(config, str):
        world = tmp_path / "world.toml"
        world.write_text(config)
        config = world
    if config is not None:
        command += ["--config", str(config)]
    url = f"http://127.0.0.1:{port}"
    cloud = RunningCloud(tmp_path / "cloud", url, command, LocalCloud(url), LocalCloudBench(url))
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.clean()


async def offer_of(cloud: RunningCloud | LocalCloud, key: str) -> Offer:
    """The offer with that `key`."""
    client = cloud.client if isinstance(cloud, RunningCloud) else cloud
    return next(offer for offer in await client.offers() if offer.key == key)


def request_for(
    offer: Offer,
    name: str,
    *,
    owner: str = "tests",
    virtual: bool = True,
    control_plane_url: str = "http://127.0.0.1:1",
    **boot: Any,
) -> CreateRequest:
    """A request for `offer`. The control plane of the default address never answers."""
    instructions = {
        "control_plane_url": control_plane_url,
        "node_id": f"node-{name}",
        "launch_id": "launch-00000001",
        "cluster_name": name,
        "registration_token": f"token-{name}",
        "agent_version": "0.0.1",
        "agent_sha256": "0" * 64,
        "provider": offer.cloud,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "gpu_type": offer.gpu,
        "spot_instance": offer.market == "spot",
        "model_name": "test/model",
        "engine": EngineSpec(name="echo"),
        "sandbox": True,
    }
    return CreateRequest(
        name=name,
        owner=owner,
        offer=offer,
        boot=NodeBoot.model_validate(instructions | boot),
        tags={"skyfleet/virtual": "true"} if virtual else {},
    )
