"""Models, and what the clouds sell."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from api.presenting import model_view
from api.problems import not_found, refused_field
from api.schemas import ModelRequest
from api.security import Admin, Viewer, remote
from api.services import Svc
from skyfleet.db.repositories import AuditRepository, ModelRepository
from skyfleet.db.tables import ModelRow
from skyfleet.domain.sizing import vram_required_gb
from skyfleet.domain.states import Market
from skyfleet.domain.views import CommandAccepted, ModelList, ModelView, OfferList, OfferView

router = APIRouter(prefix="/admin", tags=["catalog"])

_Filter = Annotated[str | None, Query(max_length=200)]


@router.get("/models/r2", response_model=ModelList, summary="The model catalog")
async def models(services: Svc, principal: Viewer) -> ModelList:
    """All models that can be launched."""
    async with services.database.transaction() as session:
        return ModelList(models=[model_view(row) for row in await ModelRepository(session).all()])


@router.post(
    "/models",
    status_code=201,
    response_model=ModelView,
    summary="Register a model",
    responses={200: {"description": "A model of that id was replaced.", "model": ModelView}},
)
async def register_model(
    request: Request, response: Response, body: ModelRequest, services: Svc, principal: Admin
) -> ModelView:
    """Put a model into the catalog, or replace the one of that id.

    GPU memory that is not given is derived from `parameters`: two bytes each, and a fifth on top.
    """
    needed = body.vram_required_gb
    if needed is None:
        assert body.parameters is not None
        needed = vram_required_gb(body.parameters)
    short = body.id.rpartition("/")[2]
    row = ModelRow(
        id=body.id,
        name=body.name or short,
        family=body.family or short.partition("-")[0],
        size=body.size or _size(body.parameters),
        parameters=body.parameters,
        context_length=body.context_length,
        vram_required_gb=needed,
        source=body.source,
    )
    async with services.database.transaction() as session:
        repository = ModelRepository(session)
        before = await repository.get(body.id)
        await repository.put(row)
        AuditRepository(session).add(
            principal=principal.name,
            action="model.register" if before is None else "model.replace",
            subject=body.id,
            outcome="done",
            detail={"vram_required_gb": needed, "parameters": body.parameters},
            remote=remote(request),
        )
    services.catalog.forget()
    if before is not None:
        response.status_code = 200
    return model_view(row)


def _size(parameters: int | None) -> str:
    """A parameter count as people write it."""
    if parameters is None:
        return "unknown"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)


@router.delete("/models/{model_id:path}", response_model=CommandAccepted, summary="Take a model out of the catalog")
async def delete_model(
    request: Request, services: Svc, principal: Admin, model_id: Annotated[str, Path(max_length=200)]
) -> CommandAccepted:
    """Launches of it stay."""
    async with services.database.transaction() as session:
        if not await ModelRepository(session).delete(model_id):
            raise not_found(f"no model {model_id!r}")
        AuditRepository(session).add(
            principal=principal.name,
            action="model.delete",
            subject=model_id,
            outcome="done",
            remote=remote(request),
        )
    services.catalog.forget()
    return CommandAccepted(status="deleted", subject=model_id)


@router.get("/offers", response_model=OfferList, summary="What the clouds sell")
async def offers(
    services: Svc,
    principal: Viewer,
    provider: _Filter = None,
    region: _Filter = None,
    gpu: _Filter = None,
    instance_type: _Filter = None,
    model_name: Annotated[str | None, Query(max_length=200, description="Say of each whether this model fits.")] = None,
    market: Market | None = None,
) -> OfferList:
    """Cheapest first."""
    snapshot = await services.catalog.snapshot()
    model = None
    if model_name is not None:
        model = snapshot.models.get(model_name) or (await services.catalog.refreshed()).models.get(model_name)
        if model is None:
            raise refused_field("model_name", f"no model {model_name!r} in the catalog", sorted(snapshot.models)[:100])
    views = []
    for offer in sorted(snapshot.offers, key=lambda item: (item.hourly_price, item.key)):
        if (
            (provider is not None and offer.cloud != provider)
            or (region is not None and offer.region != region)
            or (gpu is not None and (offer.gpu or "").lower() != gpu.lower())
            or (instance_type is not None and offer.instance_type != instance_type)
            or (market is not None and offer.market is not market)
        ):
            continue
        view = OfferView(**offer.model_dump(exclude={"backend"}))
        if model is not None:
            view.fits = offer.total_gpu_memory_gb >= model.vram_required_gb
            if not view.fits:
                view.why_not = (
                    f"{model.id} needs {model.vram_required_gb:g} GB of GPU memory, "
                    f"{offer.instance_type} has {offer.total_gpu_memory_gb:g} GB"
                )
        views.append(view)
    return OfferList(offers=views)
