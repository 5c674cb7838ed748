"""Is the API there, and can it do its work?"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from sqlalchemy import text

from api.services import TALK_TIMEOUT_S, Services, Svc
from api.temporal import WorkflowsUnavailable
from skyfleet import __version__
from skyfleet.domain.views import ComponentHealth, Health

router = APIRouter(tags=["health"])


@router.get(
    "/health",
    response_model=Health,
    summary="Can launches be accepted and carried out?",
    responses={503: {"description": "Something is away: see `components`.", "model": Health}},
    openapi_extra={"security": []},
)
async def health(response: Response, services: Svc) -> Health:
    """Asks the database and Temporal now; 503, with the same body, when something is away."""
    database, temporal = await asyncio.gather(_database(services), _temporal(services))
    catalog = await _catalog(services) if database.ok else ComponentHealth(ok=False, detail="not readable")
    ok = database.ok and temporal.ok and catalog.ok
    if not ok:
        response.status_code = 503
    return Health(
        ok=ok,
        version=__version__,
        sandbox=services.settings.sandbox,
        components={"database": database, "temporal": temporal, "catalog": catalog},
    )


@router.get("/health/live", summary="Is the process there?", openapi_extra={"security": []})
async def live() -> dict[str, bool]:
    """Answers without asking anything else."""
    return {"ok": True}


async def _database(services: Services) -> ComponentHealth:
    try:
        async with asyncio.timeout(TALK_TIMEOUT_S), services.database.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except Exception as error:
        return ComponentHealth(ok=False, detail=f"the database does not answer ({type(error).__name__})")
    return ComponentHealth(ok=True)


async def _temporal(services: Services) -> ComponentHealth:
    try:
        await services.workflows.check(timeout_s=TALK_TIMEOUT_S)
    except WorkflowsUnavailable as error:
        return ComponentHealth(ok=False, detail=str(error))
    return ComponentHealth(ok=True)


async def _catalog(services: Services) -> ComponentHealth:
    try:
        async with asyncio.timeout(TALK_TIMEOUT_S):
            snapshot = await services.catalog.snapshot()
    except Exception as error:
        return ComponentHealth(ok=False, detail=f"the catalog cannot be read ({type(error).__name__})")
    broken = [f"{row.name}: {row.error}" for row in snapshot.backends.values() if row.error]
    if not snapshot.loaded:
        return ComponentHealth(ok=False, detail="; ".join(["catalog not loaded yet", *broken]))
    summary = f"{len(snapshot.offers)} offers, {len(snapshot.models)} models"
    return ComponentHealth(ok=True, detail="; ".join([summary, *broken]))
