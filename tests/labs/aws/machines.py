"""Machines for the instances of the lab's cloud: namespaces on this machine, with ssh, in a private box (`box.sh`).

A machine is on while its instance runs. It is reached at the instance's public address, and reaches the box and the
other machines at theirs; it has Python, curl, uv and what SkyPilot installs (`runtime.py`), and no other network.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.labs.aws.records import Instance

_SCRIPT: Final = Path(__file__).with_name("machine.sh")
_NAMESPACES: Final = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")
_BRIDGE: Final = "machines"  # as in box.sh
_SECONDS: Final = 20.0

#: Tells of all instances: id to what the ledger says, and the user data.
Wanted = Callable[[], Mapping[str, tuple[Instance, str]]]
#: Is told the id of an instance whose machine turned itself off; it is not wanted any more afterwards.
TurnedOff = Callable[[str], None]


class Machines:
    """The machines that are on. `box` is the box's address on their network, `env` what all that runs on them has."""

    def __init__(
        self, folder: Path, home: Path, box: str, env: Mapping[str, str], wanted: Wanted, turned_off: TurnedOff
    ) -> None:
        self._folder = folder
        self._home = home
        self._box = box
        self._env = env
        self._wanted = wanted
        self._turned_off = turned_off
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._on: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True)
        self._host_key = folder / "host-key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._host_key)], check=True)

    def follow(self) -> None:
        """Turn machines on and off as the instances say."""
        with self._lock:
            ledger = self._wanted()
            for instance_id, (instance, user_data) in ledger.items():
                if instance.state == "running" and instance_id not in self._on:
                    self._on[instance_id] = self._boot(instance, user_data)
            for instance_id in [one for one in self._on if ledger[one][0].state != "running"]:
                machine = self._on.pop(instance_id)
                machine.kill()
                machine.wait(_SECONDS)

    def _boot(self, instance: Instance, user_data: str) -> subprocess.Popen[bytes]:
        folder = self._folder / instance.id
        folder.mkdir(exist_ok=True)
        keys = self._folder / f"{instance.id}.keys"
        keys.write_text("".join(f"{key}\n" for key in re.findall(r"ssh-(?:rsa|ed25519) [A-Za-z0-9+/=]+", user_data)))
        assert instance.public_ip is not None
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "MACHINE_ID": instance.id,
            "MACHINE_FOLDER": str(folder),
            "MACHINE_HOME": str(self._home),
            "MACHINE_KEYS": str(keys),
            "MACHINE_HOST_KEY": str(self._host_key),
            "MACHINE_PUBLIC_IP": instance.public_ip,
            "MACHINE_PRIVATE_IP": instance.private_ip,
            "MACHINE_GATEWAY": self._box,
            "MACHINE_ENV": " ".join(f"{name}={value}" for name, value in self._env.items()),
        }
        with (self._folder / f"{instance.id}.log").open("ab") as log:
            machine = subprocess.Popen(
                ["unshare", *_NAMESPACES, str(_SCRIPT)], env=env, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        threading.Thread(target=self._watch, args=(instance, machine), daemon=True).start()
        return machine

    def _watch(self, instance: Instance, machine: subprocess.Popen[bytes]) -> None:
        """Connect a machine, then wait until it is off."""
        try:
            self._connect(instance, machine)
        except (OSError, subprocess.CalledProcessError):
            if machine.poll() is None:  # else it was turned off meanwhile
                raise
        machine.wait()
        subprocess.run(["ip", "route", "del", f"{instance.public_ip}/32"], stderr=subprocess.DEVNULL)
        with self._lock:
            if self._on.get(instance.id) is machine:
                self._turned_off(instance.id)
                del self._on[instance.id]

    def _connect(self, instance: Instance, machine: subprocess.Popen[bytes]) -> None:
        namespace = Path(f"/proc/{machine.pid}/ns/net")
        outside = Path("/proc/self/ns/net").readlink()
        while machine.poll() is None and namespace.readlink() == outside:
            time.sleep(0.002)
        card = f"machine{next(self._numbers)}"
        for command in (
            f"link add {card} type veth peer name eth0 netns {machine.pid}",
            f"link set {card} master {_BRIDGE} up",
            f"route replace {instance.public_ip}/32 dev {_BRIDGE}",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        assert machine.stdin is not None
        machine.stdin.write(b"\n")
        machine.stdin.flush()
