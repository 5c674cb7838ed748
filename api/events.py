"""Launch events as they happen: one listening connection to PostgreSQL for the whole process.

A notification only wakes; what is sent is read from the table, so that nothing is lost while the connection is made
anew, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from api.problems import from_exception
from skyfleet.db.repositories import LaunchRepository
from skyfleet.db.session import Database
from skyfleet.domain.states import LaunchStage
from skyfleet.domain.views import LaunchEvent

_log = logging.getLogger("skyfleet.api")

_CHANNEL: Final = "launch_events"
#: A connection that looks alive is asked this often whether it is, seconds.
_PROBE_SECONDS: Final = 10.0
_BACK_OFF_SECONDS: Final = (0.1, 5.0)
#: How long a listener waits for a wake-up before it looks by itself: without the connection, and with it.
_POLL_SECONDS: Final = 1.0
_SAFETY_POLL_SECONDS: Final = 15.0
_PAGE: Final = 500


class EventHub:
    """Wakes those who follow a launch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._closing = False
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled; connect again, with back-off, whenever the connection is lost."""
        failures = 0
        while True:
            try:
                await self._listen()
                failures = 0
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                failures += 1
                _log.warning("not listening for launch events: %s", error or type(error).__name__)
            finally:
                self.connected.clear()
            low, high = _BACK_OFF_SECONDS
            await asyncio.sleep(min(low * 2.0**failures, high) * random.uniform(0.7, 1.3))  # noqa: S311  (jitter)

    def close(self) -> None:
        """End all streams in good order; who listens connects again, to another process, where it broke off."""
        self._closing = True
        self._wake_all()

    async def _listen(self) -> None:
        """Listen on one connection until it is lost."""
        connection = await asyncpg.connect(
            self._database.url, timeout=5, server_settings={"application_name": "skyfleet-events"}
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(_CHANNEL, self._notified)
            self.connected.set()
            self._wake_all()  # what was written while nobody listened
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), _PROBE_SECONDS)
                if not lost.is_set():
                    await connection.execute("SELECT 1", timeout=5)
        finally:
            connection.terminate()

    def _notified(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        for waiter in self._waiters.get(payload.rpartition(":")[0], ()):
            waiter.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()

    @contextmanager
    def _subscribed(self, launch_id: str) -> Iterator[asyncio.Event]:
        woken = asyncio.Event()
        self._waiters.setdefault(launch_id, set()).add(woken)
        try:
            yield woken
        finally:
            waiters = self._waiters[launch_id]
            waiters.discard(woken)
            if not waiters:
                del self._waiters[launch_id]

    async def follow(self, launch_id: str, after: int) -> AsyncGenerator[LaunchEvent, None]:
        """Every event with a `seq` above `after`, in order, as it is committed.

        Ends after the terminal one, or when the process stops.

        Survives the database being away: it looks again until it is back.
        """
        with self._subscribed(launch_id) as woken:
            ended = False
            while not (ended or self._closing):
                # Cleared before the reading: an event written during it sets this again.
                woken.clear()
                events = await self._read(launch_id, after)
                for event in events:
                    after = event.seq
                    ended = ended or event.stage.terminal
                    yield event
                if ended or len(events) == _PAGE:
                    continue
                wait = _SAFETY_POLL_SECONDS if self.connected.is_set() else _POLL_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), wait)

    async def _read(self, launch_id: str, after: int) -> list[LaunchEvent]:
        try:
            async with self._database.transaction() as session:
                rows = await LaunchRepository(session).events(launch_id, after=after, limit=_PAGE)
        except Exception as error:
            problem = from_exception(error)
            if problem is None or problem.status_code != 503:
                raise
            return []
        return [
            LaunchEvent(
                seq=row.seq,
                at=row.at,
                kind=row.kind,
                stage=LaunchStage(row.stage),
                attempt=row.attempt,
                message=row.message,
                data=row.data,
            )
            for row in rows
        ]
