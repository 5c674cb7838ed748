"""One stack for all tests that neither kill anything nor leave a trace that others meet."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.stack import RunningStack, running_stack

#: Few slots, so that a test can fill the launch queue.
PROVISION_SLOTS = 6


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """`skyfleet up`, on a world with many kinds of machine."""
    settings = {"SKYFLEET_PROVISION_CONCURRENCY": str(PROVISION_SLOTS)}
    async with running_stack(tmp_path_factory.mktemp("integration"), settings=settings) as stack:
        yield stack
