"""The Slurm lab for tests (a pytest plugin, loaded in tests/conftest.py)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.labs.slurm.clusters import CLUSTERS
from tests.labs.slurm.lab import SlurmLab, missing, running_lab


@pytest.fixture(scope="session")
async def started_slurm_lab() -> AsyncIterator[SlurmLab]:
    """One lab for the whole run, for tests marked `lab`."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    # Not in pytest's folders: SkyPilot's sockets lie below, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="skyfleet-slurm-", ignore_cleanup_errors=True) as folder:
        async with running_lab(Path(folder)) as lab:
            yield lab


@pytest.fixture
async def slurm_lab(started_slurm_lab: SlurmLab) -> AsyncIterator[SlurmLab]:
    """The lab, with all of its nodes idle; what a test leaves in the queues is ended."""
    yield started_slurm_lab
    for cluster in CLUSTERS:
        await started_slurm_lab.empty(cluster)
