"""The very commands, environments and health checks of docker-compose.yml, run as processes instead of containers.

What a container engine would do is done here: variables are filled in, secrets are files, a service starts when what it
depends on is healthy or done, and names of services become addresses on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import yaml

from skyfleet.stack import postgres
from tests.ports import free_port
from tests.postgres import TestServer, running_postgres
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: Our own services, each after what it depends on.
OURS = ("migrate", "api", "worker-control", "worker-provision", "dashboard")
#: Variables that name a port to listen on.
_LISTENING = (
    *("SKYFLEET_API_PORT", "SKYFLEET_WORKER_HEALTH_PORT", "SKYFLEET_DASHBOARD_PORT"),
    *("SKYFLEET_TEMPORAL_METRICS_PORT", "SKYPILOT_API_SERVER_LOCAL_PORT"),
)
#: Seconds between SIGTERM and SIGKILL.
GRACE = 30

_VARIABLE = re.compile(r"(?<!\$)\$\{[A-Z_]+(?::-([^}]*))?\}")
_ADDRESS = re.compile(rf"\b({'|'.join(SERVICES)}|0\.0\.0\.0|127\.0\.0\.1):(\d+)\b")


def fill(text: str) -> str:
    """The text with each variable's default, as Compose reads it without an .env file."""
    return _VARIABLE.sub(lambda match: match[1] or "", str(text)).replace("$$", "$")


#: Ports published on the host: number there to (service, number inside).
PUBLISHED = {
    int(host): (name, int(inside))
    for name, service in SERVICES.items()
    for _, host, inside in (fill(port).split(":") for port in service.get("ports", []))
}


@dataclass
class Engine:
    """Stands in for a container engine: a port of this machine for each (service, port inside), and the processes."""

    folder: Path
    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        """Where the secrets are, instead of /run/secrets."""
        return self.folder / "secrets"

    def port(self, service: str, inside: int) -> int:
        """The port on this machine that stands for a container's port."""
        return self.ports.setdefault((service, inside), free_port())

    def here(self, service: str, text: str) -> str:
        """What the service would read, with container addresses and paths turned into this machine's."""

        def address(match: re.Match[str]) -> str:
            host, number = match[1], int(match[2])
            if host in SERVICES:
                return f"127.0.0.1:{self.port(host, number)}"
            return f"127.0.0.1:{self.port(*PUBLISHED.get(number, (service, number)))}"

        text = _ADDRESS.sub(address, fill(text)).replace("0.0.0.0", "127.0.0.1")
        return text.replace("/run/secrets", str(self.secrets))

    def environment(self, service: str) -> dict[str, str]:
        """The container's environment; of ours, only what finds the programs."""
        given = {key: self.here(service, value) for key, value in SERVICES[service].get("environment", {}).items()}
        for key in _LISTENING:
            if key in given:
                given[key] = str(self.port(service, int(given[key])))
        if "HOME" in given:  # a volume
            home = self.folder / f"{service}-home"
            home.mkdir(exist_ok=True)
            given["HOME"] = str(home)
        found = f"{BIN}:{postgres.binaries()}:{os.environ['PATH']}"
        return {"PATH": found, "LANG": "C.UTF-8", "HOME": str(self.folder), "SECRETS": str(self.secrets), **given}

    def command(self, service: str) -> list[str]:
        """The container's command line, with its configuration files where they are here."""
        files = {item["target"]: COMPOSE["configs"][item["source"]] for item in SERVICES[service].get("configs", [])}
        words = [*SERVICES[service].get("entrypoint", []), *SERVICES[service]["command"]]
        return [str(ROOT / files[word]["file"]) if word in files else self.here(service, word) for word in words]

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process, its output in a log of its own."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    async def check(self, service: str, **more: str) -> bool:
        """Run the service's own health check once."""
        kind, *test = [self.here(service, part) for part in SERVICES[service]["healthcheck"]["test"]]
        assert kind == "CMD"
        done = await asyncio.to_thread(
            subprocess.run,
            test,
            env={**self.environment(service), **more},
            cwd=ROOT,
            capture_output=True,
            timeout=10,
            check=False,
        )
        return done.returncode == 0

    async def up(self, service: str) -> None:
        """Start a service and wait until it is healthy, or done if it is a one-shot; AssertionError with its log."""
        process = self.start(service, self.command(service), self.environment(service))
        try:
            if "healthcheck" not in SERVICES[service]:
                assert await asyncio.to_thread(process.wait, 60) == 0
                return

            async def healthy() -> bool:
                assert process.poll() is None, f"ended with {process.returncode}"
                return await self.check(service)

            await eventually(healthy, timeout_s=90, interval_s=0.2, what=f"health of {service}")
        except AssertionError as error:
            raise AssertionError(
                f"{service}: {error}\n{shlex.join(self.command(service))}\n{self.log(service)}"
            ) from None

    def log(self, name: str) -> str:
        """The end of a process's output."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    async def stop(self, name: str) -> int:
        """SIGTERM, the grace period, SIGKILL for what is left; the exit status, negative for a signal."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        # A container ends with its first process, and everything in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return await asyncio.to_thread(process.wait, 10)

    async def down(self) -> None:
        """End everything that is left, the newest first."""
        for name in reversed(list(self.processes)):
            await self.stop(name)


async def hand_over(server: TestServer) -> None:
    """Rename the superuser to the official image's: ours is called skyfleet, which the init script makes as a role."""
    first = await asyncpg.connect(server.url("postgres"))
    await first.execute("CREATE ROLE helper SUPERUSER LOGIN PASSWORD 'helper'")
    await first.close()
    second = await asyncpg.connect(
        host="127.0.0.1", port=server.port, user="helper", password="helper", database="postgres"
    )
    await second.execute(f"ALTER ROLE {postgres.SUPERUSER} RENAME TO postgres")
    await second.close()


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """Secrets, a PostgreSQL that the file's own script has set up, and a Temporal with the file's own namespace."""
    engine = Engine(tmp_path_factory.mktemp("compose"))
    make_secrets = [str(ROOT / "deploy" / "make-secrets.sh"), str(engine.secrets)]
    await asyncio.to_thread(subprocess.run, make_secrets, check=True, capture_output=True)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_postgres(tmp_path_factory.mktemp("compose-postgres")))
        stack.push_async_callback(engine.down)
        engine.ports["postgres", 5432] = server.port
        await hand_over(server)
        script = await asyncio.to_thread(
            subprocess.run,
            ["sh", str(ROOT / COMPOSE["configs"]["postgres-init"]["file"])],
            env={
                **engine.environment("postgres"),
                "PGHOST": "127.0.0.1",
                "PGPORT": str(server.port),
                "PGPASSWORD": server.password,
                "SECRETS": str(engine.secrets),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert script.returncode == 0, script.stderr
        # The one secret that holds an address.
        url = engine.secrets / "database_url"
        text = engine.here("api", url.read_text())
        url.unlink()
        url.write_text(text)

        ports = ("--port", str(engine.port("temporal", 7233)), "--http-port", str(free_port()))
        options = ("--headless", "--ip", "127.0.0.1", "--log-level", "error")
        temporal = [str(BIN / "temporal"), "server", "start-dev", *ports, *options]
        engine.start("temporal", temporal, engine.environment("temporal"))

        async def namespace(name: str) -> bool:
            done = await asyncio.to_thread(
                subprocess.run,
                ["sh", str(ROOT / COMPOSE["configs"]["temporal-namespace"]["file"])],
                env={**engine.environment("temporal-namespace"), "NAMESPACE": name},
                capture_output=True,
                check=False,
            )
            return done.returncode == 0

        await eventually(lambda: namespace("default"), timeout_s=30, what="namespace default, which is there")
        assert await namespace("another"), "a namespace that is not there yet"
        yield engine


async def test_postgres_is_healthy_once_our_database_is_there(engine: Engine) -> None:
    port = str(engine.port("postgres", 5432))
    assert await engine.check("postgres", PGPORT=port)
    assert not await engine.check("postgres", PGPORT=str(free_port()))


async def test_each_role_has_its_own_databases_and_no_others(engine: Engine) -> None:
    async def connect(role: str, database: str) -> None:
        password = (engine.secrets / f"{role}_database_password").read_text()
        port = engine.port("postgres", 5432)
        connection = await asyncpg.connect(host="127.0.0.1", port=port, user=role, password=password, database=database)
        # What Temporal's visibility schema needs, as an owner who is no superuser.
        await connection.execute("CREATE EXTENSION IF NOT EXISTS btree_gin")
        await connection.close()

    await connect("skyfleet", "skyfleet")
    await connect("temporal", "temporal")
    await connect("temporal", "temporal_visibility")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connect("temporal", "skyfleet")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connect("skyfleet", "temporal")


async def test_every_service_of_ours_becomes_healthy_and_stops_when_asked(engine: Engine) -> None:
    for service in OURS:
        if "healthcheck" in SERVICES[service]:
            assert not await engine.check(service), f"{service} is called healthy before it was started"
        for dependency in SERVICES[service]["depends_on"]:
            assert dependency in engine.processes or dependency in ("postgres", "temporal-namespace"), dependency
        await engine.up(service)

    api = f"http://127.0.0.1:{engine.port('api', 8080)}"
    token = (engine.secrets / "admin_token").read_text()
    async with httpx.AsyncClient(base_url=api) as client:
        assert (await client.get("/admin/nodes", headers={"X-Admin-Token": token})).json()["nodes"] == []
        assert (await client.get("/admin/nodes", headers={"X-Admin-Token": "wrong"})).status_code == 401
        bearer = {"Authorization": f"Bearer {(engine.secrets / 'metrics_token').read_text()}"}
        assert "skyfleet_database_up 1.0" in (await client.get("/metrics", headers=bearer)).text
        assert (await client.get("/metrics")).status_code == 401
        for worker in ("worker-control", "worker-provision"):
            answer = await client.get(f"http://127.0.0.1:{engine.port(worker, 8090)}/metrics")
            assert "skyfleet_build_info" in answer.text
            answer = await client.get(f"http://127.0.0.1:{engine.port(worker, 8091)}/metrics")
            assert "temporal_num_pollers" in answer.text

    # Nobody answers there, and nothing of ours needs it to start.
    found = await doctor(api, token)
    assert found["skypilot server"]["status"] == "failed"
    assert {found[f"workers on {queue}"]["status"] for queue in ("control", "provision", "teardown")} == {"ok"}

    for service in ("dashboard", "worker-provision", "worker-control", "api"):
        status = await engine.stop(service)
        assert status != -signal.SIGKILL, f"{service} did not stop in {GRACE} s\n{engine.log(service)}"
        assert not await engine.check(service), f"{service} is called healthy after it ended"


@pytest.mark.slow
async def test_skypilot_s_server_becomes_healthy_is_found_by_api_and_worker_and_stops(engine: Engine) -> None:
    """The real one. It has a home without credentials, so that no cloud is enabled and none is asked for anything."""
    assert not await engine.check("skypilot")
    await engine.up("skypilot")
    for service in ("migrate", "api", "worker-control", "worker-provision"):
        await engine.up(service)
    api = f"http://127.0.0.1:{engine.port('api', 8080)}"
    token = (engine.secrets / "admin_token").read_text()
    found = await doctor(api, token)
    assert found["skypilot server"]["status"] == "ok"
    assert found["skypilot server"]["detail"].endswith(importlib.metadata.version("skypilot"))

    async def looked() -> bool:
        return bool((await doctor(api, token))["skypilot"]["status"] == "ok")

    await eventually(looked, timeout_s=90, interval_s=1, what="the worker's look at SkyPilot's clouds")

    for service in ("worker-provision", "worker-control", "api"):
        await engine.stop(service)
    status = await engine.stop("skypilot")
    assert status != -signal.SIGKILL, engine.log("skypilot")
    assert not await engine.check("skypilot")


async def doctor(api: str, token: str) -> dict[str, dict[str, Any]]:
    """The API's own checks by name."""
    async with httpx.AsyncClient(base_url=api, headers={"X-Admin-Token": token}, timeout=30) as client:
        report = (await client.get("/admin/doctor")).raise_for_status().json()
    return {check["name"]: check for check in report["checks"]}
