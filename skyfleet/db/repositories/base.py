"""What all repositories share."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession


class Repository:
    """Queries on one subject. The caller owns the transaction: a repository never commits."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def now(self) -> datetime:
        """The database's time, which is the same for all processes."""
        now: datetime = (await self.session.execute(select(func.clock_timestamp()))).scalar_one()
        return now
