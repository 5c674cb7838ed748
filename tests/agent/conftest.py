"""Fixtures of the agent's tests: a fake control plane, and machines that are cleaned away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.harness import AgentProcess, FakeControlPlane, FakeMetadata, boot_of

Machine = Callable[..., AgentProcess]


@pytest.fixture
async def control_plane() -> AsyncIterator[FakeControlPlane]:
    """A fake control plane that listens."""
    fake = FakeControlPlane()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def metadata() -> AsyncIterator[FakeMetadata]:
    """A metadata service that listens and has nothing to say."""
    fake = FakeMetadata()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def machine(tmp_path: Path, control_plane: FakeControlPlane) -> Iterator[Machine]:
    """Makes a machine; keywords change its boot file, but `python`, `options` and `environ`, how the agent is run."""
    made: list[AgentProcess] = []

    def make(
        python: str | None = None,
        options: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        **changes: Any,
    ) -> AgentProcess:
        folder = tmp_path / f"machine-{len(made)}"
        folder.mkdir()
        agent = AgentProcess(folder, boot_of(control_plane.url, folder, **changes), options=options, env=environ)
        agent.python = python or agent.python
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.stop()
