"""What the embedded stack is made of: commands without secrets, environments with them, databases that come back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyfleet.domain import search_attributes
from skyfleet.domain.model_config import read_config
from skyfleet.settings import Settings
from skyfleet.stack import postgres
from skyfleet.stack.embedded import MODELS, EmbeddedStack
from skyfleet.stack.folder import USUAL_PORTS, DataFolder, FolderInUse
from skyfleet.stack.services import Layout, units
from skyfleet.stack.skypilot import Server
from skyfleet.stack.supervisor import External, Service, Step, Unit
from tests.ports import free_port
from tests.waiting import eventually


def layout(path: Path, host: str = "127.0.0.1", **more: Any) -> Layout:
    return Layout(data=path, ports=USUAL_PORTS, admin_token="the-admin-token", host=host, **more)


async def all_units(path: Path, **more: Any) -> dict[str, Unit]:
    async with httpx.AsyncClient() as http:
        return {unit.name: unit for unit in units(layout(path, **more), http)}


def settings_of(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> Settings:
    assert not isinstance(unit, External)
    for name in [name for name in os.environ if name.startswith("SKYFLEET_")]:
        monkeypatch.delenv(name)
    for name, value in unit.env.items():
        if name.startswith("SKYFLEET_"):
            monkeypatch.setenv(name, value)
    return Settings()


async def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    made = await all_units(tmp_path)
    password = postgres.password(tmp_path / "postgres")
    for unit in made.values():
        if unit.name == "postgres":
            continue  # its command makes a cluster; that its password is not in it is seen below
        assert not isinstance(unit, External)
        command = list(unit.command) if isinstance(unit, Step) else list(await unit.command())
        assert password not in " ".join(command)
        assert "the-admin-token" not in " ".join(command)
        assert unit.env["SKYFLEET_ADMIN_TOKEN"] == "the-admin-token"
    assert password not in " ".join(postgres.server_command(tmp_path / "postgres", 1))


async def test_the_environment_is_what_the_settings_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings_of((await all_units(tmp_path))["worker"], monkeypatch)
    assert config.sandbox
    assert not config.skypilot
    assert config.api_port == USUAL_PORTS["api"]
    assert config.public_url == "http://127.0.0.1:8080"
    assert config.local_cloud_url == "http://127.0.0.1:8090"
    assert config.temporal_address == "127.0.0.1:7233"
    assert config.worker_health_port == USUAL_PORTS["worker_health"]
    assert config.database_url.get_secret_value().endswith(":54329/skyfleet")
    assert config.admin_token is not None
    assert config.admin_token.get_secret_value() == "the-admin-token"


async def test_real_clouds_alone_are_no_sandbox_and_have_no_local_cloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYFLEET_LOCAL_CLOUD_URL", "http://127.0.0.1:1")  # left over from somewhere
    chosen: dict[str, Any] = {
        "local_cloud": False,
        "skypilot": Server("https://sky.example.org"),
        "public_url": "https://fleet.test",
    }
    made = await all_units(tmp_path, **chosen)
    assert "local-cloud" not in made
    assert isinstance(made["skypilot"], External)
    worker = made["worker"]
    assert isinstance(worker, Service)
    assert "skypilot" in worker.after
    assert worker.env["SKYPILOT_API_SERVER_ENDPOINT"] == "https://sky.example.org"
    config = settings_of(worker, monkeypatch)
    assert config.skypilot
    assert not config.sandbox
    assert config.local_cloud_url is None
    assert config.public_url == "https://fleet.test"
    endpoints = layout(tmp_path, **chosen).endpoints({})
    assert (endpoints.local_cloud, endpoints.skypilot) == (None, "https://sky.example.org")


async def test_both_clouds_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await all_units(tmp_path, skypilot=Server("http://127.0.0.1:46580", 46580))
    worker, server = made["worker"], made["skypilot"]
    assert isinstance(server, Service)
    assert isinstance(worker, Service)
    assert {"local-cloud", "skypilot"} <= set(worker.uses)
    assert "SKYFLEET_ADMIN_TOKEN" not in server.env
    config = settings_of(worker, monkeypatch)
    assert (config.skypilot, config.sandbox) == (True, False)
    assert config.local_cloud_url == "http://127.0.0.1:8090"


async def test_models_are_read_from_the_sandbox_s_bucket_or_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    made = await all_units(tmp_path, model_bucket=True)
    worker = made["worker"]
    assert isinstance(worker, Service)
    assert "model-bucket" in worker.uses
    assert worker.env["NO_PROXY"] == "example.org,127.0.0.1"
    config = settings_of(worker, monkeypatch)
    assert config.model_bucket_url == "s3://models"
    assert config.model_bucket_endpoint == f"http://127.0.0.1:{USUAL_PORTS['model_bucket']}"
    assert config.model_bucket_access_key_id is not None
    assert layout(tmp_path, model_bucket=True).endpoints({}).model_bucket == config.model_bucket_endpoint
    assert "model-bucket" not in await all_units(tmp_path)


async def test_only_the_dashboard_is_logged_in_and_it_is_on_loopback(tmp_path: Path) -> None:
    made = await all_units(tmp_path)
    holders = [
        name for name, unit in made.items() if not isinstance(unit, External) and "SKYFLEET_DASHBOARD_TOKEN" in unit.env
    ]
    assert holders == ["dashboard"]
    dashboard = made["dashboard"]
    assert isinstance(dashboard, Service)
    assert dashboard.env["SKYFLEET_DASHBOARD_HOST"] == "127.0.0.1"


async def test_temporal_gets_every_search_attribute_and_a_file(tmp_path: Path) -> None:
    temporal = (await all_units(tmp_path))["temporal"]
    assert isinstance(temporal, Service)
    command = list(await temporal.command())
    given = {command[index + 1] for index, part in enumerate(command) if part == "--search-attribute"}
    assert given == {f"{name}={kind}" for name, kind in search_attributes.NAMES.items()}
    assert command[command.index("--db-filename") + 1] == str(tmp_path / "temporal" / "temporal.db")


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8080"), ("0.0.0.0", "http://127.0.0.1:8080"), ("::1", "http://[::1]:8080")],
)
def test_the_api_s_address_is_one_that_can_be_reached(tmp_path: Path, host: str, url: str) -> None:
    assert layout(tmp_path, host).api_url == url


def test_the_seed_models_are_requests_that_the_api_takes() -> None:
    schemas = pytest.importorskip("api.schemas")
    models = tomllib.loads(MODELS.read_text())["models"]
    assert "meta-llama/Llama-3.1-8B-Instruct" in {model["id"] for model in models}
    for model in models:
        request = schemas.ModelRequest.model_validate(model)
        assert request.parameters > 1e8
        assert read_config(request.config).kv_cache is not None


async def test_a_second_stack_on_the_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    first.lock()
    first.endpoints_file.write_text("{}")
    second = EmbeddedStack(tmp_path)
    with pytest.raises(FolderInUse):
        await second.start()
    await second.stop()
    assert first.endpoints_file.exists()
    first.unlock()


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        postgres.server_command(folder, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **postgres.identity(),
    )


async def test_a_killed_database_comes_back_although_its_pid_belongs_to_another(tmp_path: Path) -> None:
    folder, port = tmp_path / "postgres", free_port()
    password = await asyncio.to_thread(postgres.initialise, folder)
    assert await asyncio.to_thread(postgres.initialise, folder) == password, "a cluster is made once"
    assert await postgres.why_silent(password, port) == "does not listen yet"

    async def up() -> bool:
        return await postgres.why_silent(password, port) is None

    server = start(folder, port)
    try:
        await eventually(up)
        await postgres.ensure_database(password, port)
        await postgres.ensure_database(password, port)
        postgres.clear_stale_lock(folder)
        lock = folder / "data" / "postmaster.pid"
        assert lock.exists(), "a running server keeps its lock"
        server.kill()
        await asyncio.to_thread(server.wait, 10)
        other = subprocess.Popen(["sleep", "600"], **postgres.identity())  # noqa: ASYNC220  (it starts at once)
        try:
            lines = lock.read_text().split("\n")
            lock.write_text("\n".join([str(other.pid), *lines[1:]]))
            postgres.clear_stale_lock(folder)
            assert not lock.exists()
            server = start(folder, port)
            await eventually(up)
        finally:
            other.kill()
            other.wait()
    finally:
        os.kill(server.pid, signal.SIGINT)
        await asyncio.to_thread(server.wait, 20)
