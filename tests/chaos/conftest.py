"""One stack that is killed again and again, piece by piece and as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.stack import RunningStack, running_stack


@pytest.fixture(scope="session")
async def battered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """`skyfleet up`; a test leaves it healthy, though with fewer lives."""
    async with running_stack(tmp_path_factory.mktemp("chaos")) as stack:
        yield stack
