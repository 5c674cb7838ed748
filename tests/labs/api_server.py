"""A real SkyPilot API server for a lab: the one in our environment, with a HOME of its own, on a free port.

It runs below a guard, which kills it and all that it started when it is stopped or when this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from skyfleet.agent.processes import descendants, die_with_parent
from skyfleet.ports import is_free
from tests.ports import free_port
from tests.waiting import eventually

#: Programs that SkyPilot runs; without them it does not start a launch.
PROGRAMS: Final = ("ssh", "ssh-keygen", "rsync", "pkill")
#: Where programs are looked for, those of system services too.
PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_PORT_TAKEN: Final = "is already in use by another process"
_SKY: Final = Path(sys.executable).parent / "sky"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 20.0


class Guarded:
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
        """Of the guard; what it guards is below."""
        return self._process.pid

    async def until_answers(self, url: str) -> None:
        """Wait for a success at `url`. Raises RuntimeError with the log's end when the command ends before."""

        async def answers() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.log} ends: {self.log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(httpx.HTTPError):
                return (await http.get(url)).is_success
            return False

        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            await eventually(answers, timeout_s=_START_SECONDS, what=f"an answer of {url}, see {self.log}:")

    async def kill(self) -> None:
        """Returns when nothing of it is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.to_thread(self._process.wait, _STOP_SECONDS)


def _queue_port_free(port: int) -> bool:
    """Whether a server on that port can have the one of its queue (`sky.server.requests.queues.mp_queue`)."""
    return is_free("127.0.0.1", 50_000 + (11 + port - 46_580) % 10_000)


class ApiServer:
    """One server. `folder` is for its files; `env` is what it needs to know of the lab's cloud."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.home = folder / "home"
        self._tmp = folder / "tmp"
        self._log = folder / "skypilot.log"
        self._extra = dict(env)
        self._port = free_port(also=_queue_port_free)
        # Of the machine's user and name otherwise, so that two labs would share what lies in /tmp under it.
        self._user_id = secrets.token_hex(4)
        self._server: Guarded | None = None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that asks it: everything that such a process needs, and nothing of ours."""
        return {**self._own_env(), "SKYPILOT_API_SERVER_ENDPOINT": self.endpoint}

    async def start(self) -> None:
        """Start it, with the records that an earlier one left; returns when it answers."""
        self._tmp.mkdir(exist_ok=True)
        for pause in (2.0, 5.0, 10.0, 20.0, 30.0, None):
            self._server = Guarded([str(_SKY), "api", "start", "--foreground"], self._own_env(), self._log, self.home)
            try:
                await self._server.until_answers(f"{self.endpoint}/api/health")
            except RuntimeError as ended:
                # Its queue's port is one of those that Linux gives to outgoing connections, and keeps a minute longer.
                if pause is None or _PORT_TAKEN not in str(ended):
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def kill(self) -> None:
        """SIGKILL to it and all of its processes, as when its machine fails. Its records stay."""
        if self._server is not None:
            await self._server.kill()
            self._server = None

    def processes(self) -> list[int]:
        """Ids of its processes, its executors and theirs; empty when it does not run."""
        return descendants(self._server.pid) if self._server is not None else []

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

    def _own_env(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), PATH]),
            "TMPDIR": str(self._tmp),
            "LANG": "C.UTF-8",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self._port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_USER_ID": self._user_id,
            # SkyPilot makes a wheel of itself for its machines: with the setuptools that is here, nothing downloaded.
            # (pip turns this variable round: 0 is no isolation.)
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "NO_PROXY": "*",
            **self._extra,
        }
