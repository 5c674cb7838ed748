"""Processes as Linux shows them in /proc. Source: proc(5), prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class ProcessInfo:
    """One process; `start_ticks` (clock ticks since boot) tells it from a later one with the same id."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    zombie: bool


def process_info(pid: int) -> ProcessInfo | None:
    """The process of that id; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    return ProcessInfo(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in ("Z", "X"))


def all_processes() -> Iterator[ProcessInfo]:
    """Every process that can be seen now."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            info = process_info(int(name))
            if info is not None:
                yield info


def boot_id() -> str:
    """Identifies this boot of the machine: process ids and start times mean nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Ids of all living processes below `pid`, in whatever session they are."""
    children: dict[int, list[int]] = {}
    for info in all_processes():
        if not info.zombie:
            children.setdefault(info.parent, []).append(info.pid)
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (kept across exec). For a freshly forked child."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended, so that none of them gets away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def engine_group(pid: int, mark: str) -> dict[str, int | str]:
    """What identifies the engine started as `pid`, for `end_group` of a later run.

    `mark` is a `NAME=value` that is in the engine's environment and in no other process's.
    """
    info = process_info(pid)
    return {"pid": pid, "start_ticks": info.start_ticks if info else 0, "boot_id": boot_id(), "mark": mark}


def end_group(group: Mapping[str, object], timeout_s: float = 5.0) -> int:
    """Kill what is left of an engine written down by `engine_group`; returns how many processes there were.

    These are, in the same boot and no older than the first of them: the members of its session, unless another process
    has come to that id since, and all that carry its mark, because a worker may have begun a session of its own.
    """
    pid, start, boot, mark = (group.get(key) for key in ("pid", "start_ticks", "boot_id", "mark"))
    if not isinstance(pid, int) or not isinstance(start, int) or not isinstance(mark, str):
        return 0
    if pid <= 1 or not mark or boot != boot_id():
        return 0
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while True:
        leader = process_info(pid)
        session = pid if leader is None or leader.start_ticks == start else None
        living = [
            info.pid
            for info in all_processes()
            if info.start_ticks >= start
            and not info.zombie
            and info.pid != os.getpid()
            and (info.session == session or _carries(info.pid, mark))
        ]
        if not living or time.monotonic() > deadline:
            return len(killed)
        kill_all(living)
        killed.update(living)
        time.sleep(0.01)


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # it ended, or is another user's
    return mark.encode() in environment.split(b"\0")


def kill_all(pids: list[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
