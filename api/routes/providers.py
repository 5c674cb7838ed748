"""The clouds: where machines can be bought, and why not elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api.catalog import Sales
from api.problems import unavailable
from api.security import Operator, Viewer, remote
from api.services import TALK_TIMEOUT_S, Svc
from api.temporal import WorkflowsUnavailable
from skyfleet.db.repositories import AuditRepository, CatalogRepository
from skyfleet.db.tables import CloudAccessRow
from skyfleet.domain.views import BackendView, ProviderList, ProviderRefreshAccepted, ProviderView

router = APIRouter(prefix="/admin", tags=["catalog"])


_EXAMPLE = {
    "providers": [
        {
            "cloud": "aws",
            "backend": "skypilot",
            "enabled": True,
            "reason": "",
            "checked_at": "2026-11-24T00:42:10Z",
            "sandbox": False,
            "offers": 4,
            "cheapest_price": "0.400000",
            "gpus": ["A10G"],
            "regions": [
                {"region": "us-east-1", "offers": 2, "cheapest_price": "0.400000"},
                {"region": "us-east-2", "offers": 2, "cheapest_price": "0.404000"},
            ],
        },
        {
            "cloud": "azure",
            "backend": "skypilot",
            "enabled": False,
            "reason": "~/.azure/msal_token_cache.json does not exist. Run the following commands:\n  $ az login",
            "checked_at": "2026-11-24T00:42:10Z",
            "sandbox": False,
            "offers": 0,
            "gpus": [],
            "regions": [],
        },
    ],
    "backends": [
        {
            "name": "skypilot",
            "engines": ["vllm", "command"],
            "sandbox": False,
            "read_at": "2026-11-24T00:45:00Z",
        }
    ],
}


@router.get(
    "/providers",
    response_model=ProviderList,
    summary="The clouds, and why some are not enabled",
    responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
)
async def providers(services: Svc, principal: Viewer) -> ProviderList:
    """As they were last checked, which is every ten minutes; and what they sell, by region."""
    snapshot = await services.catalog.snapshot()
    async with services.database.transaction() as session:
        catalog = CatalogRepository(session)
        access = {(row.backend, row.cloud): row for row in await catalog.access()}
        backends = await catalog.backends()
    sandboxes = {row.name for row in backends if row.sandbox}
    views = [
        _view(backend, cloud, access.get((backend, cloud)), snapshot.sales.get((backend, cloud)), backend in sandboxes)
        for backend, cloud in access.keys() | snapshot.sales.keys()
    ]
    return ProviderList(
        providers=sorted(views, key=lambda view: (not view.enabled, view.cloud, view.backend)),
        backends=[
            BackendView(name=row.name, engines=row.engines, sandbox=row.sandbox, read_at=row.synced_at, error=row.error)
            for row in backends
        ],
    )


def _view(backend: str, cloud: str, access: CloudAccessRow | None, sales: Sales | None, sandbox: bool) -> ProviderView:
    view = ProviderView(cloud=cloud, backend=backend, enabled=True, sandbox=sandbox)
    if access is not None:  # what was never checked is on sale
        view.enabled, view.reason, view.checked_at = access.enabled, access.reason, access.checked_at
    if sales is not None:
        view.offers, view.cheapest_price = sales.offers, sales.cheapest_price
        view.gpus, view.regions = sales.gpus, sales.regions
    return view


@router.post(
    "/providers/refresh",
    status_code=202,
    response_model=ProviderRefreshAccepted,
    summary="Check the clouds, and read what they sell, now",
)
async def refresh(request: Request, services: Svc, principal: Operator) -> ProviderRefreshAccepted:
    """A worker does it; look at `checked_at` of each provider. A backend that does not answer keeps what it had."""
    async with services.database.transaction() as session:
        now = await CatalogRepository(session).now()
    try:
        await services.workflows.recheck_clouds(now, timeout_s=TALK_TIMEOUT_S)
    except WorkflowsUnavailable as error:
        raise unavailable(str(error)) from error
    async with services.database.transaction() as session:
        AuditRepository(session).add(
            principal=principal.name,
            action="providers.refresh",
            subject="providers",
            outcome="accepted",
            remote=remote(request),
        )
    return ProviderRefreshAccepted(requested_at=now)
