"""Free TCP ports, for servers that we start. Standard library only: the node agent carries this file."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

#: Below those that Linux takes for outgoing connections (`net.ipv4.ip_local_port_range`, from 32768 on): one of them
#: could have the port between our look and the server's start.
PORTS = range(20_000, 32_000)


def free_port(host: str = "127.0.0.1", taken: Collection[int] = ()) -> int:
    """A port of `PORTS` on `host` that nobody listens on and that is not among `taken`. OSError if there is none."""
    for port in shuffled():
        if port not in taken and is_free(host, port):
            return port
    raise OSError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free on {host}")


def shuffled() -> list[int]:
    """`PORTS` at random, so that two programs that look at the same moment hardly choose the same."""
    return random.sample(PORTS, len(PORTS))


def is_free(host: str, port: int) -> bool:
    """Whether a server could bind it now, as servers do: past connections that wait for their end do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
