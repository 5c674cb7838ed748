"""Names of machines that were given up."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import GivenUpNameRow


class GivenUpNameRepository(Repository):
    """Names that may not be used again. Both methods hold the name until the transaction ends."""

    async def lock(self, name: str) -> bool:
        """Keep others from giving the name up meanwhile; False if it was given up already."""
        await self._hold(name)
        return await self.session.get(GivenUpNameRow, name) is None

    async def give_up(self, name: str) -> None:
        """Write the name down, once nobody holds it."""
        await self._hold(name)
        await self.session.execute(
            insert(GivenUpNameRow).values(GivenUpNameRow(name=name).model_dump()).on_conflict_do_nothing()
        )

    async def _hold(self, name: str) -> None:
        await self.session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"name:{name}"}
        )
