"""The fleet's figures, read from the database now and then, however often they are asked for."""

from __future__ import annotations

import asyncio
import logging
import time

from skyfleet.db.repositories import FleetRepository
from skyfleet.db.session import Database
from skyfleet.domain.fleet import FleetFigures

_log = logging.getLogger("skyfleet.api")

#: Less than Prometheus's usual interval, so that it never reads the same figures twice.
_FRESH_SECONDS = 5.0
#: A scrape is given 10 s.
_TIMEOUT_SECONDS = 4.0


class Fleet:
    """Remembers the figures, and also that there were none, for `fresh_s` seconds."""

    def __init__(self, database: Database, fresh_s: float = _FRESH_SECONDS) -> None:
        self._database = database
        self._fresh_s = fresh_s
        self._known: FleetFigures | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()  # of those that ask together, one reads

    async def figures(self) -> FleetFigures | None:
        """The figures, a few seconds old at most; None when the database does not answer."""
        async with self._reading:
            if time.monotonic() - self._read_at > self._fresh_s:
                self._known = await self._read()
                self._read_at = time.monotonic()
            return self._known

    async def _read(self) -> FleetFigures | None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), self._database.transaction() as session:
                return await FleetRepository(session).figures()
        except Exception as error:  # whatever it is: the other metrics are told all the same
            _log.warning("the fleet's figures could not be read: %s: %s", type(error).__name__, error)
            return None
