"""Runs a program whose children outlive it, and ends them with it: `python guard.py SECONDS COMMAND…`.

SIGTERM is passed on, as the kernel sends it when the supervisor is killed; once the program is gone, or SECONDS later,
everything in the process group that this leads is killed. A program that ends unasked leaves its status to the
supervisor, and the rest of the group as well. By itself, and the standard library: it stays as long as the program.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType


def main(patience_s: int, command: list[str]) -> int:
    """Run the command; its exit status, if it was not asked to stop."""
    program: subprocess.Popen[bytes] | None = None
    asked = False

    def stop(*_: int | FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            signal.alarm(patience_s)
        if program is not None:
            program.terminate()

    def kill(*_: int | FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, kill)
    program = subprocess.Popen(command)
    if asked:  # before there was anything to pass it on to
        program.terminate()
    status = program.wait()
    if asked:
        kill()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
