"""The data folder of the embedded stack: one owner at a time, and what it remembers between two runs."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from skyfleet.client import Endpoints
from skyfleet.ports import shuffled
from skyfleet.stack.processes import end_stale, start_mark

#: The ports that are used when they are free.
USUAL_PORTS: Final[dict[str, int]] = {
    "api": 8080,
    "dashboard": 8501,
    "temporal": 7233,
    "temporal_ui": 8233,
    "local_cloud": 8090,
    "postgres": 54329,
    "worker_health": 8091,
    "model_bucket": 8092,
}


class FolderInUse(Exception):
    """Another `skyfleet up` runs on this data folder."""


class PortTaken(Exception):
    """A port that a person asked for belongs to somebody else."""


class _Child(BaseModel):
    pid: int
    mark: str  # tells it from a later process with the same pid


class _Children(BaseModel):
    children: dict[str, _Child] = {}


class DataFolder:
    """`path`, made if missing. Everything secret in it is readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = None
        self._claims = ExitStack()

    @property
    def endpoints_file(self) -> Path:
        """Where scripts find the running stack."""
        return self.path / "endpoints.json"

    def lock(self) -> None:
        """Become the folder's one owner, until `unlock` or the end of this process. Raises `FolderInUse`."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise FolderInUse(
                f"another `skyfleet up` (pid {owner}) runs on {self.path}; stop it first, or give another folder "
                "with --data"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor

    @property
    def locked(self) -> bool:
        """Whether we own the folder."""
        return self._lock is not None

    def unlock(self) -> None:
        """Let others have the folder, and its ports."""
        self._claims.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def admin_token(self) -> str:
        """The control plane's own token: `SKYFLEET_ADMIN_TOKEN`, else one made once for this folder."""
        if given := os.environ.get("SKYFLEET_ADMIN_TOKEN"):
            return given
        file = self.path / "admin_token"
        if not file.exists():
            self._write("admin_token", secrets.token_urlsafe(32))
        return file.read_text().strip()

    def ports(self, wanted: Mapping[str, int], host: str) -> tuple[dict[str, int], dict[str, int]]:
        """The ports of this run, and those of the run before that had to change (name → old port).

        For each: the one wanted, else the one remembered, else the usual one, else any that is free. A wanted port
        that is taken raises `PortTaken`; 0 wants any. `host` is what the API listens on. No other stack gets them
        until `unlock`.
        """
        self._claims.close()
        remembered = self._remembered_ports()
        ports: dict[str, int] = {}
        with ExitStack() as held:  # each is held until all are chosen, so that no two are the same
            for name, usual in USUAL_PORTS.items():
                address = host if name == "api" else "127.0.0.1"
                asked = wanted.get(name)
                if asked and not self._free(held, address, asked):
                    raise PortTaken(f"port {asked} (asked for: {name}) is taken by another program")
                first = [port for port in (remembered.get(name), usual) if port is not None and asked is None]
                ports[name] = asked or self._first_free(held, address, first)
        self._write("ports.json", json.dumps(ports, indent=2))
        return ports, {name: port for name, port in remembered.items() if ports.get(name, port) != port}

    def another_port(self, usual: int) -> int:
        """One more port of this run on loopback: the usual one, else any that is free. It is not remembered."""
        with ExitStack() as held:
            return self._first_free(held, "127.0.0.1", [usual])

    def _first_free(self, held: ExitStack, host: str, wanted: Iterable[int]) -> int:
        """The first of those wanted that is free, else any."""
        return next(port for port in chain(wanted, shuffled()) if self._free(held, host, port))

    def _free(self, held: ExitStack, host: str, port: int) -> bool:
        """Whether neither a program listens there nor another stack has chosen it."""
        return _bind(held, host, port) and _claim(self._claims, port)

    def remember_children(self, pids: Mapping[str, int]) -> None:
        """Write down which processes are ours, for the run after one that was killed."""
        children = {name: _Child(pid=pid, mark=mark) for name, pid in pids.items() if (mark := start_mark(pid))}
        self._write("pids.json", _Children(children=children).model_dump_json(indent=2))

    def end_stale_children(self) -> list[str]:
        """End what a killed run left behind; the names of what was still there. Only under the lock."""
        try:
            known = _Children.model_validate_json((self.path / "pids.json").read_bytes()).children
        except (OSError, ValidationError):
            return []
        # PostgreSQL: SIGINT is its "fast" shutdown, SIGTERM would wait for its clients.
        polite = {"postgres": signal.SIGINT}
        return [
            name
            for name, child in known.items()
            if end_stale(child.pid, child.mark, self.path, polite.get(name, signal.SIGTERM), timeout_s=5.0)
        ]

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Say where the running stack is."""
        self._write(self.endpoints_file.name, endpoints.model_dump_json(indent=2) + "\n")

    def remove_endpoints(self) -> None:
        """Nothing runs here (any more)."""
        self.endpoints_file.unlink(missing_ok=True)

    def _remembered_ports(self) -> dict[str, int]:
        try:
            known = json.loads((self.path / "ports.json").read_text())
        except (OSError, ValueError):
            return {}
        return {name: port for name, port in known.items() if name in USUAL_PORTS and isinstance(port, int)}

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole, readable by its owner alone from its first moment."""
        making = self.path / f".{name}.{os.getpid()}"
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        making.replace(self.path / name)


def children(path: Path) -> dict[str, int | None]:
    """What the stack on this data folder started, by name: the pid, or None where it does not run any more."""
    try:
        known = _Children.model_validate_json((path / "pids.json").read_bytes()).children
    except (OSError, ValidationError):
        return {}
    return {name: child.pid if start_mark(child.pid) == child.mark else None for name, child in known.items()}


def port_of(path: Path, name: str) -> int | None:
    """The port that the stack on this data folder chose last, by its name in `USUAL_PORTS`."""
    try:
        port = json.loads((path / "ports.json").read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None
    return port if isinstance(port, int) else None


def _bind(held: ExitStack, host: str, port: int) -> bool:
    """Bind a port until `held` closes; False when somebody else has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family)
    # As servers do: connections of an earlier run that wait in the kernel for their end do not count.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError:
        probe.close()
        return False
    held.callback(probe.close)
    return True


def _claim(claims: ExitStack, port: int) -> bool:
    """Choose a port before any other stack does, until `claims` closes or this process ends; False if it is chosen.

    A server binds its port seconds after it was chosen. Until then only a name tells a second stack of it: a Unix
    socket in Linux's abstract namespace (unix(7)), which the kernel removes with its process.
    """
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0skyfleet-port-{port}")
    except OSError:
        name.close()
        return False
    claims.callback(name.close)
    return True
