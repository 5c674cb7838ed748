"""The whole stack on one machine, as one object: for `skyfleet up`, for tests and for benchmarks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from skyfleet.client import AsyncSkyfleetClient, Endpoints
from skyfleet.stack import skypilot
from skyfleet.stack.folder import DataFolder
from skyfleet.stack.services import LOOPBACK, Layout, units
from skyfleet.stack.supervisor import Notice, Supervisor

MODELS = Path(__file__).with_name("models.toml")


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How to run the stack. `ports` are those that must be exactly so, by the names in `folder.USUAL_PORTS`.

    `public_url` is where machines reach the API, if not where programs here do: real clouds' machines need it.
    """

    host: str = LOOPBACK
    public_url: str | None = None
    local_cloud: bool = True
    skypilot: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    cloud_config: Path | None = None
    dashboard: bool = True
    copy_logs: bool = False
    seed_models: bool = True
    start_timeout_s: float = 120.0


class EmbeddedStack:
    """The stack on one data folder.

    `async with EmbeddedStack(folder, StackOptions())` starts it and stops it; `notify` is told what happens.
    `endpoints` says where it is. The processes end with the thread that called `start`, however it ends; the machines
    of the local cloud do not, as a cloud's machines would not.
    """

    def __init__(
        self,
        data_dir: Path,
        options: StackOptions | None = None,
        *,
        notify: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self._options = options or StackOptions()
        self._notify = notify
        self._folder = DataFolder(data_dir)
        self._layout: Layout | None = None
        self._supervisor: Supervisor | None = None
        self._http: httpx.AsyncClient | None = None
        self.seconds_to_healthy: float | None = None
        self.moved_ports: dict[str, int] = {}  # name → port of the run before, where it had to change
        self.stale: list[str] = []  # what a killed run had left behind
        self.seeded: list[str] = []  # models registered because there were none
        self.without_offers = ""  # why there is nothing to launch on, where real clouds are

    @property
    def data(self) -> Path:
        """The data folder."""
        return self._folder.path

    @property
    def endpoints(self) -> Endpoints:
        """Where everything is; once `start` has chosen the ports."""
        assert self._layout is not None, "not started"
        return self._layout.endpoints(self._pids())

    @property
    def public_url(self) -> str:
        """Where machines are told to reach the API; once `start` has chosen the ports."""
        assert self._layout is not None, "not started"
        return self._layout.machines_url

    async def start(self) -> Endpoints:
        """Start everything, wait until launches are accepted and carried out, and write `endpoints.json`.

        Raises `FolderInUse`, `PortTaken`, `ProgramMissing`, `SkyPilotUnusable` and `StartFailed`; then nothing is left
        running.
        """
        began = time.monotonic()
        self._folder.lock()
        try:
            self._folder.remove_endpoints()
            self.stale = await asyncio.to_thread(self._folder.end_stale_children)
            ports, self.moved_ports = self._folder.ports(self._options.ports, self._options.host)
            server = await self._skypilot() if self._options.skypilot else None
            self._layout = Layout(
                data=self._folder.path,
                ports=ports,
                admin_token=self._folder.admin_token(),
                host=self._options.host,
                cloud_config=self._options.cloud_config,
                dashboard=self._options.dashboard,
                public_url=self._options.public_url,
                local_cloud=self._options.local_cloud,
                skypilot=server,
                # Machines of real clouds could not reach it, and a bucket of the person's own goes before it.
                model_bucket=server is None and not os.environ.get("SKYFLEET_MODEL_BUCKET_URL"),
            )
            # Loopback is never behind a proxy; each check is a connection of its own, as a stuck one proves nothing.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._http = httpx.AsyncClient(timeout=5.0, limits=limits, trust_env=False)
            self._supervisor = Supervisor(
                self._folder.path,
                units(self._layout, self._http),
                notify=self._notify,
                pids_changed=self._folder.remember_children,
                copy_logs=self._options.copy_logs,
            )
            await self._supervisor.start(self._options.start_timeout_s)
            async with AsyncSkyfleetClient(self._layout.api_url, self._layout.admin_token) as client:
                if self._options.seed_models:
                    self.seeded = await self._seed(client)
                catalog = (await client.health()).components["catalog"]
                self.without_offers = "" if catalog.ok else catalog.detail
            self._folder.write_endpoints(self.endpoints)
        except BaseException:
            await self.stop()
            raise
        self.seconds_to_healthy = time.monotonic() - began
        return self.endpoints

    async def stop(self) -> None:
        """Stop everything in reverse order. Nothing happens when nothing runs."""
        if not self._folder.locked:
            return
        self._folder.remove_endpoints()
        if self._supervisor is not None:
            await self._supervisor.stop()
            self._supervisor = None
        if self._http is not None:
            await self._http.aclose()
            self._http = None
        self._folder.unlock()

    def kill_all(self) -> None:
        """End every process at once, for a person who will not wait for `stop`."""
        if self._supervisor is not None:
            self._supervisor.kill_all()

    def kill(self, service: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one service, as a fault would; it is restarted."""
        assert self._supervisor is not None, "not started"
        self._supervisor.kill(service, signum)

    def pid(self, service: str) -> int | None:
        """The service's process; None while it has none."""
        return self._supervisor.pid(service) if self._supervisor is not None else None

    def waiting(self) -> dict[str, str]:
        """The units that are not ready yet, and what each waits for."""
        return self._supervisor.waiting() if self._supervisor is not None else {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _skypilot(self) -> skypilot.Server:
        found = await asyncio.to_thread(skypilot.find_server, self._folder.path)
        if found is not None:
            return found
        port = self._folder.another_port(skypilot.usual_port())
        return skypilot.Server(f"http://{LOOPBACK}:{port}", port)

    def _pids(self) -> dict[str, int]:
        if self._supervisor is None:
            return {}
        pids = {name: self._supervisor.pid(name) for name in self._supervisor.services}
        return {name: pid for name, pid in pids.items() if pid is not None}

    async def _seed(self, client: AsyncSkyfleetClient) -> list[str]:
        """Register the well-known models when the catalog has none but the bucket's."""
        if any(model.origin != "bucket" for model in await client.models()):
            return []
        models: list[dict[str, Any]] = tomllib.loads(MODELS.read_text())["models"]
        for model in models:
            await client.register_model(model)
        return [model["id"] for model in models]
