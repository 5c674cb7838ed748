"""The audit log, and the API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import ApiKeyRow, AuditRow


class AuditRepository(Repository):
    """Who changed what."""

    def add(
        self,
        *,
        principal: str,
        action: str,
        subject: str,
        outcome: str,
        detail: dict[str, Any] | None = None,
        remote: str | None = None,
    ) -> None:
        """Write one row, in the caller's transaction."""
        self.session.add(
            AuditRow(
                principal=principal,
                action=action,
                subject=subject,
                outcome=outcome,
                detail=detail or {},
                remote=remote,
            )
        )

    async def page(
        self,
        *,
        action: str | None = None,
        subject: str | None = None,
        principal: str | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> Sequence[AuditRow]:
        """Newest first; `before_id` is the id of the last row of the page before."""
        statement = select(AuditRow)
        for column, value in (
            (AuditRow.action, action),
            (AuditRow.subject, subject),
            (AuditRow.principal, principal),
        ):
            if value is not None:
                statement = statement.where(col(column) == value)
        if before_id is not None:
            statement = statement.where(col(AuditRow.id) < before_id)
        return (await self.session.execute(statement.order_by(col(AuditRow.id).desc()).limit(limit))).scalars().all()


class ApiKeyRepository(Repository):
    """API keys. Their secrets are not here, only the hashes."""

    async def get(self, key_id: str) -> ApiKeyRow | None:
        """The key of that id, revoked or not."""
        return await self.session.get(ApiKeyRow, key_id)

    async def by_name(self, name: str) -> ApiKeyRow | None:
        """The key of that name, revoked or not."""
        return (await self.session.execute(select(ApiKeyRow).where(col(ApiKeyRow.name) == name))).scalar_one_or_none()

    async def all(self) -> Sequence[ApiKeyRow]:
        """All keys, oldest first."""
        return (await self.session.execute(select(ApiKeyRow).order_by(col(ApiKeyRow.created_at)))).scalars().all()

    def add(self, key: ApiKeyRow) -> None:
        """A new key."""
        self.session.add(key)

    async def touch(self, key_id: str, at: datetime) -> None:
        """Note when the key was last used."""
        await self.session.execute(update(ApiKeyRow).where(col(ApiKeyRow.id) == key_id).values(last_used_at=at))
