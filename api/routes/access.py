"""API keys, the audit log, and who one is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy.exc import IntegrityError

from api.paging import Cursor, Limit, decode_number
from api.presenting import api_key_view
from api.problems import ProblemError, not_found, refused_field
from api.schemas import ApiKeyRequest
from api.security import ADMIN_PRINCIPAL, Admin, Viewer, new_api_key, remote, sha256
from api.services import Svc
from skyfleet.db.repositories import ApiKeyRepository, AuditRepository
from skyfleet.db.tables import ApiKeyRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain.views import (
    ApiKeyCreated,
    ApiKeyList,
    AuditEntry,
    AuditList,
    CommandAccepted,
    Identity,
)

router = APIRouter(prefix="/admin", tags=["access"])

_Filter = Annotated[str | None, Query(max_length=500)]


@router.get("/whoami", response_model=Identity, summary="Who the credentials stand for")
async def whoami(principal: Viewer) -> Identity:
    """Name, role and tenant."""
    return Identity(principal=principal.name, role=principal.role, tenant=principal.tenant)


@router.get("/api-keys", response_model=ApiKeyList, summary="List API keys")
async def api_keys(services: Svc, principal: Admin) -> ApiKeyList:
    """Oldest first, without their secrets."""
    async with services.database.transaction() as session:
        return ApiKeyList(api_keys=[api_key_view(row) for row in await ApiKeyRepository(session).all()])


@router.post("/api-keys", status_code=201, response_model=ApiKeyCreated, summary="Make an API key")
async def create_api_key(request: Request, body: ApiKeyRequest, services: Svc, principal: Admin) -> ApiKeyCreated:
    """The key is shown in the answer and nowhere else."""
    if body.name == ADMIN_PRINCIPAL:
        raise refused_field("name", "is reserved for the admin token")
    now = utcnow()
    if body.expires_at is not None and body.expires_at <= now:
        raise refused_field("expires_at", "is in the past")
    secret = ids.new_secret()
    row = ApiKeyRow(
        id=ids.new_api_key_id(),
        name=body.name,
        role=body.role.value,
        tenant=body.tenant,
        secret_hash=sha256(secret),
        created_by=principal.name,
        created_at=now,
        expires_at=body.expires_at,
    )
    try:
        async with services.database.transaction() as session:
            ApiKeyRepository(session).add(row)
            AuditRepository(session).add(
                principal=principal.name,
                action="api_key.create",
                subject=row.id,
                outcome="done",
                detail={"name": row.name, "role": row.role, "tenant": row.tenant},
                remote=remote(request),
            )
    except IntegrityError:
        # Names stand in the history for ever, so that a revoked key's is not given again.
        raise ProblemError(409, f"there is, or was, an API key named {body.name!r}") from None
    return ApiKeyCreated(**api_key_view(row).model_dump(), key=new_api_key(row.id, secret))


@router.delete("/api-keys/{key_id}", response_model=CommandAccepted, summary="Revoke an API key")
async def revoke_api_key(
    request: Request, services: Svc, principal: Admin, key_id: Annotated[str, Path(max_length=100)]
) -> CommandAccepted:
    """The key stops working: here at once, in other API processes within five seconds."""
    async with services.database.transaction() as session:
        key = await ApiKeyRepository(session).get(key_id)
        if key is None:
            raise not_found(f"no API key {key_id!r}")
        if key.revoked_at is None:
            key.revoked_at = utcnow()
            AuditRepository(session).add(
                principal=principal.name,
                action="api_key.revoke",
                subject=key_id,
                outcome="done",
                detail={"name": key.name},
                remote=remote(request),
            )
    services.auth.forget()
    return CommandAccepted(status="revoked", subject=key_id)


@router.get("/audit", response_model=AuditList, summary="The audit log")
async def audit(
    services: Svc,
    principal: Admin,
    action: _Filter = None,
    subject: _Filter = None,
    by: Annotated[str | None, Query(alias="principal", max_length=500)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> AuditList:
    """Who changed what, and who was refused to. Newest first."""
    async with services.database.transaction() as session:
        rows = await AuditRepository(session).page(
            action=action, subject=subject, principal=by, before_id=decode_number(cursor), limit=limit + 1
        )
    entries = [AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return AuditList(entries=entries, next=str(entries[-1].id) if len(rows) > limit else None)
