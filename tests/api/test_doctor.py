"""`GET /admin/doctor`: each thing that launches depend on is looked at, and one that is away hides no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sysconfig
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from temporalio.testing import WorkflowEnvironment

from api.app import create_app
from skyfleet.db.migrate import downgrade, newest_revision
from skyfleet.db.repositories import CatalogRepository, ModelBucketRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, ModelBucketRow, utcnow
from skyfleet.domain.doctor import DoctorReport
from skyfleet.domain.offers import CloudAccess
from skyfleet.domain.states import Role
from skyfleet.settings import Settings
from tests.api.conftest import ADMIN, FakeWorkflows, client_of, make_key
from tests.ports import free_port
from tests.postgres import TestServer

Found = dict[str, tuple[str, str]]


@pytest.fixture
def api_settings(api_settings: Settings) -> Settings:
    """Nothing is there but the database."""
    away = f"127.0.0.1:{free_port()}"
    return api_settings.model_copy(update={"temporal_address": away, "public_url": f"http://{away}"})


@contextlib.asynccontextmanager
async def served_by(settings: Settings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(settings.model_copy(update=changes), FakeWorkflows()), ADMIN) as client:
        yield client


async def examined(client: httpx.AsyncClient) -> Found:
    """Status and text of each check; every one that failed says how to mend it."""
    response = await client.get("/admin/doctor", timeout=30)
    assert response.status_code == 200, response.text
    report = DoctorReport.model_validate(response.json())
    assert report.ok is all(check.status != "failed" for check in report.checks)
    for check in report.checks:
        assert check.mend or check.status not in ("failed", "warning"), check
    names = [check.name for check in report.checks]
    assert len(names) == len(set(names))
    return {check.name: (check.status.value, check.detail) for check in report.checks}


@contextlib.contextmanager
def skypilot(health: Any, monkeypatch: pytest.MonkeyPatch, status: int = 200) -> Iterator[list[str]]:
    """Something at SKYPILOT_API_SERVER_ENDPOINT; the credentials that it was given."""
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/health"
            given.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(health).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    try:
        yield given
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_skypilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    monkeypatch.delenv("SKYPILOT_SERVICE_ACCOUNT_TOKEN", raising=False)


async def test_what_is_there_and_what_is_not(api: httpx.AsyncClient) -> None:
    found = await examined(api)
    assert found["database"][0] == "ok"
    assert found["database"][1].startswith("PostgreSQL 18")
    assert found["migrations"] == ("ok", f"at {newest_revision()}, the newest")
    assert found["local cloud"][0] == "ok"
    assert found["temporal"][0] == "failed"
    assert not any(name.startswith("workers") for name in found)
    assert found["real clouds"] == ("note", "not used")
    assert found["model bucket"][0] == "note"
    assert found["public url"][0] == "failed"
    assert found["admin token"] == ("ok", "set")


async def test_only_an_admin_is_told(app: FastAPI, database: Database) -> None:
    async with client_of(app, await make_key(database, "operator", Role.OPERATOR)) as client:
        assert (await client.get("/admin/doctor")).status_code == 403
    async with client_of(app, {}) as client:
        assert (await client.get("/admin/doctor")).status_code == 401


async def test_a_database_that_is_away_or_behind_is_said_and_the_rest_is_still_looked_at(
    api_settings: Settings, postgres_server: TestServer
) -> None:
    nowhere = SecretStr(f"postgresql://skyfleet@127.0.0.1:{free_port()}/skyfleet")
    async with served_by(api_settings, database_url=nowhere) as client:
        found = await examined(client)
    assert found["database"][0] == "failed"
    assert "migrations" not in found
    assert found["temporal"][0] == "failed"
    async with postgres_server.database() as url:
        await asyncio.to_thread(downgrade, url, "0001")
        async with served_by(api_settings, database_url=SecretStr(url)) as client:
            found = await examined(client)
        assert found["migrations"] == ("failed", f"the database is at 0001; this version needs {newest_revision()}")
        await asyncio.to_thread(downgrade, url, "base")
        async with served_by(api_settings, database_url=SecretStr(url)) as client:
            assert (await examined(client))["migrations"][0] == "failed"


async def test_temporal_without_workers(api_settings: Settings) -> None:
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=temporal_program()) as environment:
        address = environment.client.service_client.config.target_host
        async with served_by(api_settings, temporal_address=address) as client:
            found = await examined(client)
        assert found["temporal"][0] == "ok"
        assert "server 1." in found["temporal"][1]
        for queue in ("control", "provision", "teardown"):
            assert found[f"workers on {queue}"] == ("failed", "nobody polls this queue")
        async with served_by(api_settings, temporal_address=address, temporal_namespace="no-such") as client:
            found = await examined(client)
        assert found["temporal"][0] == "failed"
        assert "no-such" in found["temporal"][1]


def temporal_program() -> str:
    program = shutil.which("temporal", path=sysconfig.get_path("scripts"))
    assert program is not None
    return program


async def test_the_skypilot_server_its_version_and_our_credentials(
    api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYPILOT_SERVICE_ACCOUNT_TOKEN", "sky_token")
    monkeypatch.setattr("api.doctor.client_version", lambda: "0.14.1")
    async with served_by(api_settings, skypilot=True) as client:
        assert (await examined(client))["skypilot server"][0] == "note"
        with skypilot({"status": "healthy", "version": "0.14.1"}, monkeypatch) as given:
            status, detail = (await examined(client))["skypilot server"]
        assert (status, detail.rpartition(", ")[2]) == ("ok", "version 0.14.1")
        assert given == ["Bearer sky_token"]
        with skypilot({"status": "healthy", "version": "0.13.0"}, monkeypatch):
            status, detail = (await examined(client))["skypilot server"]
        assert status == "warning"
        assert detail.endswith("is 0.13.0, the workers have 0.14.1")
        with skypilot({"status": "unhealthy"}, monkeypatch):
            assert (await examined(client))["skypilot server"][0] == "failed"
        with skypilot(["something else"], monkeypatch):
            assert (await examined(client))["skypilot server"][0] == "failed"
        with skypilot({}, monkeypatch, status=401):
            assert (await examined(client))["skypilot server"][0] == "failed"
        assert (await examined(client))["skypilot server"][0] == "failed"  # gone
    async with served_by(api_settings) as client:
        assert "skypilot server" not in await examined(client)


async def test_which_clouds_are_enabled_and_why_the_others_are_not(api_settings: Settings, database: Database) -> None:
    async with served_by(api_settings, skypilot=True) as client:
        assert (await examined(client))["skypilot"] == ("failed", "no worker has looked at SkyPilot's clouds yet")

        async def known(*access: CloudAccess, error: str | None = None) -> Found:
            row = BackendRow(name="skypilot", engines=["vllm"], synced_at=utcnow(), error=error)
            async with database.transaction() as session:
                await CatalogRepository(session).put_backend(row)
                await CatalogRepository(session).replace_access("skypilot", access)
            return await examined(client)

        gcp = CloudAccess(cloud="gcp", enabled=False, reason="no application default credentials")
        found = await known(CloudAccess(cloud="aws", enabled=True), gcp)
        assert found["skypilot"][0] == "ok"
        assert found["cloud aws"] == ("ok", "enabled")
        assert found["quota aws"][0] == "note"
        assert found["cloud gcp"] == ("note", "not enabled: no application default credentials")
        assert "quota gcp" not in found
        assert "real clouds" not in found

        assert (await known(gcp))["real clouds"] == ("failed", "no cloud is enabled")
        found = await known(gcp, error="the server does not answer")
        assert found["skypilot"] == ("failed", "its offers could not be read: the server does not answer")


async def test_the_model_bucket_and_its_last_reading(api: httpx.AsyncClient, database: Database) -> None:
    async def read(**how: Any) -> tuple[str, str]:
        async with database.transaction() as session:
            await ModelBucketRepository(session).put(ModelBucketRow(url="s3://models/llms", **how))
        return (await examined(api))["model bucket"]

    assert (await read())[0] == "warning"
    status, detail = await read(attempted_at=utcnow(), error="AccessDenied")
    assert (status, detail) == ("failed", "s3://models/llms could not be read: AccessDenied")
    skipped = [{"path": "notes", "reason": "no config.json"}]
    status, detail = await read(attempted_at=utcnow(), synced_at=utcnow(), models=4, skipped=skipped)
    assert status == "ok"
    assert detail.startswith("s3://models/llms: 4 models, 1 folders skipped, read at ")


async def test_where_nodes_report_to(api_settings: Settings, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def judged(url: str, **more: Any) -> tuple[str, str]:
        async with served_by(api_settings, public_url=url, **more) as client:
            return (await examined(client))["public url"]

    here = f"http://{served}"
    assert await judged(here) == ("ok", f"{here} answers here and serves the agent")
    assert await judged(here, skypilot=True) == ("failed", f"{here} can be reached from its own machine alone")
    assert (await judged("ftp://fleet.example.org"))[0] == "failed"
    assert (await judged("http://no-such-host.invalid"))[0] == "failed"

    # A name of the world for what is served here: only what a name stands for is replaced.
    async def resolve(host: str) -> list[str]:
        return ["10.0.0.4"] if host == "localhost.private.test" else ["8.8.8.8"]

    monkeypatch.setattr("api.doctor._resolve", resolve)
    port = served.rpartition(":")[2]
    monkeypatch.setattr("api.doctor._client", lambda url: httpx.AsyncClient(transport=_Redirected(port)))
    status, detail = await judged("https://fleet.test", skypilot=True)
    assert (status, detail) == ("ok", "https://fleet.test answers here and serves the agent")
    assert (await judged("http://fleet.test", skypilot=True))[0] == "warning", "keys in the clear"
    assert (await judged("https://localhost.private.test", skypilot=True))[0] == "warning"
    monkeypatch.setattr("api.doctor._client", lambda url: httpx.AsyncClient(transport=_Redirected(port, "/other")))
    status, detail = await judged("https://fleet.test", skypilot=True)
    assert (status, detail) == ("failed", "https://fleet.test: /health/live answers 404")


class _Redirected(httpx.AsyncHTTPTransport):
    """Reaches the API on loopback under any address, as a tunnel does; `prefix` is what a wrong proxy puts before."""

    def __init__(self, port: str, prefix: str = "") -> None:
        super().__init__()
        self._to = int(port)
        self._prefix = prefix

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = self._prefix + request.url.path
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._to, path=path)
        return await super().handle_async_request(request)
