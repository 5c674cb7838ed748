"""The AWS lab for tests (a pytest plugin, loaded in tests/conftest.py)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.labs.aws.lab import AwsLab, missing, running_lab


@asynccontextmanager
async def _session(*, machines: bool) -> AsyncIterator[AwsLab]:
    reason = missing(machines=machines)
    if reason is not None:
        pytest.skip(reason)
    # Not in pytest's folders: SkyPilot's sockets lie below, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="skyfleet-aws-", ignore_cleanup_errors=True) as folder:
        async with running_lab(Path(folder), machines=machines) as lab:
            yield lab


@asynccontextmanager
async def _clean(lab: AwsLab) -> AsyncIterator[AwsLab]:
    await lab.clear_faults()
    await lab.clear_calls()
    yield lab
    await lab.clear_faults()
    for instance in await lab.running():
        await lab.preempt(instance.id)


@pytest.fixture(scope="session")
async def started_aws_lab() -> AsyncIterator[AwsLab]:
    """One lab without machines for the whole run."""
    async with _session(machines=False) as lab:
        yield lab


@pytest.fixture(scope="session")
async def started_aws_lab_with_machines() -> AsyncIterator[AwsLab]:
    """One lab with machines for the whole run."""
    async with _session(machines=True) as lab:
        yield lab


@pytest.fixture
async def aws_lab(started_aws_lab: AwsLab) -> AsyncIterator[AwsLab]:
    """The lab, without machines, with no fault in force and no call on record; what a test leaves running is ended."""
    async with _clean(started_aws_lab) as lab:
        yield lab


@pytest.fixture
async def aws_lab_with_machines(started_aws_lab_with_machines: AwsLab) -> AsyncIterator[AwsLab]:
    """The same with machines, for tests marked `lab`."""
    async with _clean(started_aws_lab_with_machines) as lab:
        yield lab
