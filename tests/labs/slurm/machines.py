"""A machine of the lab's clusters while it is on: namespaces on this machine, in a private box (`../box.sh`)."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Final

from skyfleet.agent.processes import descendants
from tests.labs.api_server import PATH
from tests.labs.aws import runtime as home
from tests.labs.slurm import runtime
from tests.labs.slurm.clusters import Cluster, Machine

_HERE: Final = Path(__file__).parent
_OWN_SPACES: Final = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")
_ENTERED: Final = ("--net", "--pid", "--mount", "--uts", "--ipc", "--root", "--wd")
_OFF_SECONDS: Final = 20.0


class NotRunning(Exception):
    """The machine is off; the text is the end of its log."""


class RunningMachine:
    """A machine, turned on; `folder` is what `clusters.furnish` filled."""

    def __init__(self, cluster: Cluster, machine: Machine, folder: Path) -> None:
        own = folder / "machines" / machine.name
        own.mkdir(parents=True)
        self._log = folder / f"{machine.name}.log"
        env = {
            "PATH": PATH,
            "MACHINE_NAME": machine.name,
            "MACHINE_ADDRESS": machine.address,
            "MACHINE_ROLE": machine.role,
            "MACHINE_FOLDER": str(own),
            "LAB_ETC": str(folder / "etc" / cluster.name),
            "LAB_HOME": str(folder / "home-of" / cluster.name),
            "LAB_OPT": str(_HERE / "opt"),
            "LAB_RUNTIME": str(home.folder()),
            "LAB_HOSTLIST": str(runtime.folder()),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *_OWN_SPACES, str(_HERE / "machine.sh")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def run(self, *command: str) -> str:
        """Run a command on it as root; its output. Raises CalledProcessError when it fails, NotRunning."""
        # Below unshare there is one process, the machine's first.
        first = next(iter(descendants(self._process.pid)), None)
        if first is None or self._process.poll() is not None:
            raise NotRunning(f"{self._log} ends: {self._log.read_text(errors='replace')[-2000:]}")
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(first), *_ENTERED, *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode is not None
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output.decode(), errors.decode())
        return output.decode()

    async def turn_off(self) -> None:
        """End it and all that runs on it, at once, as when its power fails."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait, _OFF_SECONDS)
