"""A real SkyPilot API server whose AWS is `cloud.py`: launches, errors and terminations with no cloud account.

    async with running_lab(folder) as lab:
        await lab.fault(code="InsufficientInstanceCapacity", market="spot")
        ...                                # a process with `lab.env` uses SkyPilot's SDK or command line
        assert not await lab.running()

All state lies in the folder (SkyPilot's HOME), all ports are free ones on loopback: labs may run side by side. Both
servers run below a guard, which kills them and all that they started when they are stopped or when this process ends.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import TypeAdapter

from skyfleet.agent.processes import descendants
from tests.labs.api_server import PATH, PROGRAMS, ApiServer, Guarded
from tests.labs.aws import catalog, runtime
from tests.labs.aws.records import Call, Fault, Instance, Market, Preemption, Rule
from tests.ports import free_port

ROOT: Final = Path(__file__).parents[3]
MACHINE_PROGRAMS: Final = ("ip", "sshd", "curl")
#: In a private box, its address on its machines' network.
BOX: Final = "SKYFLEET_LAB_BOX"

_CALLS: Final = TypeAdapter(list[Call])
_INSTANCES: Final = TypeAdapter(list[Instance])
_RULES: Final = TypeAdapter(list[Rule])


def missing(*, machines: bool = False) -> str | None:
    """Why a lab cannot be had here, with or without machines; None if it can."""
    programs = [*PROGRAMS, *(MACHINE_PROGRAMS if machines else ())]
    absent = [program for program in programs if shutil.which(program, path=PATH) is None]
    if absent:
        return f"SkyPilot's AWS lab needs {', '.join(absent)}: see `make debian-packages`, `make test-slow`"
    if machines and BOX not in os.environ:
        return "machines need a private box, and that needs root: tests/labs/box.sh pytest -m lab"
    if machines and not runtime.folder().is_dir():
        return "no runtime for machines: python -m tests.labs.aws.runtime"
    return None


@dataclass(frozen=True)
class InjectedFault:
    """A fault in force."""

    lab: AwsLab
    id: int

    async def remove(self) -> None:
        """Let calls through again."""
        await self.lab.control("DELETE", f"faults/{self.id}")

    async def hits(self) -> int:
        """How many calls it caught so far; 0 once removed."""
        rules = _RULES.validate_json(await self.lab.control("GET", "faults"))
        return sum(rule.hits for rule in rules if rule.id == self.id)


class AwsLab:
    """One lab. `start` it, `stop` it; in between, what it tells of its cloud is true to the moment.

    With `machines` its instances are machines that one can log into and that run what they are given. That needs a
    private box and a built runtime: see `missing`. Without, a launch that AWS grants waits for ssh, in vain.
    """

    def __init__(self, folder: Path, *, machines: bool = False) -> None:
        self.folder = folder
        self._with_machines = machines
        self._cloud_port = free_port()
        self._cloud: Guarded | None = None
        self._server = ApiServer(folder, {"AWS_ENDPOINT_URL": self._cloud_url, "AWS_EC2_METADATA_DISABLED": "true"})
        self.home = self._server.home
        self._http = httpx.AsyncClient(trust_env=False, timeout=30)

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
        """Start the cloud, then the API server; returns when both answer and AWS is enabled."""
        self._furnish()
        cloud = [sys.executable, "-m", "tests.labs.aws.cloud", "--port", str(self._cloud_port)]
        if self._with_machines:
            cloud += ["--machines", str(self.folder / "machines")]
        self._cloud = Guarded(cloud, {**os.environ}, self.folder / "cloud.log", ROOT)
        await self.start_api_server()
        await self._cloud.until_answers(f"{self._cloud_url}/_lab/instances")
        await self.sky("check", "aws")

    async def stop(self) -> None:
        """End both, and everything that they started."""
        await self.kill_api_server()
        if self._cloud is not None:
            await self._cloud.kill()
            self._cloud = None
        await self._http.aclose()

    async def start_api_server(self) -> None:
        """Start SkyPilot's API server, with the records that an earlier one left; returns when it answers."""
        await self._server.start()

    async def kill_api_server(self) -> None:
        """SIGKILL to the API server and all of its processes, as when its machine fails. Its records stay."""
        await self._server.kill()

    def api_server_processes(self) -> list[int]:
        """Ids of the API server's processes, its executors and theirs; empty when it does not run."""
        return self._server.processes()

    def machine_processes(self) -> list[int]:
        """Ids of the processes of all machines that are on."""
        return descendants(self._cloud.pid)[1:] if self._cloud is not None else []  # the first is the cloud's own

    async def sky(self, *arguments: str) -> str:
        """Run SkyPilot's command line; its output. Raises CalledProcessError when it fails."""
        return await self._server.sky(*arguments)

    async def fault(
        self,
        code: str | None = None,
        *,
        action: str | None = "RunInstances",
        service: str | None = None,
        region: str | None = None,
        zone: str | None = None,
        market: Market | None = None,
        instance_type: str | None = None,
        message: str | None = None,
        drop_reply: bool = False,
        delay_s: float = 0.0,
        delay_after_s: float = 0.0,
        times: int | None = None,
    ) -> InjectedFault:
        """Make the calls that match fail, lose their reply or be late: see `records.Fault`. `action=None` is any."""
        fault = Fault(
            code=code,
            action=action,
            service=service,
            region=region,
            zone=zone,
            market=market,
            instance_type=instance_type,
            message=message,
            drop_reply=drop_reply,
            delay_s=delay_s,
            delay_after_s=delay_after_s,
            times=times,
        )
        rule = Rule.model_validate_json(await self.control("POST", "faults", fault.model_dump()))
        return InjectedFault(self, rule.id)

    async def clear_faults(self) -> None:
        """Remove all of them."""
        await self.control("DELETE", "faults")

    async def calls(self, action: str | None = None) -> list[Call]:
        """The calls that AWS got, oldest first; of one action, or all."""
        calls = _CALLS.validate_json(await self.control("GET", "calls"))
        return [call for call in calls if action in (None, call.action)]

    async def clear_calls(self) -> None:
        """Forget the calls so far."""
        await self.control("DELETE", "calls")

    async def instances(self) -> list[Instance]:
        """The ledger: every instance that was ever made, ended ones too."""
        return _INSTANCES.validate_json(await self.control("GET", "instances"))

    async def running(self) -> list[Instance]:
        """The instances that cost something."""
        return [instance for instance in await self.instances() if not instance.ended]

    async def preempt(self, instance_id: str, *, notice_s: float = 0.0) -> None:
        """The cloud takes the machine away, `notice_s` after it said so in the instance's metadata (AWS: 120 s)."""
        await self.control("POST", "preemptions", Preemption(instance_id=instance_id, notice_s=notice_s).model_dump())

    async def control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Ask the cloud's control path; HTTPStatusError when it refuses."""
        answer = await self._http.request(method, f"{self._cloud_url}/_lab/{path}", json=body)
        answer.raise_for_status()
        return answer.content

    @property
    def _cloud_url(self) -> str:
        return f"http://127.0.0.1:{self._cloud_port}"

    def _furnish(self) -> None:
        """Write the files of a person who uses SkyPilot on AWS."""
        catalog.write(self.home / ".sky")
        (self.home / ".sky" / "config.yaml").write_text("allowed_clouds: [aws]\n")
        (self.home / ".aws").mkdir()
        (self.home / ".aws" / "config").write_text(f"[default]\nregion = {next(iter(catalog.REGIONS))}\n")
        keys = "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = secret-of-the-lab\n"
        (self.home / ".aws" / "credentials").write_text(f"[default]\n{keys}")


@asynccontextmanager
async def running_lab(folder: Path, *, machines: bool = False) -> AsyncIterator[AwsLab]:
    """A started lab in an empty folder, stopped at the end."""
    lab = AwsLab(folder, machines=machines)
    try:
        await lab.start()
        yield lab
    finally:
        await lab.stop()
