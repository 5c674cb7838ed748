"""Is what a launch asks for on sale, big enough, cheap enough, and can the engine run there?

Every refusal says what would be accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.catalog import Snapshot, names
from api.problems import ProblemError, refused_field, unavailable
from api.schemas import LaunchRequest
from skyfleet.db.tables import utcnow
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.offers import Offer
from skyfleet.domain.planner import Exclusion, Reason, plan

_SHOWN: Final = 100  # names in a list of what exists
_VERDICTS: Final = 2_000
#: The order in which the planner asks; the further an offer came, the nearer it is to what was wanted.
_NEARNESS: Final = {reason: rank for rank, reason in enumerate(Reason)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation settled: the spec as stored, and whether every place that it may go to is a sandbox."""

    spec: LaunchSpec
    sandbox: bool


def validate(request: LaunchRequest, snapshot: Snapshot) -> Verdict:
    """The launch spec of a request; raises 422 problems, and 503 while no catalog is loaded."""
    if not snapshot.loaded:
        raise unavailable("catalog not loaded yet: no cloud's offers are known; is a worker running?")
    spec = _spec(request, snapshot)
    # The place is judged once for all requests of the same shape, while the catalog stays as it is.
    shape = (
        *(spec.model_name, spec.provider, spec.region, spec.zone, spec.instance_type, spec.gpu, spec.market),
        *(spec.max_hourly_cost, spec.fallback.model_dump_json()),
    )
    places: _Places | None = snapshot.verdicts.get(shape)
    if places is None:
        _check_names(spec, snapshot)
        fitting = _fitting(spec, snapshot)
        places = _Places(tuple({offer.backend: None for offer in fitting}), all(offer.sandbox for offer in fitting))
        if len(snapshot.verdicts) < _VERDICTS:
            snapshot.verdicts[shape] = places
    args = _check_engine(request, places, snapshot)
    return Verdict(spec.model_copy(update={"engine_args": args}), places.sandbox)


@dataclass(frozen=True, slots=True)
class _Places:
    """What is remembered of the offers that a launch may try, of which there can be tens of thousands."""

    backends: tuple[str, ...]  # best first
    sandbox: bool


def _spec(request: LaunchRequest, snapshot: Snapshot) -> LaunchSpec:
    model = snapshot.models.get(request.model_name)
    if model is None:
        raise _unknown("model_name", f"no model {request.model_name!r} in the catalog", list(snapshot.models))
    return LaunchSpec(
        model_name=request.model_name,
        provider=request.provider,
        region=request.region,
        zone=request.zone,
        instance_type=request.instance_type,
        gpu=request.gpu,
        market=request.market,
        fallback=request.fallback,
        max_hourly_cost=request.max_hourly_cost,
        vram_required_gb=model.vram_required_gb,
        deployment=request.deployment,
        engine=request.engine,
        engine_command=request.engine_command,
        env=request.env,
        deadlines=request.deadlines,
        max_attempts=request.max_attempts,
        tags=request.tags,
        replace_lost=request.replace_lost,
        max_life_seconds=request.max_life_seconds,
        idle_shutdown_seconds=request.idle_shutdown_seconds,
    )


def _check_names(spec: LaunchSpec, snapshot: Snapshot) -> None:
    """Every name must exist somewhere; where it is sold is the planner's question."""
    offers = snapshot.offers
    clouds = names([offer.cloud for offer in offers])
    if spec.provider is not None and spec.provider not in clouds:
        raise _unknown("provider", f"no provider {spec.provider!r}", clouds)
    for cloud in spec.fallback.clouds if isinstance(spec.fallback.clouds, list) else ():
        if cloud not in clouds:
            raise _unknown("fallback.clouds", f"no provider {cloud!r}", clouds)
    everywhere = names([offer.region for offer in offers])
    for region in spec.fallback.regions if isinstance(spec.fallback.regions, list) else ():
        if region not in everywhere:
            raise _unknown("fallback.regions", f"no region {region!r}", everywhere)

    home = [offer for offer in offers if spec.provider in (None, offer.cloud)]
    seller = spec.provider or "any provider"
    here = home
    if spec.region is not None:
        here = [offer for offer in home if offer.region == spec.region]
        if not here:
            raise _unknown("region", f"{seller} has no region {spec.region!r}", names([item.region for item in home]))
    if spec.zone is not None and not any(offer.zone == spec.zone for offer in here):
        zones = names([offer.zone for offer in here])
        raise _unknown("zone", f"{spec.region} has no zone {spec.zone!r}", zones)
    if spec.instance_type is not None:
        _check_instance_type(spec, seller, home, here)
    if spec.gpu is not None:
        typed = [offer for offer in home if spec.instance_type in (None, offer.instance_type)]
        gpus = names([offer.gpu for offer in typed])
        if spec.gpu.lower() not in {gpu.lower() for gpu in gpus}:
            where = spec.instance_type or seller
            raise _unknown("gpu", f"{where} has no GPU {spec.gpu!r}", gpus)


def _check_instance_type(spec: LaunchSpec, seller: str, home: list[Offer], here: list[Offer]) -> None:
    if any(offer.instance_type == spec.instance_type for offer in here):
        return
    elsewhere = names([offer.region for offer in home if offer.instance_type == spec.instance_type])
    types_here = names([offer.instance_type for offer in here])
    if not elsewhere:
        raise _unknown("instance_type", f"{seller} has no instance type {spec.instance_type!r}", types_here)
    allowed = spec.fallback.regions
    if allowed == "any" or any(region in allowed for region in elsewhere):
        return
    raise _unknown(
        "instance_type",
        f"{spec.instance_type} is not sold in {spec.region}; it is in {', '.join(elsewhere)}",
        types_here,
    )


def _fitting(spec: LaunchSpec, snapshot: Snapshot) -> list[Offer]:
    """The offers that the launch may try, best first; a problem that says what was nearest if there are none."""
    planned = plan(spec, snapshot.offers, [], [], utcnow())
    if planned.offers:
        return planned.offers
    rank = max(_NEARNESS[item.reason] for item in planned.excluded)
    nearest = [item for item in planned.excluded if _NEARNESS[item.reason] == rank]
    match nearest[0].reason:
        case Reason.TOO_SMALL:
            raise _too_small(spec, nearest, snapshot)
        case Reason.PRICE:
            cheapest = min(nearest, key=lambda item: (item.offer.hourly_price, item.offer.key)).offer
            raise refused_field(
                "max_hourly_cost",
                f"nothing within ${spec.max_hourly_cost}/h; the cheapest is ${_money(cheapest)}/h: {_place(cheapest)}",
                [_money(cheapest)],
            )
        case Reason.MARKET:
            market = nearest[0].offer.market.value
            raise refused_field("use_spot", f"{nearest[0].text}; it is sold {market} only", ["false", "true"])
        case reason:
            # The names exist, but not together.
            raise refused_field(_FIELD[reason], nearest[0].text, names([_value(item, reason) for item in nearest]))


_FIELD: Final = {
    Reason.PROVIDER: "provider",
    Reason.REGION: "region",
    Reason.ZONE: "zone",
    Reason.INSTANCE_TYPE: "instance_type",
    Reason.GPU: "gpu",
}


def _value(item: Exclusion, reason: Reason) -> str | None:
    offer = item.offer
    return {
        Reason.PROVIDER: offer.cloud,
        Reason.REGION: offer.region,
        Reason.ZONE: offer.zone,
        Reason.INSTANCE_TYPE: offer.instance_type,
        Reason.GPU: offer.gpu,
    }[reason]


def _too_small(spec: LaunchSpec, nearest: Sequence[Exclusion], snapshot: Snapshot) -> ProblemError:
    biggest = max(nearest, key=lambda item: (item.offer.total_gpu_memory_gb, item.offer.key)).offer
    need = spec.vram_required_gb
    enough = names(
        [
            offer.instance_type
            for offer in snapshot.offers
            if offer.total_gpu_memory_gb >= need and spec.provider in (None, offer.cloud)
        ]
    )
    field = "instance_type" if spec.instance_type else "gpu" if spec.gpu else "model_name"
    what = (
        biggest.instance_type if spec.instance_type else f"the biggest that fits the request ({biggest.instance_type})"
    )
    return refused_field(
        field,
        f"{spec.model_name} needs {need:g} GB of GPU memory, {what} has {biggest.total_gpu_memory_gb:g} GB",
        enough[:_SHOWN],
    )


def _check_engine(request: LaunchRequest, places: _Places, snapshot: Snapshot) -> list[str]:
    """The engine's canonical arguments, checked against its allow-list."""
    from skyfleet.engines.arguments import EngineArgumentError
    from skyfleet.engines.registry import ENGINES

    backends = [snapshot.backends[name] for name in places.backends]
    # A worker of another version may know engines that this API does not.
    runnable = list(dict.fromkeys(item for backend in backends for item in backend.engines if item in ENGINES))
    name = request.engine
    if name is not None and name not in runnable:
        if name not in ENGINES:
            raise refused_field("engine", f"no engine {name!r}", runnable)
        reason = f"{name} does not run on {', '.join(backend.name for backend in backends)}"
        if ENGINES[name].needs_gpu and all(backend.sandbox for backend in backends):
            reason = f"{name} needs a GPU, and the sandbox has no GPU"
        raise refused_field("engine", reason, runnable)
    if name is None:
        if not runnable:
            return []
        name = runnable[0]
    engine = ENGINES[name]
    try:
        args = engine.normalise_args(request.engine_args)
        engine.validate_args(args)
    except EngineArgumentError as error:
        raise refused_field("engine_args", f"{error.argument} {error.reason}", error.accepted or None) from None
    try:
        engine.validate_command(request.engine_command)
    except EngineArgumentError as error:
        raise refused_field("engine_command", f"{error.argument} {error.reason}", error.accepted or None) from None
    return args


def _unknown(field: str, message: str, exist: Sequence[str]) -> ProblemError:
    shown = sorted(exist)[:_SHOWN]
    listed = ", ".join(shown[:20]) + (f" and {len(exist) - 20} more" if len(exist) > 20 else "")
    return refused_field(field, f"{message}; there are: {listed}" if shown else f"{message}; there are none", shown)


def _money(offer: Offer) -> str:
    return f"{offer.hourly_price.normalize():f}"


def _place(offer: Offer) -> str:
    return f"{offer.cloud} {offer.region} {offer.instance_type} {offer.market.value}"
