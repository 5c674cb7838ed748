"""Machines as real processes: a session of its own for each, led by its node agent.

A process belongs to a machine when it carries the machine's mark in its environment (children inherit it), works in
the machine's folder, is in the session that the agent leads, or descends from one that does. One that shed all of
that, and whose parents are gone, is no longer known as the machine's. A pid alone is never trusted: it counts with its
start time from /proc, so that a recycled one is never signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "SKYFLEET_MACHINE"
#: Between SIGTERM and SIGKILL, seconds.
GRACE_S = 2.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it. `started`: clock ticks since the host's boot."""

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


def host_boot() -> str:
    """Identifies the host's present boot: pids from another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def look(pid: int) -> Process | None:
    """The process of that pid, zombies included."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything; what follows the last one is numbers. See proc_pid_stat(5).
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))


def alive(pid: int | None, started: int | None) -> bool:
    """Whether that very process still runs."""
    process = None if pid is None else look(pid)
    return process is not None and process.started == started and not process.zombie


def members(machine_id: str, folder: Path, leader: tuple[int, int] | None) -> list[Process]:
    """All living processes of a machine. `leader`: pid and start time of its agent, if it was ever started."""
    everyone = {pid: process for pid in _pids() if (process := look(pid)) is not None}
    first = None if leader is None else everyone.get(leader[0])
    session = first.pid if first is not None and leader is not None and first.started == leader[1] else None
    mark = f"{MARK}={machine_id}".encode()
    found = {
        process.pid
        for process in everyone.values()
        if not process.zombie and (process.session == session or _marked(process.pid, mark, folder))
    }
    children: dict[int, list[int]] = {}
    for process in everyone.values():
        children.setdefault(process.parent, []).append(process.pid)
    pending = list(found)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return [everyone[pid] for pid in found if not everyone[pid].zombie]


def leader_of(machine_id: str, folder: Path) -> Process | None:
    """The machine's agent, found by its mark: for one that was started just before its pid could be written down."""
    return next((one for one in members(machine_id, folder, None) if one.session == one.pid), None)


def kill(process: Process, number: signal.Signals) -> None:
    """Signal that very process; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            # The handle holds on to one process: if the start time fits now, the signal cannot reach another.
            if alive(process.pid, process.started):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


async def end(machine_id: str, folder: Path, leader: tuple[int, int] | None) -> None:
    """SIGTERM to all of a machine's processes, SIGKILL after `GRACE_S`; returns when none is left."""
    loop = asyncio.get_running_loop()
    known: dict[tuple[int, int], Process] = {}
    told: set[tuple[int, int]] = set()
    deadline = loop.time() + GRACE_S
    while True:
        for process in await asyncio.to_thread(members, machine_id, folder, leader):
            known[process.pid, process.started] = process
        # One that was seen once stays known, though its parent and its session's leader may be gone by now.
        known = {key: process for key, process in known.items() if alive(*key)}
        if not known:
            return
        late = loop.time() >= deadline
        for key, process in known.items():
            if late:
                kill(process, signal.SIGKILL)
            elif key not in told:
                told.add(key)
                kill(process, signal.SIGTERM)
        pause_until = loop.time() + 0.5
        while loop.time() < pause_until and any(alive(*key) for key in known):  # noqa: ASYNC110 - they set no event
            await asyncio.sleep(_POLL_S)


def start(machine_id: str, folder: Path, argv: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a machine's agent in its folder, in a session of its own; returns it and its start time.

    Its environment is clean: a path, a home, a language, the machine's mark, and where llama.cpp is, if anywhere.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        MARK: machine_id,
    }
    environment |= {name: os.environ[name] for name in ("LLAMA_SERVER", "LD_LIBRARY_PATH") if name in os.environ}
    with (folder / "console.log").open("ab") as console:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    seen = look(process.pid)
    assert seen is not None  # not reaped yet: at the very least its zombie is there
    return process, seen.started


def watch(pid: int, on_exit: Callable[[], None]) -> Callable[[], None]:
    """Call `on_exit` once when the process, child of ours or not, is gone; returns what stops watching."""
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return loop.call_soon(on_exit).cancel
    open_handles = [handle]

    def stop() -> None:
        while open_handles:
            loop.remove_reader(open_handles[0])
            os.close(open_handles.pop())

    def gone() -> None:
        stop()
        on_exit()

    loop.add_reader(handle, gone)
    return stop


def write_private(path: Path, data: str | bytes) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    fresh = path.with_name(f".{path.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    fresh.replace(path)


def touch_command(path: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The argument vector that makes the file `path`."""
    return [shutil.which("touch", path=environment.get("PATH")) or "touch", str(path)]


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _marked(pid: int, mark: bytes, folder: Path) -> bool:
    try:
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
        where = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:  # gone, or another user's
        return False
    return where == folder or folder in where.parents
