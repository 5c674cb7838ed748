"""The AWS lab for tests. A folder's conftest.py has it with `from tests.labs.aws.fixtures import aws_lab`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.labs.aws.lab import AwsLab, missing_programs, running_lab

_started: list[AwsLab] = []


@pytest.fixture(scope="session")
async def started_aws_lab() -> AsyncIterator[AwsLab]:
    """One lab without machines for the whole run."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"SkyPilot needs {', '.join(missing)}: make debian-packages installs them")
    # Not in pytest's folders: SkyPilot's sockets lie below, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="skyfleet-aws-", ignore_cleanup_errors=True) as folder:
        async with running_lab(Path(folder)) as lab:
            yield lab


@pytest.fixture
async def aws_lab(started_aws_lab: AwsLab) -> AsyncIterator[AwsLab]:
    """The lab, with no fault in force and no call on record; what still runs after the test is ended."""
    await started_aws_lab.clear_faults()
    await started_aws_lab.clear_calls()
    yield started_aws_lab
    await started_aws_lab.clear_faults()
    for instance in await started_aws_lab.running():
        await started_aws_lab.preempt(instance.id)
