"""What the clouds sell."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.problems import refused_field
from api.security import Viewer
from api.services import Svc
from skyfleet.domain.states import Market
from skyfleet.domain.views import OfferList, OfferView

router = APIRouter(prefix="/admin", tags=["catalog"])

_Filter = Annotated[str | None, Query(max_length=200)]


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
