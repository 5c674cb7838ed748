"""Small services for the supervisor's tests: a Python child that listens on a port, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from skyfleet.stack.supervisor import Service

#: Answers every connection with "ok"; on SIGTERM writes its name into `order`, and leaves.
PROGRAM = """
import os, signal, socket, sys, time
name, folder, port, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def leave(*_):
    with open(os.path.join(folder, "order"), "a") as file:
        file.write(name + "\\n")
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else leave)
print(name, "starts", flush=True)
if mode == "crash" or (mode == "crash-once" and not os.path.exists(os.path.join(folder, name + ".crashed"))):
    open(os.path.join(folder, name + ".crashed"), "w").close()
    print("cannot go on: no such thing", flush=True)
    sys.exit(3)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", port))
server.listen()
while True:
    connection, _ = server.accept()
    connection.sendall(b"ok")
    connection.close()
"""


def service(name: str, folder: Path, port: int, *, mode: str = "good", **options: Any) -> Service:
    """A service that is ready once it listens on `port`."""

    async def command() -> list[str]:
        return [sys.executable, "-S", "-c", PROGRAM, name, str(folder), str(port), mode]

    async def probe() -> str | None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return "does not listen"
        try:
            return None if await asyncio.wait_for(reader.read(2), 0.3) == b"ok" else "wrong answer"
        except TimeoutError:
            return "silent"
        finally:
            writer.close()

    return Service(name=name, command=command, ready=probe, alive=probe, **options)


def stop_process(pid: int) -> None:
    """Make a process hang, as a deadlock would."""
    import os

    os.kill(pid, signal.SIGSTOP)
