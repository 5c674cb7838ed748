"""Starting and ending single processes so that none is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def ends_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` that has the kernel send `signum` to the child when the thread that started it dies.

    It must run after a change of user, which clears the setting (prctl(2)); `subprocess` changes the user first. The
    setting is not inherited by the child's own children. None where the kernel has no such thing.
    """
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return in_child


async def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    output: int,
    death_signal: signal.Signals = signal.SIGKILL,
    identity: Mapping[str, Any] | None = None,
) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, writing to the descriptor `output`, that does not outlive this thread.

    Raises `OSError` when the program cannot be started.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=dict(env),
        start_new_session=True,
        preexec_fn=ends_with_parent(death_signal),
        **(identity or {}),
    )


def signal_group(pid: int, signum: signal.Signals) -> None:
    """Send `signum` to the process group that the child leads; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signum)


def kill_group(leader: int, folder: Path, *, patience_s: float = 5.0) -> bool:
    """Kill what is left of the process group that a child led, once the child itself is gone; whether there was any.

    A group's number may be another's by now: on Linux only processes that still work in `folder`, where the child was
    started, are taken for its own.
    """
    if sys.platform != "linux":
        signal_group(leader, signal.SIGKILL)
        return False
    home = str(folder.resolve())
    found = False
    deadline = time.monotonic() + patience_s
    while (left := [pid for pid in _members(leader) if _working_folder(pid) == home]) and time.monotonic() < deadline:
        found = True
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return found


def _members(group: int) -> list[int]:
    """The processes of a group: those whose field 5 of proc(5)'s `stat` is its number."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state not in ("Z", "X"):
                    found.append(int(entry.name))
    return found


def _working_folder(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def exit_text(returncode: int) -> str:
    """How a process ended, in words: `exit status 3`, `killed by SIGKILL`."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def start_mark(pid: int) -> str | None:
    """Something that tells this process from a later one with the same pid; None when it does not run.

    On Linux the start time in clock ticks since boot, field 22 of proc(5)'s `stat`; elsewhere what `ps` says.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        # The program's name, in parentheses, may hold spaces and parentheses itself.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def end_stale(pid: int, mark: str, folder: Path, signum: signal.Signals, *, timeout_s: float = 5.0) -> bool:
    """End what an earlier supervisor left behind: the child, by `signum` and then SIGKILL, and the rest of its group.

    `folder` is where the child was started. False when all of it was gone already.
    """
    ended = _end_stale_child(pid, mark, signum, timeout_s)
    if sys.platform != "linux" and not ended:
        return False  # the group may be a stranger's by now
    return kill_group(pid, folder) or ended


def _end_stale_child(pid: int, mark: str, signum: signal.Signals, timeout_s: float) -> bool:
    if start_mark(pid) != mark:
        return False
    for sent, patience_s in ((signum, timeout_s), (signal.SIGKILL, timeout_s)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if start_mark(pid) != mark:
                return True
            time.sleep(0.02)
    return True
