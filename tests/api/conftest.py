"""The API over a real PostgreSQL, with workflows replaced by a double that records what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, SecretStr

from api.app import create_app
from api.security import sha256
from api.services import Services
from api.temporal import CommandRefused, WorkflowsUnavailable
from skyfleet.db.repositories import (
    ApiKeyRepository,
    AttemptRepository,
    CatalogRepository,
    LaunchRepository,
    ModelRepository,
)
from skyfleet.db.session import Database
from skyfleet.db.tables import ApiKeyRow, AttemptRow, BackendRow, LaunchRow, ModelRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.offers import Offer
from skyfleet.domain.sending import Address
from skyfleet.domain.states import AttemptState, LaunchStage, Market, Role
from skyfleet.settings import Settings
from tests.ports import free_port
from tests.postgres import TestServer
from tests.waiting import eventually

ADMIN_TOKEN = "the-admin-token"
ADMIN = {"X-Admin-Token": ADMIN_TOKEN}
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
BODY: dict[str, Any] = {
    "model_name": LLAMA,
    "provider": "azure",
    "region": "eastus",
    "instance_type": "Standard_NV36ads_A10_v5",
}


@dataclass
class FakeWorkflows:
    """Records every call; `away` makes each fail as if Temporal did not answer, `refuse` the commands alone."""

    calls: list[tuple[str, str, BaseModel | None]] = field(default_factory=list)
    away: bool = False
    refuse: CommandRefused | None = None

    def named(self, name: str) -> list[tuple[str, BaseModel | None]]:
        """(subject, argument) of the calls of that name."""
        return [(subject, argument) for called, subject, argument in self.calls if called == name]

    def _take(self, name: str, subject: str, argument: BaseModel | None) -> None:
        if self.away:
            raise WorkflowsUnavailable("no answer from Temporal")
        self.calls.append((name, subject, argument))

    async def start_launch(self, request: m.LaunchInput, *, timeout_s: float) -> None:
        """Record a start."""
        self._take("start", request.launch_id, request)

    async def cancel_launch(self, launch_id: str, command: m.CancelLaunch, *, timeout_s: float) -> m.Accepted:
        """Record a cancel, or refuse it."""
        self._take("cancel", launch_id, command)
        if self.refuse is not None:
            raise self.refuse
        return m.Accepted(stage="PROVISIONING")

    async def launch_status(self, launch_id: str, *, timeout_s: float) -> m.LaunchView:
        """A status that only this double gives."""
        self._take("status", launch_id, None)
        return m.LaunchView(launch_id=launch_id, stage=LaunchStage.PLANNING, attempts=[], cancel_requested=False)

    async def node_registered(self, launch_id: str, event: m.NodeRegistered, *, timeout_s: float) -> None:
        """Record the signal."""
        self._take("registered", launch_id, event)

    async def stage_reached(self, launch_id: str, event: m.StageReached, *, timeout_s: float) -> None:
        """Record the signal."""
        self._take("stage", launch_id, event)

    async def engine_failed(self, launch_id: str, event: m.EngineFailed, *, timeout_s: float) -> None:
        """Record the signal."""
        self._take("engine_failed", launch_id, event)

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode, *, timeout_s: float) -> m.Accepted:
        """Record a terminate."""
        self._take("terminate", node.node_id, command)
        return m.Accepted(stage="ready")

    async def drain_node(self, node: m.NodeInput, command: m.DrainNode, *, timeout_s: float) -> m.Accepted:
        """Record a drain, or refuse it."""
        self._take("drain", node.node_id, command)
        if self.refuse is not None:
            raise self.refuse
        return m.Accepted(stage="ready")

    async def replace_node(self, node: m.NodeInput, command: m.ReplaceNode, *, timeout_s: float) -> m.Accepted:
        """Record a replacement, or refuse it."""
        self._take("replace", node.node_id, command)
        if self.refuse is not None:
            raise self.refuse
        return m.Accepted(stage="ready")

    async def warn_of_preemption(self, node: m.NodeInput, warning: m.PreemptionWarned, *, timeout_s: float) -> None:
        """Record the notice."""
        self._take("warn", node.node_id, warning)

    async def refresh_models(self, *, timeout_s: float) -> None:
        """Record the request."""
        self._take("refresh_models", "", None)

    async def recheck_clouds(self, asked_at: datetime, *, timeout_s: float) -> None:
        """Record the request."""
        self._take("recheck_clouds", ids.recheck_workflow_id(asked_at), None)

    async def test_channel(self, request: m.ChannelTestInput, nonce: str, *, timeout_s: float) -> m.ChannelTestResult:
        """Record the request; the receiver does not take it."""
        self._take("test_channel", request.channel_id, request)
        return m.ChannelTestResult(ok=False, detail="error=500")

    async def check(self, *, timeout_s: float) -> None:
        """Whether Temporal is away."""
        if self.away:
            raise WorkflowsUnavailable("no answer from Temporal")


class FakeAddresses:
    """Takes any address with a service of apprise's in this list, without a process of its own."""

    async def check(self, url: str) -> Address:
        """The service, or that there is none."""
        service = {"json": "JSON", "jsons": "JSON", "slack": "Slack"}.get(url.partition("://")[0])
        return Address(service=service, error="" if service else f"Unparseable URL {url}")


def _offers() -> list[Offer]:
    def sold(cloud: str, region: str, zones: str, kind: str, gpu: str, gb: float, price: str, spot: str | None) -> None:
        for zone in zones:
            for market, cost in ((Market.ON_DEMAND, price), (Market.SPOT, spot)):
                if cost is not None:
                    offers.append(
                        Offer(
                            backend="local",
                            cloud=cloud,
                            region=region,
                            zone=f"{region}-{zone}",
                            instance_type=kind,
                            market=market,
                            hourly_price=Decimal(cost),
                            gpu=gpu,
                            gpu_count=1,
                            gpu_memory_gb=gb,
                            vcpus=4,
                            memory_gb=16,
                            sandbox=True,
                        )
                    )

    offers: list[Offer] = []
    sold("azure", "eastus", "12", "Standard_NV36ads_A10_v5", "A10", 24, "3.20", "0.64")
    sold("azure", "westus2", "1", "Standard_NV36ads_A10_v5", "A10", 24, "3.20", "0.70")
    sold("azure", "centralus", "1", "Standard_NC6s_v3", "V100", 16, "3.06", None)
    sold("aws", "us-east-1", "ab", "g5.xlarge", "A10G", 24, "1.006", "0.40")
    sold("aws", "us-west-2", "a", "g4dn.xlarge", "T4", 16, "0.526", "0.16")
    return offers


OFFERS = _offers()


async def seed_catalog(database: Database) -> None:
    """Two clouds of the local backend, and three models."""
    async with database.transaction() as session:
        await CatalogRepository(session).replace(
            BackendRow(name="local", engines=["echo", "llama_cpp", "command"], sandbox=True, synced_at=utcnow()), OFFERS
        )
        models = ModelRepository(session)
        for name, size, vram in ((LLAMA, "8B", 19.3), ("tiny", "1M", 0.1), ("meta-llama/Llama-3.3-70B", "70B", 169.2)):
            await models.put(ModelRow(id=name, name=name, family="Llama", size=size, vram_required_gb=vram))


@pytest.fixture
def workflows() -> FakeWorkflows:
    """The double."""
    return FakeWorkflows()


@pytest.fixture
def api_settings(database_url: str) -> Settings:
    """Settings of the API under test."""
    return Settings(
        database_url=SecretStr(database_url),
        admin_token=SecretStr(ADMIN_TOKEN),
        sandbox=True,
        launch_rate_per_minute=0,
        database_pool_size=5,
        cors_origins=["https://fleet.example"],
    )


@pytest.fixture
async def app(api_settings: Settings, workflows: FakeWorkflows, database: Database) -> FastAPI:
    """The application over a catalog."""
    await seed_catalog(database)
    made = create_app(api_settings, workflows)
    made.state.services.addresses = FakeAddresses()
    return made


@contextlib.asynccontextmanager
async def client_of(app: FastAPI, headers: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client in the same process, with the app's background tasks running."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
            yield client


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that holds the admin token."""
    async with client_of(app, ADMIN) as client:
        yield client


@pytest.fixture(scope="session")
async def refusing(postgres_server: TestServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client like `api`, of one API for the whole run: for requests that are refused, and so change nothing."""
    async with postgres_server.database() as url:
        database = Database(url)
        await seed_catalog(database)
        await database.aclose()
        settings = Settings(
            database_url=SecretStr(url), admin_token=SecretStr(ADMIN_TOKEN), sandbox=True, launch_rate_per_minute=0
        )
        workflows = FakeWorkflows()
        async with client_of(create_app(settings, workflows), ADMIN) as client:
            yield client
        assert not workflows.calls


@pytest.fixture
def services(app: FastAPI) -> Services:
    """What the routes work with."""
    found: Services = app.state.services
    return found


class _QuietServer(uvicorn.Server):
    """Leaves pytest's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The same app behind a real server; `host:port`."""
    port = free_port()
    config = uvicorn.Config(
        app, port=port, http="httptools", ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=1
    )
    server = _QuietServer(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started, what="uvicorn")
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def make_key(database: Database, name: str, role: Role, tenant: str = "default", **more: Any) -> dict[str, str]:
    """An API key, as the headers that carry it."""
    secret, key_id = ids.new_secret(), ids.new_api_key_id()
    async with database.transaction() as session:
        ApiKeyRepository(session).add(
            ApiKeyRow(
                id=key_id,
                name=name,
                role=role.value,
                tenant=tenant,
                secret_hash=sha256(secret),
                created_by="test",
                **more,
            )
        )
    return {"Authorization": f"Bearer sf_{key_id}_{secret}"}


TOKEN = "a registration token"


async def open_attempt(database: Database, launch_id: str, number: int = 1) -> AttemptRow:
    """What the worker writes before it creates the machine of an attempt."""
    async with database.transaction() as session:
        launch = await LaunchRepository(session).get(launch_id, lock=True)
        assert launch is not None
        attempt = AttemptRow(
            launch_id=launch_id,
            number=number,
            cluster_name=ids.cluster_name(launch_id, number),
            node_id=ids.node_id(launch_id, number),
            backend="local",
            cloud="azure",
            region="eastus",
            zone="eastus-1",
            instance_type="Standard_NV36ads_A10_v5",
            market="on_demand",
            hourly_price=Decimal("3.20"),
            gpu="A10",
            gpu_count=1,
            state=AttemptState.OPEN.value,
            token_hashes=[sha256("the token of a create that was lost"), sha256(TOKEN)],
            created_at=utcnow(),
        )
        assert await AttemptRepository(session).open_once(attempt)
        launch.attempt_count = number
        launch.provider, launch.region = attempt.cloud, attempt.region
        await LaunchRepository(session).record(
            launch.id, kind="attempt", stage=LaunchStage.REQUESTING, attempt=number, message="requesting"
        )
        return attempt


async def end(database: Database, launch_id: str, stage: LaunchStage, message: str = "the end") -> LaunchRow:
    """What the worker writes when the launch ends."""
    async with database.transaction() as session:
        launch = await LaunchRepository(session).get(launch_id, lock=True)
        assert launch is not None
        await LaunchRepository(session).record(launch.id, kind="end", stage=stage, message=message)
        return launch


def registration(**changes: Any) -> dict[str, Any]:
    """An agent's registration for `open_attempt`."""
    return {
        "provider": "azure",
        "region": "eastus",
        "model_name": LLAMA,
        "endpoint_url": "http://127.0.0.1:8000",
        "gpu_type": None,
        "instance_type": "Standard_NV36ads_A10_v5",
        "spot_instance": False,
        "registration_token": TOKEN,
        **changes,
    }


async def launched(api: httpx.AsyncClient, **changes: Any) -> str:
    """The id of a new launch."""
    response = await api.post("/admin/instances/launch", json={**BODY, **changes})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


@pytest.fixture
async def launch_id(api: httpx.AsyncClient) -> str:
    """An accepted launch."""
    return await launched(api)


@pytest.fixture
async def attempt(launch_id: str, database: Database) -> AttemptRow:
    """Its first attempt."""
    return await open_attempt(database, launch_id)
