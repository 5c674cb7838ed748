"""The budgets that may stop a launch, as they were a moment ago: every launch asks for them."""

from __future__ import annotations

import asyncio
import time

from skyfleet.db.repositories.budgets import BudgetRepository
from skyfleet.db.session import Session
from skyfleet.db.tables import utcnow
from skyfleet.domain.budgets import Budget

#: How long an answer is believed. What a fleet costs in this time is what a budget may be overspent by unseen.
_FRESH_SECONDS = 2.0


class BudgetStops:
    """Reads the budgets with a hard stop when asked and at most every few seconds."""

    def __init__(self) -> None:
        self._budgets: list[Budget] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()  # a burst reads them once

    async def read(self, session: Session) -> list[Budget]:
        """The budgets with a hard stop, and what is spent of them."""
        async with self._reading:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._budgets = await BudgetRepository(session).spending(utcnow(), stops=True)
                self._read_at = time.monotonic()
            return self._budgets

    def forget(self) -> None:
        """A budget was changed by this process: read them anew for the next question."""
        self._read_at = float("-inf")
