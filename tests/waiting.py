"""Wait for something to become true, with a deadline, instead of sleeping for a guess."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    probe: Callable[[], Awaitable[T]], *, timeout_s: float = ..., interval_s: float = ..., what: str = ...
) -> T: ...


@overload
async def eventually(
    probe: Callable[[], T], *, timeout_s: float = ..., interval_s: float = ..., what: str = ...
) -> T: ...


async def eventually(
    probe: Callable[[], T | Awaitable[T]],
    *,
    timeout_s: float = 20.0,
    interval_s: float = 0.05,
    what: str = "condition",
) -> T:
    """The first truthy answer of `probe` (sync or async); AssertionError with the last answer after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} not reached in {timeout_s} s; last answer: {value!r}")
        await asyncio.sleep(interval_s)
