"""The planner: request + offers + capacity memory → ordered offers, with a reason for each that is left out.

A pure function of its arguments; equal arguments give equal plans, whatever the order of the offers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.offers import OWN_CLUSTERS, Offer
from skyfleet.domain.states import Market, MarketPolicy


class Refusal(BaseModel):
    """A place that refused, remembered until `until` for all launches (or for one launch, with no end).

    What it covers follows from `scope`: see `covers`.
    """

    model_config = ConfigDict(frozen=True)

    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu: str | None = None
    gpu_count: int = 0
    market: Market
    kind: ErrorKind
    scope: ErrorScope
    at: datetime
    until: datetime | None = None
    message: str = ""

    def covers(self, offer: Offer) -> bool:
        """Whether the refusal speaks of this offer too.

        Capacity, timeouts and the like are about one instance type in one market. A quota is shared by all types
        with the same GPU (AWS, GCP and Azure count it by family). Credentials and configuration are about the
        place itself, whatever is bought there. On a cluster of one's own the types are parts of the same nodes: where
        so many GPUs were not free, more are not either.
        """
        if self.scope is ErrorScope.ACCOUNT:
            return True
        if offer.cloud != self.cloud:
            return False
        if self.scope in (ErrorScope.REGION, ErrorScope.ZONE) and offer.region != self.region:
            return False
        # A refusal without a zone came from an offer for the whole region: it speaks of all zones there.
        if self.scope is ErrorScope.ZONE and self.zone is not None and offer.zone != self.zone:
            return False
        if self.kind in (ErrorKind.AUTH, ErrorKind.CONFIG):
            return True
        if offer.market is not self.market:
            return False
        same_type = offer.instance_type == self.instance_type
        if self.kind is ErrorKind.QUOTA:
            return same_type or (self.gpu is not None and offer.gpu == self.gpu)
        if self.kind is ErrorKind.CAPACITY and self.cloud in OWN_CLUSTERS and self.gpu_count:
            return offer.gpu == self.gpu and offer.gpu_count >= self.gpu_count
        return same_type


#: How long a refusal keeps other launches away, in seconds. Capacity: Karpenter's 3 minutes. A quota or a
#: permission changes when a person acts, so it is looked at again after longer. Engine failures are the
#: launch's own and never shared.
MEMORY_SECONDS: dict[ErrorKind, float] = {
    ErrorKind.CAPACITY: 180.0,
    ErrorKind.QUOTA: 600.0,
    ErrorKind.AUTH: 300.0,
    ErrorKind.CONFIG: 0.0,
    ErrorKind.TRANSIENT: 60.0,
    ErrorKind.TIMEOUT: 180.0,
    ErrorKind.PREEMPTED: 120.0,
    ErrorKind.ENGINE: 0.0,
    ErrorKind.UNKNOWN: 60.0,
}


def memory_until(kind: ErrorKind, now: datetime) -> datetime | None:
    """Until when a refusal of this kind is remembered for other launches; None if it is not."""
    seconds = MEMORY_SECONDS[kind]
    return now + timedelta(seconds=seconds) if seconds else None


class Reason(StrEnum):
    """Why an offer was left out."""

    PROVIDER = "provider"
    REGION = "region"
    ZONE = "zone"
    INSTANCE_TYPE = "instance_type"
    GPU = "gpu"
    MARKET = "market"
    TOO_SMALL = "gpu_memory"
    PRICE = "price"
    TRIED = "tried"
    REFUSED = "refused_recently"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An offer that was left out, and why, in words. One is made for nearly every offer there is."""

    offer: Offer
    reason: Reason
    text: str


class Plan(BaseModel):
    """Offers in the order in which to try them, and those left out.

    `last_resort` is true when every offer left was refused to somebody a moment ago: the one whose refusal ends
    first is then offered all the same, since a person who asks for one place is not helped by silence.
    """

    offers: list[Offer]
    excluded: list[Exclusion]
    last_resort: bool = False

    def summary(self) -> dict[str, int]:
        """How many offers were left out for each reason."""
        return dict(sorted(Counter(item.reason.value for item in self.excluded).items()))


def plan(
    spec: LaunchSpec,
    offers: list[Offer],
    refusals: list[Refusal],
    tried: list[Refusal],
    now: datetime,
) -> Plan:
    """Order the offers that `spec` allows.

    `refusals` is the memory shared by all launches (entries past their `until` are ignored), `tried` what this
    launch met itself (never forgotten within the launch). Order: preferred cloud and region as named, then spot
    before on-demand if the policy is `spot_then_on_demand`, then price, then key.
    """
    first_instance_types = _named_types(spec, offers)
    kept: list[Offer] = []
    excluded: list[Exclusion] = []
    held_back: list[tuple[datetime, Offer]] = []
    live = [item for item in refusals if item.until is None or item.until > now]

    for offer in sorted(offers, key=lambda item: item.key):
        verdict = _outside_request(spec, offer, first_instance_types)
        if verdict is not None:
            excluded.append(Exclusion(offer=offer, reason=verdict[0], text=verdict[1]))
            continue
        own = next((item for item in tried if item.covers(offer)), None)
        if own is not None:
            excluded.append(
                Exclusion(offer=offer, reason=Reason.TRIED, text=f"tried in this launch: {own.kind} ({own.scope})")
            )
            continue
        covering = [item for item in live if item.covers(offer)]
        if covering:
            worst = max(covering, key=lambda item: (item.until or datetime.max.replace(tzinfo=now.tzinfo), item.at))
            text = f"refused {_ago(now, worst.at)} ago: {worst.kind} in this {worst.scope}"
            if worst.until is not None:
                text += f", tried again from {worst.until:%H:%M:%S} UTC"
                if worst.kind not in (ErrorKind.AUTH, ErrorKind.CONFIG):
                    held_back.append((worst.until, offer))
            excluded.append(Exclusion(offer=offer, reason=Reason.REFUSED, text=text))
            continue
        kept.append(offer)

    kept.sort(key=lambda item: _preference(spec, item))
    if kept or not held_back:
        return Plan(offers=kept, excluded=excluded)
    # Nothing but places that refused just now: offer the one whose refusal ends first.
    _, last = min(held_back, key=lambda pair: (pair[0], _preference(spec, pair[1])))
    return Plan(
        offers=[last],
        excluded=[item for item in excluded if item.offer.key != last.key],
        last_resort=True,
    )


def _named_types(spec: LaunchSpec, offers: list[Offer]) -> tuple[str | None, int]:
    """GPU name and count of the instance type that the person named; another cloud is searched for the same GPU."""
    for offer in sorted(offers, key=lambda item: item.key):
        if offer.instance_type == spec.instance_type and (spec.provider in (None, offer.cloud)):
            return offer.gpu, offer.gpu_count
    return None, 0


def _outside_request(spec: LaunchSpec, offer: Offer, named_gpu: tuple[str | None, int]) -> tuple[Reason, str] | None:
    """Why the offer is not what was asked for; None if it is."""
    fallback = spec.fallback
    home_cloud = spec.provider is None or offer.cloud == spec.provider
    if not home_cloud and fallback.clouds != "any" and offer.cloud not in fallback.clouds:
        return Reason.PROVIDER, f"provider {spec.provider} was asked for, and fall-back to {offer.cloud} is not allowed"
    # Region names differ between clouds: a pinned region binds only in the cloud it was named for.
    if home_cloud and spec.region is not None and offer.region != spec.region:
        if fallback.regions != "any" and offer.region not in fallback.regions:
            return Reason.REGION, f"region {spec.region} was asked for, and fall-back to {offer.region} is not allowed"
    elif not home_cloud and fallback.regions not in ("any", []) and offer.region not in fallback.regions:
        return Reason.REGION, f"{offer.region} is not among the regions allowed for fall-back"
    if spec.zone is not None and home_cloud and offer.region == spec.region and offer.zone != spec.zone:
        return Reason.ZONE, f"zone {spec.zone} was asked for"
    if spec.instance_type is not None:
        if home_cloud and offer.instance_type != spec.instance_type:
            return Reason.INSTANCE_TYPE, f"instance type {spec.instance_type} was asked for"
        if not home_cloud and (offer.gpu, offer.gpu_count) != named_gpu:
            wanted = f"{named_gpu[1]}x {named_gpu[0]}"
            return Reason.GPU, f"{spec.instance_type} has {wanted}; this type has {offer.gpu_count}x {offer.gpu}"
    if spec.gpu is not None and (offer.gpu or "").lower() != spec.gpu.lower():
        return Reason.GPU, f"GPU {spec.gpu} was asked for; this type has {offer.gpu or 'none'}"
    if offer.market is Market.SPOT and spec.market is MarketPolicy.ON_DEMAND:
        return Reason.MARKET, "on-demand was asked for"
    if offer.market is Market.ON_DEMAND and spec.market is MarketPolicy.SPOT:
        return Reason.MARKET, "spot was asked for, and fall-back to on-demand is not allowed"
    if spec.vram_required_gb and offer.total_gpu_memory_gb < spec.vram_required_gb:
        return (
            Reason.TOO_SMALL,
            f"{spec.model_name} needs {spec.vram_required_gb:g} GB of GPU memory, "
            f"{offer.instance_type} has {offer.total_gpu_memory_gb:g} GB",
        )
    if spec.max_hourly_cost is not None and offer.hourly_price > spec.max_hourly_cost:
        return Reason.PRICE, f"${offer.hourly_price}/h is over the limit of ${spec.max_hourly_cost}/h"
    return None


def _preference(spec: LaunchSpec, offer: Offer) -> tuple[int, int, int, Decimal, str]:
    """Sort key. Spot outranks place: a person who chose spot-then-on-demand wants every spot place tried first."""
    market = 0 if offer.market is Market.SPOT or spec.market is not MarketPolicy.SPOT_THEN_ON_DEMAND else 1
    cloud = 0 if offer.cloud == spec.provider else 1 + _rank(spec.fallback.clouds, offer.cloud)
    region = 0 if cloud == 0 and offer.region == spec.region else 1 + _rank(spec.fallback.regions, offer.region)
    return market, cloud, region, offer.hourly_price, offer.key


def _rank(names: str | list[str], name: str) -> int:
    return names.index(name) if isinstance(names, list) and name in names else 0


def _ago(now: datetime, then: datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
