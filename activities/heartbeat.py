"""Heartbeats of long activities."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from temporalio import activity

#: Between two beats. A cancel is heard this late at most, and workers must not throttle beats below it.
HEARTBEAT_SECONDS = 2.0


@contextlib.asynccontextmanager
async def heartbeating(details: dict[str, Any], every_s: float = HEARTBEAT_SECONDS) -> AsyncIterator[None]:
    """Beat while the block runs, with `details` as they are at each beat. A cancel arrives with a beat."""

    async def beat() -> None:
        while True:
            # The first after a while: a step that is done by then needs none.
            await asyncio.sleep(every_s)
            activity.heartbeat(details)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
