"""What the clouds sell."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Query

from api.catalog import Snapshot, price_order
from api.paging import Cursor, decode_price, encode_price
from api.problems import refused_field
from api.security import Viewer
from api.services import Svc
from skyfleet.db.tables import ModelRow
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import Market
from skyfleet.domain.views import OfferList, OfferView

router = APIRouter(prefix="/admin", tags=["catalog"])


_EXAMPLE = {
    "offers": [
        {
            "cloud": "aws",
            "region": "us-east-1",
            "zone": "us-east-1a",
            "instance_type": "g5.xlarge",
            "market": "spot",
            "hourly_price": "0.400000",
            "spot_saving": 0.6024,
            "gpu": "A10G",
            "gpu_count": 1,
            "gpu_memory_gb": 22.35,
            "vcpus": 4,
            "memory_gb": 16.0,
            "sandbox": False,
            "fits": True,
        }
    ],
    "total": 118,
    "next": "MC40MDAwMDB8YXdzL3VzLWVhc3QtMS91cy1lYXN0LTFhL2c1LnhsYXJnZS9zcG90",
}


@router.get(
    "/offers",
    response_model=OfferList,
    summary="What the clouds sell",
    responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
)
async def offers(
    services: Svc,
    principal: Viewer,
    provider: Annotated[str | None, Query(max_length=200, examples=["aws"])] = None,
    region: Annotated[str | None, Query(max_length=200, examples=["us-east-1"])] = None,
    gpu: Annotated[str | None, Query(max_length=200, description="In any case.", examples=["A10G"])] = None,
    instance_type: Annotated[str | None, Query(max_length=200, examples=["g5.xlarge"])] = None,
    model_name: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Say of each whether this model fits.",
            examples=["meta-llama/Llama-3.1-8B-Instruct"],
        ),
    ] = None,
    fits: Annotated[bool | None, Query(description="Only those that the model fits, or only the others.")] = None,
    market: Market | None = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=2_000, description="Rows a page.")] = 500,
) -> OfferList:
    """Cheapest first: the price, and what spot saves against on-demand, of each machine in each region."""
    after = decode_price(cursor)
    snapshot = await services.catalog.snapshot()
    model = None
    if model_name is not None:
        model = snapshot.models.get(model_name) or (await services.catalog.refreshed()).models.get(model_name)
        if model is None:
            raise refused_field("model_name", f"no model {model_name!r} in the catalog", sorted(snapshot.models)[:100])
    elif fits is not None:
        raise refused_field("fits", "is about a model: give `model_name` as well")
    wanted_gpu = None if gpu is None else gpu.lower()
    found = [
        offer
        for offer in snapshot.by_price
        if (provider is None or offer.cloud == provider)
        and (region is None or offer.region == region)
        and (wanted_gpu is None or (offer.gpu or "").lower() == wanted_gpu)
        and (instance_type is None or offer.instance_type == instance_type)
        and (market is None or offer.market is market)
        and (fits is None or model is None or _fits(offer, model) is fits)
    ]
    start = 0 if after is None else bisect_right(found, after, key=price_order)
    page = found[start : start + limit]
    return OfferList(
        offers=[_view(offer, snapshot, model) for offer in page],
        total=len(found),
        next=encode_price(*price_order(page[-1])) if start + limit < len(found) else None,
    )


def _fits(offer: Offer, model: ModelRow) -> bool:
    return offer.total_gpu_memory_gb >= model.vram_required_gb


def _view(offer: Offer, snapshot: Snapshot, model: ModelRow | None) -> OfferView:
    view = OfferView(**offer.model_dump(exclude={"backend"}), spot_saving=snapshot.spot_saving(offer))
    if model is not None:
        view.fits = _fits(offer, model)
        if not view.fits:
            view.why_not = (
                f"{model.id} needs {model.vram_required_gb:g} GB of GPU memory, "
                f"{offer.instance_type} has {offer.total_gpu_memory_gb:g} GB"
            )
    return view
