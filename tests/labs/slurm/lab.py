"""A real SkyPilot API server, and two real Slurm clusters with GPUs in name only, for tests.

    async with running_lab(folder) as lab:
        ...                                # a process with `lab.env` uses SkyPilot's SDK or command line
        assert not await lab.jobs()

It lives in a private box (`../box.sh`): each machine of a cluster is a set of namespaces there, with an address of its
own that the box and the other machines reach it at. All of it ends with the box at the latest. One lab to a box.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.labs.api_server import PATH, PROGRAMS, ApiServer
from tests.labs.aws import runtime as home
from tests.labs.aws.catalog import SCHEMA
from tests.labs.aws.lab import BOX
from tests.labs.slurm import runtime
from tests.labs.slurm.clusters import CLUSTERS, GPU, GPUS, USER, furnish
from tests.labs.slurm.machines import RunningMachine
from tests.waiting import eventually

MACHINE_PROGRAMS: Final = ("ip", "sshd", "curl", "munged", "slurmctld", "slurmd")
#: How long SkyPilot leaves a launch in the queue before it gives up.
PATIENCE_SECONDS: Final = 6
#: USD an hour of one GPU, as a person may tell SkyPilot what their own clusters cost.
PRICE: Final = 1.5

_BLOCKER: Final = "blocker"
_IDLE_SECONDS: Final = 60.0


def missing() -> str | None:
    """Why the lab cannot be had here; None if it can."""
    absent = [program for program in (*PROGRAMS, *MACHINE_PROGRAMS) if shutil.which(program, path=PATH) is None]
    if absent:
        return f"SkyPilot's Slurm lab needs {', '.join(absent)}: see `make debian-packages`, `make test-slow`"
    if BOX not in os.environ:
        return "Slurm's machines need a private box, and that needs root: tests/labs/box.sh pytest -m lab"
    if not home.folder().is_dir() or not runtime.folder().is_dir():
        return "no runtime for machines: python -m tests.labs.aws.runtime; python -m tests.labs.slurm.runtime"
    return None


@dataclass(frozen=True)
class Job:
    """A line of a cluster's queue. `state` is Slurm's own name of the state; `nodes` are empty while it waits."""

    cluster: str
    id: int
    name: str
    state: str
    partition: str
    nodes: tuple[str, ...]


class SlurmLab:
    """One lab. `start` it, `stop` it; in between, what it tells of its clusters is true to the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = ApiServer(folder, {"PYTHONPATH": str(runtime.folder())})
        self.home = self._server.home
        self._machines: dict[str, RunningMachine] = {}

    @property
    def endpoint(self) -> str:
        """The address of SkyPilot's API server."""
        return self._server.endpoint

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that asks this lab's SkyPilot: everything that it needs, and nothing of ours."""
        return self._server.env

    @property
    def host_address(self) -> str:
        """Where its machines reach a server of ours that listens on all addresses."""
        return os.environ[BOX]

    async def start(self) -> None:
        """Start the clusters and the API server; returns when all nodes are idle and Slurm is enabled."""
        self._furnish()
        for cluster in CLUSTERS.values():
            for machine in cluster.machines:
                self._machines[machine.name] = RunningMachine(cluster, machine, self.folder)
        await self.start_api_server()
        for cluster in CLUSTERS.values():
            await self._until_idle(cluster.name)
        await self.sky("check", "slurm")

    async def stop(self) -> None:
        """End everything."""
        await self.kill_api_server()
        for machine in self._machines.values():
            await machine.turn_off()

    async def start_api_server(self) -> None:
        """Start SkyPilot's API server, with the records that an earlier one left; returns when it answers."""
        await self._server.start()

    async def kill_api_server(self) -> None:
        """SIGKILL to the API server and all of its processes, as when its machine fails. Its records stay."""
        await self._server.kill()

    async def sky(self, *arguments: str) -> str:
        """Run SkyPilot's command line; its output. Raises CalledProcessError when it fails."""
        return await self._server.sky(*arguments)

    async def run(self, machine: str, *command: str) -> str:
        """Run a command on a machine as root, Slurm's own for instance; its output. Raises CalledProcessError."""
        return await self._machines[machine].run(*command)

    async def jobs(self) -> list[Job]:
        """What is in the queues of both clusters, jobs that are just ending too; not what `fill` put there."""
        return [job for cluster in CLUSTERS for job in await self._queue(cluster) if job.name != _BLOCKER]

    async def cancel(self, job: Job) -> None:
        """End a job behind SkyPilot's back, as an administrator may."""
        await self.run(job.cluster, "scancel", str(job.id))

    async def fill(self, cluster: str) -> None:
        """Take all that a cluster has, which must be idle. Returns when it is taken."""
        await self._until_idle(cluster)
        for node in CLUSTERS[cluster].nodes:
            wanted = ("--nodelist", node.name, "--exclusive", f"--gres=gpu:{GPU}:{GPUS}", "--job-name", _BLOCKER)
            await self.run(cluster, "sbatch", *wanted, "--output=/dev/null", "--wrap", "exec sleep infinity")

        async def full() -> bool:
            return {job.state for job in await self._queue(cluster)} == {"RUNNING"}

        await eventually(full, what=f"{cluster} to be full")

    async def free(self, cluster: str) -> None:
        """Give back what `fill` took. Returns when Slurm has it back."""
        await self.run(cluster, "scancel", "--name", _BLOCKER)

        async def freed() -> bool:
            return all(job.name != _BLOCKER for job in await self._queue(cluster))

        await eventually(freed, what=f"{cluster} to be free")

    async def empty(self, cluster: str) -> None:
        """End all jobs of a cluster. Returns when its nodes are idle."""
        for job in await self._queue(cluster):
            await self.run(cluster, "scancel", str(job.id))
        await self._until_idle(cluster)

    async def _queue(self, cluster: str) -> list[Job]:
        rows = (await self.run(cluster, "squeue", "--noheader", "--format=%i|%j|%T|%P|%N")).splitlines()
        found: list[Job] = []
        for number, name, state, partition, listed in (row.split("|") for row in rows):
            nodes = (await self.run(cluster, "scontrol", "show", "hostnames", listed)).split() if listed else []
            found.append(Job(cluster, int(number), name, state, partition, tuple(nodes)))
        return found

    async def _until_idle(self, cluster: str) -> None:
        async def idle() -> bool:
            try:
                states = (await self.run(cluster, "sinfo", "--noheader", "--Node", "--format=%t")).split()
            except subprocess.CalledProcessError:
                return False  # the controller is just starting
            return states == ["idle"] * CLUSTERS[cluster].size

        await eventually(idle, timeout_s=_IDLE_SECONDS, what=f"idle nodes of {cluster}")

    def _furnish(self) -> None:
        """Write the clusters' files, and those of a person who uses SkyPilot on them."""
        key = furnish(self.folder)
        hosts = "".join(
            f"Host {cluster.name}\n  HostName {cluster.controller.address}\n  User {USER}\n"
            f"  IdentityFile {key}\n  IdentitiesOnly yes\n\n"
            for cluster in CLUSTERS.values()
        )
        config = (
            "allowed_clouds: [slurm]\n"
            f"slurm:\n  provision_timeout: {PATIENCE_SECONDS}\n"
            f"  pricing: {{accelerators: {{{GPU.upper()}: {PRICE}}}}}\n"
        )
        # Without a checksum beside it SkyPilot takes a file for the user's own, and does not download it.
        catalog = self.home / ".sky" / "catalogs" / SCHEMA / "common"
        for path, text in {
            self.home / ".slurm" / "config": hosts,
            self.home / ".sky" / "config.yaml": config,
            catalog / "accelerators.csv": f"AcceleratorName,Clouds\n{GPU.upper()},\"['Slurm']\"\n",
            catalog / "metadata.csv": f"GPU,MemoryGB,Manufacturer\n{GPU.upper()},80,NVIDIA\n",
        }.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@asynccontextmanager
async def running_lab(folder: Path) -> AsyncIterator[SlurmLab]:
    """A started lab in an empty folder, stopped at the end."""
    lab = SlurmLab(folder)
    try:
        await lab.start()
        yield lab
    finally:
        await lab.stop()
