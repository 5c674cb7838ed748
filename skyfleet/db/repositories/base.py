"""What all repositories share."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession


class Repository:
    """Queries on one subject. The caller owns the transaction: a repository never commits."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
