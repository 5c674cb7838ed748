"""The database server itself, for those who look after it."""

from __future__ import annotations

from sqlalchemy import text

from skyfleet.db.repositories.base import Repository


class ServerRepository(Repository):
    """What the server says of itself and of its schema."""

    async def version(self) -> str:
        """PostgreSQL's version, such as `18.1`."""
        shown = (await self.session.execute(text("SHOW server_version"))).scalar_one()
        return str(shown).split()[0]

    async def revision(self) -> str | None:
        """The migration that was applied last; None before the first."""
        if (await self.session.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one() is None:
            return None
        found: str | None = (await self.session.execute(text("SELECT version_num FROM alembic_version"))).scalar()
        return found
