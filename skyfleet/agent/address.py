"""Where a node's engine is reached: what the boot file leaves open, the machine has to find out by itself.

Its address from outside is asked for in this order: the cloud's instance metadata (AWS, GCP, Azure), SkyPilot's list of
the cluster's addresses, and the interface that leads out. Each is short: where there is no metadata service nothing
answers.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import urllib.error
import urllib.request

from skyfleet.agent.config import EVERY_ADDRESS, Boot
from skyfleet.agent.state import StateDir
from skyfleet.ports import free_port

_METADATA = "http://169.254.169.254"
_TIMEOUT_S = 2.0
_AZURE = "/metadata/instance/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2021-02-01&format=text"
_GCP = "/computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip"


def listening(boot: Boot, state: StateDir) -> Boot:
    """The boot file with a port, where it leaves the choice. Raises OSError when none is free."""
    if boot.port != 0:
        return boot
    return dataclasses.replace(boot, port=state.port(boot.node_id, lambda: free_port(boot.host)))


def advertised(boot: Boot) -> Boot:
    """The boot file with an address to be reached at, where it binds all and names none."""
    if boot.advertise_host is not None or boot.host not in EVERY_ADDRESS:
        return boot
    return dataclasses.replace(boot, advertise_host=own_address())


def own_address() -> str:
    """The first address that somebody names."""
    return _from_metadata() or _from_skypilot() or _of_the_way_out()


def _from_metadata() -> str | None:
    try:
        token = _ask("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    except urllib.error.HTTPError:
        token = None  # a metadata service, and not AWS's
    except (OSError, ValueError):
        return None  # none at all
    asked = (
        ("/latest/meta-data/public-ipv4", {"X-aws-ec2-metadata-token": token or ""}),
        (_GCP, {"Metadata-Flavor": "Google"}),
        (_AZURE, {"Metadata": "true"}),
    )
    for path, headers in asked:
        try:
            answer = _ask(path, headers)
        except (OSError, ValueError):
            continue
        if _is_address(answer):
            return answer
    return None


def _ask(path: str, headers: dict[str, str], method: str = "GET") -> str:
    asking = urllib.request.Request(_METADATA + path, headers=headers, method=method)  # noqa: S310 - a fixed address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(asking, timeout=_TIMEOUT_S) as answer:
        return str(answer.read(4096).decode("utf-8", "replace")).strip()


def _from_skypilot() -> str | None:
    named = os.environ.get("SKYPILOT_NODE_IPS", "").split()
    return named[0] if named and _is_address(named[0]) else None


def _of_the_way_out() -> str:
    # No packet is sent: connecting a datagram socket only chooses the interface.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way_out:
        try:
            way_out.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(way_out.getsockname()[0])


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False
