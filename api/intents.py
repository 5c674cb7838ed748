"""Accepting launches: intents are committed in groups, and started workflows marked in groups.

Requests that arrive together share one transaction. A request alone waits for nobody: the group is whatever came in
while the transaction before was under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import Final

from sqlalchemy.exc import DBAPIError

from skyfleet.db.repositories import ApiKeyRepository, LaunchRepository
from skyfleet.db.repositories.launches import NewLaunch
from skyfleet.db.session import Database

_log = logging.getLogger("skyfleet.api")

_GROUP: Final = 100
#: Transactions under way at once: one fills while the other waits for the disk.
_WRITERS: Final = 2
_MARK_EVERY_SECONDS: Final = 0.3


class IntentWriter:
    """Writes intents. `write` returns once the intent is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: asyncio.Queue[tuple[NewLaunch, asyncio.Future[bool]]] = asyncio.Queue()

    async def write(self, intent: NewLaunch) -> bool:
        """Whether the intent was written; False if its principal used its Idempotency-Key before."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((intent, done))
        return await done

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WRITERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _GROUP and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._write(batch)

    async def _write(self, batch: list[tuple[NewLaunch, asyncio.Future[bool]]]) -> None:
        try:
            async with self._database.transaction() as session:
                written = await LaunchRepository(session).add_all([intent for intent, _ in batch])
        except DBAPIError as error:
            if len(batch) > 1 and not error.connection_invalidated:
                # One value that the database refuses must not fail the requests that happened to come with it.
                for item in batch:
                    await self._write([item])
                return
            _fail(batch, error)
        except BaseException as error:
            _fail(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            for intent, done in batch:
                if not done.done():
                    done.set_result(intent.id in written)


def _fail(batch: list[tuple[NewLaunch, asyncio.Future[bool]]], error: BaseException) -> None:
    shown = error if isinstance(error, Exception) else ConnectionError("the API is stopping")
    for _, done in batch:
        if not done.done():
            done.set_exception(shown)


class Marker:
    """Notes, a few times a second, which workflows were started and which API keys were used."""

    def __init__(self, database: Database, used_keys: dict[str, datetime]) -> None:
        self._database = database
        self._started: list[str] = []
        self._used_keys = used_keys
        self._keys_written: dict[str, datetime] = {}

    def started(self, launch_id: str) -> None:
        """The workflow of this launch was started."""
        self._started.append(launch_id)

    async def run(self) -> None:
        """Write until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(_MARK_EVERY_SECONDS)
                await self._flush_quietly()
        finally:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._flush_quietly()

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except Exception as error:
            # The marks are kept; an unmarked launch is at worst started again, which is a start that changes nothing.
            _log.warning("started launches could not be marked: %s", error)

    async def flush(self) -> None:
        """Write what is noted."""
        started, keys = self._started[:1000], self._keys_due()
        if not started and not keys:
            return
        async with self._database.transaction() as session:
            if started:
                await LaunchRepository(session).mark_started(started)
            for key_id, at in keys.items():
                await ApiKeyRepository(session).touch(key_id, at)
        del self._started[: len(started)]
        self._keys_written.update(keys)

    def _keys_due(self) -> dict[str, datetime]:
        """Keys whose last use was not written for half a minute."""
        due = {}
        for key_id, at in list(self._used_keys.items()):
            written = self._keys_written.get(key_id)
            if written is None or (at - written).total_seconds() > 30:
                due[key_id] = at
        return due
