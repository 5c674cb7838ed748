"""A real PostgreSQL for tests, from the wheel, on a free port; each test database is a copy of a migrated template."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg

from skyfleet.db import migrate
from skyfleet.stack import postgres
from tests.ports import free_port
from tests.waiting import eventually


@dataclass
class TestServer:
    """A running server, and a template database that holds the newest schema."""

    __test__ = False

    port: int
    password: str
    template: str = "template_migrated"

    def url(self, database: str) -> str:
        """URL of a database on this server."""
        return postgres.url(self.password, self.port, database)

    @asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """URL of a fresh database, dropped afterwards."""
        name = f"test_{uuid4().hex[:12]}"
        template = self.template if migrated else "template1"
        await self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url(name)
        finally:
            await self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def running_postgres(folder: Path) -> AsyncIterator[TestServer]:
    """Start a server in `folder`, migrate its template, stop it at the end."""
    password = await asyncio.to_thread(postgres.initialise, folder)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  (waited for in a thread)
            [*postgres.server_command(folder, port), "-c", "fsync=off"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            **postgres.identity(),
        )
    server = TestServer(port, password)

    async def up() -> bool:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            await postgres.ensure_database(password, port, server.template)
            return True
        return False

    try:
        await eventually(up, timeout_s=30, what="PostgreSQL")
        await asyncio.to_thread(migrate.upgrade, server.url(server.template))
        yield server
    finally:
        os.kill(process.pid, signal.SIGINT)
        await asyncio.to_thread(process.wait, 20)
