"""Load: a bounded number of requests, a bounded number at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

CONCURRENCY = 50


async def bounded(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do `work(0)` … `work(count - 1)`, `CONCURRENCY` of them at once."""
    numbers = iter(range(count))

    async def take() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(take() for _ in range(CONCURRENCY)))
