"""`python -m skyfleet.clouds.local`: the local cloud, in its own process."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
import tomllib
from pathlib import Path

import uvloop

from skyfleet.clouds.local.server import serve
from skyfleet.clouds.local.service import LocalCloudService
from skyfleet.clouds.local.world import DEFAULT_WORLD, load_world
from skyfleet.settings import settings
from skyfleet.telemetry import logs


def main() -> int:
    """Run the cloud; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m skyfleet.clouds.local", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the ledger and the machines")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, the same at every start")
    parser.add_argument("--host", default="127.0.0.1", help="address of the API and of the machines")
    parser.add_argument("--config", type=Path, help=f"the world, a TOML file (default: {DEFAULT_WORLD})")
    parser.add_argument("--seed", type=int, default=0, help="of delays' jitter and faults' dice")
    arguments = parser.parse_args()
    logs.configure(settings().log_format)

    os.umask(0o077)  # the ledger and the machines' folders hold one-time tokens and keys
    data: Path = arguments.data.resolve()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _fail(f"another local cloud runs in {data}")
    try:
        world = load_world(arguments.config)
        listening = _listen(arguments.host, arguments.port, data / "port")
        host, port = listening.getsockname()[:2]
        service = LocalCloudService(data, world, host=host, port=port, seed=arguments.seed)
    except (OSError, ValueError, tomllib.TOMLDecodeError) as error:
        return _fail(str(error))
    print(f"local cloud (sandbox) at {service.base_url}, ledger in {data}", flush=True)
    uvloop.run(serve(service, listening))
    return 0


def _listen(host: str, port: int, remembered: Path) -> socket.socket:
    """Bind; a port that was chosen freely once stays, since machines know the cloud by it."""
    if port == 0 and remembered.exists():
        port = int(remembered.read_text())
    listening = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
    )
    remembered.write_text(str(listening.getsockname()[1]))
    return listening


def _fail(message: str) -> int:
    print(f"local cloud: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
