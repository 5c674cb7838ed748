"""The embedded stack for a benchmark: a subprocess on its own folder and ports, with virtual machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

#: One region with machines enough, and no delays: what is measured is the control plane.
WORLD = """
mode = "virtual"
provisioning_delay_s = 0.0
provisioning_jitter_s = 0.0
capacity = { spot = 100000, on_demand = 100000 }

[clouds.aws.regions]
us-east-1 = { zones = ["us-east-1a", "us-east-1b"] }
us-west-2 = { zones = ["us-west-2a"] }

[clouds.aws.types."g5.xlarge"]
vcpus = 4
memory_gb = 16
gpu = "A10G"
gpu_count = 1
gpu_memory_gb = 24
on_demand = "1.006"
spot = "0.4024"
"""

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LAUNCH = {"model_name": MODEL, "provider": "aws", "region": "us-east-1", "instance_type": "g5.xlarge", "use_spot": True}


@contextlib.asynccontextmanager
async def running(*, world: str | None = WORLD, arguments: tuple[str, ...] = (), **env: str) -> AsyncIterator[Any]:
    """`skyfleet up` on a fresh folder; yields what it prints as JSON when it is healthy, and the admin token."""
    with tempfile.TemporaryDirectory(prefix="skyfleet-bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "skyfleet.cli", "up", "--data", folder, "--json", *arguments]
        if world is not None:
            config = Path(folder) / "world.toml"
            config.write_text(world)
            command += ["--cloud-config", str(config)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=None,  # what the supervisor says of a child that died belongs beside the figures
            env={**os.environ, "SKYFLEET_LAUNCH_RATE_PER_MINUTE": "0", **env},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), 120)
            if not line:
                raise SystemExit(f"the stack did not start: see {folder}/logs")
            yield {**json.loads(line), **json.loads((Path(folder) / "endpoints.json").read_text())}
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), 60)


def rss_mb(pid: int) -> float:
    """Resident memory of one process, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
