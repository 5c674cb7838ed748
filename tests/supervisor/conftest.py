"""Shared by the supervisor's tests."""

from __future__ import annotations

import asyncio
import warnings

import pytest


@pytest.fixture(autouse=True)
def asyncio_subprocesses() -> None:
    """Undo what a uvicorn in another test's thread did: with uvloop's policy asyncio's own loops start no process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(None)
