"""Skyfleet itself on the lab."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator

import pytest

from tests.labs.aws.lab import AwsLab
from tests.stack import RunningStack, running_stack

#: A lab answers at once: what takes minutes on a real cloud need not here.
QUICK = {
    "SKYFLEET_SKYPILOT_SETTLE_SECONDS": "6",
    "SKYFLEET_SKYPILOT_THROTTLE_SECONDS": "1",
    "SKYFLEET_COMPARE_INTERVAL_SECONDS": "2",
    "SKYFLEET_CLOUD_INTERVAL_SECONDS": "5",
    "SKYFLEET_GRACE_UNREACHABLE_SECONDS": "30",
    # The lab's own is closed to PostgreSQL.
    "TMPDIR": tempfile.gettempdir(),
}


@pytest.fixture(scope="session")
async def real(started_aws_lab: AwsLab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """`skyfleet up` on the lab's SkyPilot."""
    settings = {**started_aws_lab.env, **QUICK}
    async with running_stack(tmp_path_factory.mktemp("aws"), settings=settings, cloud="skypilot") as stack:
        yield stack
