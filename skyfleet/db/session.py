"""The database connection, and the unit of work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

#: What a transaction raises when the database is away, is starting, or refuses.
DatabaseAway = (DBAPIError, OSError)
#: What repositories work on, by the name that rooms without SQL know it by.
Session = AsyncSession


def asyncpg_url(url: str) -> str:
    """The SQLAlchemy URL of a plain `postgresql://` one."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+asyncpg://" + url.removeprefix(prefix)
    return url


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool replace a connection whose server went away meanwhile. asyncpg knows: nothing is asked over it."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


class Database:
    """One pool of connections. `transaction()` is the unit of work: it commits at the end, or rolls back."""

    def __init__(self, url: str, *, pool_size: int = 10, pooled: bool = True) -> None:
        self.url = url
        options = {"pool_size": pool_size, "max_overflow": pool_size, "pool_pre_ping": False} if pooled else {}
        self.engine: AsyncEngine = create_async_engine(
            asyncpg_url(url),
            **options,
            **({} if pooled else {"poolclass": NullPool}),
            connect_args={"timeout": 10, "command_timeout": 60, "server_settings": {"application_name": "skyfleet"}},
        )
        event.listen(self.engine.sync_engine, "checkout", _refuse_closed)
        self._sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed when the block ends, and rolled back when it raises."""
        async with self._sessions() as session:
            try:
                yield session
                await session.commit()
            except BaseException:
                await session.rollback()
                raise

    async def aclose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()
