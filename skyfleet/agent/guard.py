"""The guard: a small process between the agent and the engine, which outlives neither.

    agent ──(pipe)── guard ── engine ── the engine's own children

The kernel can tie one child to its parent's life (PR_SET_PDEATHSIG), but not the child's children, and engines fork
workers that hold the GPU. So the guard adopts every orphan below it and holds the reading end of a pipe whose writing
end only the agent has: when the agent ends, however it ends, the pipe closes and the guard kills all that is below it.
The engine is itself tied to the guard, in case the guard is killed.

SIGTERM asks the engine to end, kills what is left after `--grace-s`, and ends with the engine's own status.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from skyfleet.agent.processes import adopt_orphans, descendants, die_with_parent, kill_all

CANNOT_START = 127


def main(argv: Sequence[str]) -> int:
    """Run one engine; standard input is the agent's pipe. Returns the engine's status (128 + n after signal n)."""
    parser = argparse.ArgumentParser(prog="engine-guard")
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    adopt_orphans()
    return _Guard(options.command, options.grace_s).run()


class _Guard:
    def __init__(self, command: Sequence[str], grace_s: float) -> None:
        self._command = list(command)
        self._grace_s = grace_s
        self._terminate = False

    def run(self) -> int:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_terminate)
        # A handler has to be set for a signal to reach the wake-up pipe.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            # Nothing else runs in this process yet, so code between fork and exec is safe here.
            engine = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)  # noqa: PLW1509
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"cannot start {self._command[0]}: {error}", file=sys.stderr, flush=True)
            return CANNOT_START
        return self._watch(engine.pid, wake_read)

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminate = True

    def _watch(self, engine: int, wake: int) -> int:
        deadline: float | None = None
        while True:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([0, wake], [], [], timeout)
            if wake in ready:
                os.read(wake, 4096)
            status = _reap(engine)
            if status is not None:
                _end_all()
                return status
            agent_gone = 0 in ready and not os.read(0, 4096)
            if agent_gone or (deadline is not None and time.monotonic() >= deadline):
                _end_all()
                return 128 + signal.SIGKILL
            if self._terminate and deadline is None:
                deadline = time.monotonic() + self._grace_s
                os.kill(engine, signal.SIGTERM)  # not reaped yet, so the id is still the engine's


def _reap(engine: int) -> int | None:
    """Collect children that ended; the engine's status if it is among them."""
    status: int | None = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == engine:
            code = os.waitstatus_to_exitcode(ended)
            status = code if code >= 0 else 128 - code


def _end_all() -> None:
    """Kill everything below this process, and what it starts meanwhile, until the kernel says that nothing is left."""
    while True:
        kill_all(descendants(os.getpid()))
        # /proc, read entry by entry, can miss a process whose parent ends meanwhile. As orphans become this process's
        # own children, the kernel's answer that there are none is about all that is below.
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
