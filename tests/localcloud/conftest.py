"""Clouds and a control plane for the local cloud's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.localcloud.control_plane import ControlPlane, running_control_plane
from tests.localcloud.harness import QUICK_WORLD, RunningCloud, running_cloud


@pytest.fixture(scope="module")
async def shared_cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningCloud]:
    """One for all tests of a file that use `cloud`."""
    async with running_cloud(tmp_path_factory.mktemp("shared"), config=QUICK_WORLD) as running:
        yield running


@pytest.fixture
async def cloud(shared_cloud: RunningCloud) -> AsyncIterator[RunningCloud]:
    """A cloud without machines, faults or changed capacity. Names must be the test's own."""
    yield shared_cloud
    await shared_cloud.empty()


@pytest.fixture
async def own_cloud(tmp_path: Path) -> AsyncIterator[RunningCloud]:
    """A cloud of the test's own, to kill and to restart."""
    async with running_cloud(tmp_path, config=QUICK_WORLD) as running:
        yield running


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    """A control plane that answers."""
    async with running_control_plane() as running:
        yield running
