"""A store for the whole run, and a bucket for each test: moto keeps one state for a process."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.models.store import Store, running_store


@pytest.fixture(scope="session")
def running() -> Iterator[Store]:
    """The server."""
    with running_store() as store:
        yield store


@pytest.fixture
def store(running: Store) -> Iterator[Store]:
    """The server, which refuses nothing."""
    running.refused.clear()
    running.requests.clear()
    yield running
    running.refused.clear()


@pytest.fixture
def name(store: Store) -> str:
    """An empty bucket's name."""
    name = f"weights-{uuid4().hex[:12]}"
    store.make(name)
    return name
