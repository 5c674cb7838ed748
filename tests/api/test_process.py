"""`python -m api` as a process: starts and stays up with nothing behind it, stops with status 0, and is light."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from skyfleet.db.session import Database
from tests.api.conftest import ADMIN_TOKEN, seed_catalog
from tests.ports import free_port
from tests.postgres import running_postgres
from tests.waiting import eventually

_ROOT = Path(__file__).parents[2]


class _Api:
    def __init__(self, database_url: str, log: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        env = os.environ | {
            "SKYFLEET_DATABASE_URL": database_url,
            "SKYFLEET_TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}",
            "SKYFLEET_ADMIN_TOKEN": ADMIN_TOKEN,
            "SKYFLEET_API_PORT": str(self.port),
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api"], env=env, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT
            )

    async def get(self, path: str) -> httpx.Response | None:
        async with httpx.AsyncClient(timeout=10, headers={"X-Admin-Token": ADMIN_TOKEN}) as client:
            try:
                return await client.get(self.url + path)
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
                return None

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    async def up(self) -> httpx.Response:
        answer = await eventually(lambda: self.get("/health/live"), what="the API")
        assert answer is not None
        return answer


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[_Api]]:
    """API processes, ended afterwards."""
    apis: list[_Api] = []
    yield apis
    for api in apis:
        if api.process.poll() is None:
            api.process.kill()
        api.process.wait()


async def test_it_starts_without_anything_and_heals(tmp_path: Path, started: list[_Api]) -> None:
    folder = tmp_path / "postgres"
    async with running_postgres(folder) as server:
        url = server.url(server.template)
        database = Database(url, pooled=False)
        await seed_catalog(database)
        await database.aclose()
        down = url.replace(f":{server.port}/", f":{free_port()}/")
        api = _Api(down, tmp_path / "down.log")
        started.append(api)
        assert (await api.up()).status_code == 200
        health = await api.get("/health")
        assert health is not None
        assert health.status_code == 503
        assert {name: item["ok"] for name, item in health.json()["components"].items()} == {
            "database": False,
            "temporal": False,
            "catalog": False,
        }
        healthy = _Api(url, tmp_path / "up.log")
        started.append(healthy)
        await healthy.up()
        answer = await healthy.get("/admin/models/r2")
        assert answer is not None
        assert answer.status_code == 200
    gone = await healthy.get("/admin/models/r2")
    assert gone is not None
    assert gone.status_code == 503
    assert healthy.process.poll() is None
    assert "Traceback" not in healthy.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_with_status_0(
    database_url: str, tmp_path: Path, started: list[_Api], number: signal.Signals
) -> None:
    api = _Api(database_url, tmp_path / "log")
    started.append(api)
    await api.up()
    await api.get("/health")  # which uses the Temporal client, whose shutdown is the delicate one
    began = time.monotonic()
    api.process.send_signal(number)
    await eventually(lambda: api.process.poll() is not None, timeout_s=10, what="the end")
    assert api.process.returncode == 0, api.log.read_text()
    assert time.monotonic() - began < 6


async def test_an_open_event_stream_does_not_hold_it_up(
    database_url: str, database: Database, tmp_path: Path, started: list[_Api]
) -> None:
    await seed_catalog(database)
    api = _Api(database_url, tmp_path / "log")
    started.append(api)
    await api.up()
    async with httpx.AsyncClient(timeout=10, base_url=api.url, headers={"X-Admin-Token": ADMIN_TOKEN}) as client:
        job_id = (await client.post("/admin/instances/launch", json={"model_name": "tiny"})).json()["job_id"]
        async with client.stream("GET", f"/admin/instances/launch/{job_id}/events") as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "id: 1"
            api.process.terminate()
            async for _ in lines:
                pass
    await eventually(lambda: api.process.poll() is not None, timeout_s=10, what="the end")
    assert api.process.returncode == 0, api.log.read_text()


async def test_an_address_that_is_taken_is_status_1(database_url: str, tmp_path: Path, started: list[_Api]) -> None:
    first = _Api(database_url, tmp_path / "first.log")
    started.append(first)
    await first.up()
    second = _Api(database_url, tmp_path / "second.log", first.port)
    started.append(second)
    await eventually(lambda: second.process.poll() is not None, what="the end of the second")
    assert second.process.returncode == 1
    assert "address already in use" in second.log.read_text()


async def test_it_is_light(database_url: str, database: Database, tmp_path: Path, started: list[_Api]) -> None:
    await seed_catalog(database)
    api = _Api(database_url, tmp_path / "log")
    started.append(api)
    await api.up()
    for path in ("/health", "/openapi.json", "/admin/offers", "/admin/models/r2"):
        assert await api.get(path) is not None
    async with httpx.AsyncClient(timeout=10, headers={"X-Admin-Token": ADMIN_TOKEN}) as client:
        # Temporal is away: the workflow classes are imported all the same.
        assert (await client.post(f"{api.url}/admin/instances/launch", json={"model_name": "tiny"})).status_code == 202
    assert api.resident_mb() < 200
