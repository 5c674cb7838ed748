"""Ports for the servers that tests start."""

from __future__ import annotations

from collections.abc import Callable

from skyfleet import ports

_HOST = "127.0.0.1"
_given: set[int] = set()


def free_port(also: Callable[[int], bool] = lambda port: True) -> int:
    """A TCP port on loopback that is free now, that `also` is true of, and that this process was not given before."""
    fresh = (port for port in ports.shuffled() if port not in _given)
    port = next(port for port in fresh if ports.is_free(_HOST, port) and also(port))
    _given.add(port)
    return port
