"""SkyPilot's API server for the stack: one that is there already, or a child of ours.

A server belongs to a person: their `~/.sky` holds its state, their credentials are what it launches with, and starting
a second one on the same state would make the first forget its requests. So one that the person already runs is used
as it is, and one that we start is theirs like any other: `sky status` sees what Skyfleet launched.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

ENDPOINT: Final = "SKYPILOT_API_SERVER_ENDPOINT"
LOCAL_PORT: Final = "SKYPILOT_API_SERVER_LOCAL_PORT"
TOKEN: Final = "SKYPILOT_SERVICE_ACCOUNT_TOKEN"  # noqa: S105 - the name of a variable
_USUAL_PORT: Final = 46580
_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "0.0.0.0", "::1", "::"})

#: How long a server may take to stop: it takes requests for five seconds more, lets those under way end for as long as
#: its grace period (by default a minute, here less), and looks every five seconds whether they did.
STOP_SECONDS: Final = 35

_CLI: Final = "from sky.cli import cli; cli()"
#: What has SkyPilot say which server its client would use: the environment, its global and its project's configuration.
_ASK_CLIENT: Final = "from sky.server import common; print(common.get_server_url())"


class SkyPilotUnusable(Exception):
    """SkyPilot is not installed, or its configuration cannot be read. The message says how to mend it."""


@dataclass(frozen=True)
class Server:
    """The API server that the stack uses; `port` is where the stack starts it, None when others run it."""

    url: str
    port: int | None = None


def usual_port() -> int:
    """Where the person's own server listens, if they run one on this machine. Raises `SkyPilotUnusable`."""
    text = os.environ.get(LOCAL_PORT) or str(_USUAL_PORT)
    if not text.isdigit() or not 0 < int(text) < 65_536:
        raise SkyPilotUnusable(f"{LOCAL_PORT}={text!r} is no port")
    return int(text)


def find_server(folder: Path) -> Server | None:
    """The server that this person uses already; None when the stack has to start one.

    That is the one that is configured, or else one that runs on this machine under this user. A configured one need not
    answer. `folder` is where the stack's processes work. Raises `SkyPilotUnusable`.
    """
    if importlib.util.find_spec("sky") is None:
        raise SkyPilotUnusable(
            "SkyPilot, which launches on real clouds, is not installed here: install the extra, as in "
            "`uv tool install 'skyfleet[skypilot]'` or `pip install 'skyfleet[skypilot]'`"
        )
    if configured := os.environ.get(ENDPOINT):
        return Server(configured.rstrip("/"))
    port = usual_port()
    url = _client_s_choice(folder)
    if url is not None:
        address = httpx.URL(url)
        if address.host not in _HOSTS or address.port != port:
            return Server(url)
    here = Server(f"http://127.0.0.1:{port}")
    return here if _is_ours(port) and _is_server(here.url) else None


def server_command(port: int) -> list[str]:
    """Starts a server on loopback, in the foreground, under a guard: its executors would outlive it."""
    guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(STOP_SECONDS)]
    return [*guard, sys.executable, "-c", _CLI, "api", "start", "--foreground", "--port", str(port)]


def server_environment(port: int) -> dict[str, str]:
    """The environment of a server that the stack starts: the person's own, in which it finds their credentials."""
    return {
        "SKYPILOT_GRACE_PERIOD_SECONDS": "15",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        **{name: value for name, value in os.environ.items() if not _is_for_others(name)},
        LOCAL_PORT: str(port),
    }


async def why_silent(http: httpx.AsyncClient, url: str) -> str | None:
    """None when a SkyPilot API server answers at `url`, else why not."""
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = await http.get(f"{url}/api/health", headers=headers)
    except httpx.ConnectError:
        return f"{url} does not listen"
    except httpx.HTTPError as error:
        return f"{url}: {str(error) or type(error).__name__}"
    return _why_no_server(response, url)


async def why_away(url: str) -> str | None:
    """The same for a server that may be elsewhere, and behind a proxy."""
    async with httpx.AsyncClient(timeout=5.0) as http:
        return await why_silent(http, url)


def _is_for_others(name: str) -> bool:
    """Variables that keep a server from starting here, and our own, with their secrets."""
    return name in (ENDPOINT, "SKYPILOT_DISABLE_LOCAL_API_SERVER") or name.startswith("SKYFLEET_")


def _client_s_choice(folder: Path) -> str | None:
    """The server that SkyPilot's configuration leads to; None without one, as asking SkyPilot takes seconds."""
    files = [Path(os.environ.get("SKYPILOT_GLOBAL_CONFIG") or "~/.sky/config.yaml").expanduser(), folder / ".sky.yaml"]
    if not any(file.exists() for file in files):
        return None
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_CLIENT], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    if asked.returncode != 0:
        raise SkyPilotUnusable(f"SkyPilot cannot read its configuration:\n{asked.stderr.strip()[-1_000:]}")
    return asked.stdout.split()[-1]


def _is_server(url: str) -> bool:
    try:
        return _why_no_server(httpx.get(f"{url}/api/health", timeout=5, trust_env=False), url) is None
    except httpx.HTTPError:
        return False


def _why_no_server(response: httpx.Response, url: str) -> str | None:
    if not response.is_success:
        return f"{url} answers {response.status_code}"
    try:
        return None if response.json()["status"] == "healthy" else f"{url} says {response.json()['status']!r}"
    except (ValueError, KeyError, TypeError):
        return f"what answers at {url} is no SkyPilot API server"


def _is_ours(port: int) -> bool:
    """Whether what listens there runs as this user: another's server would launch with another's credentials."""
    table = Path("/proc/net/tcp")
    if not table.exists():  # not Linux: nothing tells
        return True
    for line in table.read_text().splitlines()[1:]:
        _, local, _, state, _, _, _, uid = line.split()[:8]  # proc(5)
        if state == "0A" and int(local.rpartition(":")[2], 16) == port:
            return int(uid) == os.getuid()
    return False
