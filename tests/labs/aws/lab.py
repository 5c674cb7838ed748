"""A real SkyPilot API server whose AWS is `cloud.py`: launches, errors and terminations with no cloud account.

    async with running_lab(folder) as lab:
        await lab.fault(code="InsufficientInstanceCapacity", market="spot")
        ...                                # a process with `lab.env` uses SkyPilot's SDK or command line
        assert not await lab.running()

All state lies in the folder (SkyPilot's HOME), all ports are free ones on loopback: labs may run side by side. Both
servers run below a guard, which kills them and all that they started when they are stopped or when this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import TypeAdapter

from skyfleet.agent.processes import descendants, die_with_parent
from tests.labs.aws import catalog, runtime
from tests.labs.aws.records import Call, Fault, Instance, Market, Preemption, Rule
from tests.postgres import free_port
from tests.waiting import eventually

ROOT: Final = Path(__file__).parents[3]
#: SkyPilot runs these, and does not start a launch without them.
PROGRAMS: Final = ("ssh", "ssh-keygen", "rsync", "pkill")
MACHINE_PROGRAMS: Final = ("ip", "sshd", "curl")
#: In a private box, its address on its machines' network.
BOX: Final = "SKYFLEET_LAB_BOX"
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_SKY: Final = Path(sys.executable).parent / "sky"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 20.0

_CALLS: Final = TypeAdapter(list[Call])
_INSTANCES: Final = TypeAdapter(list[Instance])
_RULES: Final = TypeAdapter(list[Rule])


def missing(*, machines: bool = False) -> str | None:
    """Why a lab cannot be had here, with or without machines; None if it can."""
    programs = [*PROGRAMS, *(MACHINE_PROGRAMS if machines else ())]
    absent = [program for program in programs if shutil.which(program, path=_PATH) is None]
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
        self.home = folder / "home"
        self._user_id = secrets.token_hex(4)
        self._cloud_port = free_port()
        self._server_port = free_port()
        self._cloud: _Guarded | None = None
        self._server: _Guarded | None = None
        self._http = httpx.AsyncClient(trust_env=False, timeout=30)

    @property
    def endpoint(self) -> str:
        """The address of SkyPilot's API server."""
        return f"http://127.0.0.1:{self._server_port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that asks this lab's SkyPilot: everything that it needs, and nothing of ours."""
        return {**self._server_env(), "SKYPILOT_API_SERVER_ENDPOINT": self.endpoint}

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
        self._cloud = _Guarded(cloud, {**os.environ}, self.folder / "cloud.log", ROOT)
        await self.start_api_server()
        await self._until(self._cloud, f"{self._cloud_url}/_lab/instances")
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
        command = [str(_SKY), "api", "start", "--foreground"]
        self._server = _Guarded(command, self._server_env(), self.folder / "skypilot.log", self.home)
        await self._until(self._server, f"{self.endpoint}/api/health")

    async def kill_api_server(self) -> None:
        """SIGKILL to the API server and all of its processes, as when its machine fails. Its records stay."""
        if self._server is not None:
            await self._server.kill()
            self._server = None

    def api_server_processes(self) -> list[int]:
        """Ids of the API server's processes, its executors and theirs; empty when it does not run."""
        return descendants(self._server.pid) if self._server is not None else []

    def machine_processes(self) -> list[int]:
        """Ids of the processes of all machines that are on."""
        return descendants(self._cloud.pid)[1:] if self._cloud is not None else []  # the first is the cloud's own

    async def sky(self, *arguments: str) -> str:
        """Run SkyPilot's command line; its output. Raises CalledProcessError when it fails."""
        command = [str(_SKY), *arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output.decode())
        return output.decode()

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
        (self.folder / "tmp").mkdir()

    def _server_env(self) -> dict[str, str]:
        search = [str(Path(sys.executable).parent), _PATH]
        return {
            "HOME": str(self.home),
            "PATH": os.pathsep.join(search),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "AWS_ENDPOINT_URL": self._cloud_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self._server_port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            # Of the machine's user and name otherwise, so that two labs would share what lies in /tmp under it.
            "SKYPILOT_USER_ID": self._user_id,
            # SkyPilot makes a wheel of itself for its machines: with the setuptools that is here, nothing downloaded.
            # (pip turns this variable round: 0 is no isolation.)
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "NO_PROXY": "*",
        }

    async def _until(self, process: _Guarded, url: str) -> None:
        async def answers() -> bool:
            if not process.running:
                raise RuntimeError(f"{process.log} ends: {process.log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(httpx.HTTPError):
                return (await self._http.get(url)).is_success
            return False

        await eventually(answers, timeout_s=_START_SECONDS, what=f"an answer of {url}, see {process.log}:")


class _Guarded:
    """A command below `skyfleet.agent.guard`, whose pipe we hold: the guard kills all below it when the pipe closes."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.log = log
        guard = [sys.executable, "-m", "skyfleet.agent.guard", "--grace-s", str(_STOP_SECONDS), "--", *command]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                guard,
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def kill(self) -> None:
        """Returns when nothing of it is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.to_thread(self._process.wait, _STOP_SECONDS)


@asynccontextmanager
async def running_lab(folder: Path, *, machines: bool = False) -> AsyncIterator[AwsLab]:
    """A started lab in an empty folder, stopped at the end."""
    lab = AwsLab(folder, machines=machines)
    try:
        await lab.start()
        yield lab
    finally:
        await lab.stop()
