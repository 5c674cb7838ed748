"""Runs a supervisor with two children until it is killed: `python -m tests.supervisor.supervised FOLDER PORT PORT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from skyfleet.stack.folder import DataFolder
from skyfleet.stack.supervisor import Supervisor
from tests.supervisor.children import service


async def main(path: Path, ports: list[int]) -> None:
    """Start, say the pids, and wait."""
    folder = DataFolder(path)
    folder.lock()
    units = [service(f"child-{port}", path, port) for port in ports]
    supervisor = Supervisor(path, units, notify=lambda notice: None, pids_changed=folder.remember_children)
    await supervisor.start(30)
    print(*(supervisor.pid(name) for name in supervisor.services), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
