"""Fixtures that all layers share."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyfleet.db.session import Database
from skyfleet.exit import leave
from tests.postgres import TestServer, running_postgres

#: Fixtures that several folders use and that are long enough for a file of their own.
pytest_plugins = ("tests.labs.aws.fixtures", "tests.labs.slurm.fixtures")

_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the run's status for the end."""
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with the run's own status, whatever the interpreter does while it shuts down (see `skyfleet.exit`)."""
    if _STATUS in config.stash:
        leave(config.stash[_STATUS])


@pytest.fixture(scope="session")
async def postgres_server() -> AsyncIterator[TestServer]:
    """One PostgreSQL for the whole run; not in pytest's folders, of which a later run keeps only three."""
    with tempfile.TemporaryDirectory(prefix="skyfleet-test-postgres-", ignore_cleanup_errors=True) as folder:
        async with running_postgres(Path(folder)) as server:
            yield server


@pytest.fixture
async def database_url(postgres_server: TestServer) -> AsyncIterator[str]:
    """URL of a fresh, migrated database of this test's own."""
    async with postgres_server.database() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database of this test's own."""
    database = Database(database_url)
    yield database
    await database.aclose()
