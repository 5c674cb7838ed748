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


def end_stale(pid: int, mark: str, signum: signal.Signals, *, timeout_s: float = 5.0) -> bool:
    """End a process that an earlier supervisor left behind: `signum`, then SIGKILL. False when it was gone already."""
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
