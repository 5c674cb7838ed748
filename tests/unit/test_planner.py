"""The planner: what it orders, what it leaves out, and what it must never do."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.launches import Fallback, LaunchSpec
from skyfleet.domain.offers import Offer
from skyfleet.domain.planner import Reason, Refusal, memory_until, plan
from skyfleet.domain.states import Market, MarketPolicy

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

TYPES = {
    "aws": {"g4dn.xlarge": ("T4", 1, 16.0, "0.526"), "g5.xlarge": ("A10G", 1, 24.0, "1.006")},
    "gcp": {"a2-highgpu-1g": ("A100", 1, 40.0, "3.673"), "g2-standard-4": ("A10G", 1, 24.0, "0.9")},
}
REGIONS = {
    "aws": {"us-east-1": ["a", "b"], "us-west-2": ["a", "b"], "eu-west-1": ["a"]},
    "gcp": {"us-central1": ["-a"], "europe-west1": ["-b"]},
}


def catalog() -> list[Offer]:
    """Both clouds, all regions and zones, both markets; spot at 30 %."""
    return [
        Offer(
            backend="local",
            cloud=cloud,
            region=region,
            zone=region + zone,
            instance_type=name,
            market=market,
            hourly_price=Decimal(price) * (Decimal("0.3") if market is Market.SPOT else 1),
            gpu=gpu,
            gpu_count=count,
            gpu_memory_gb=memory,
        )
        for cloud, regions in REGIONS.items()
        for region, zones in regions.items()
        for zone in zones
        for name, (gpu, count, memory, price) in TYPES[cloud].items()
        for market in Market
    ]


def refusal(offer: Offer, kind: ErrorKind, scope: ErrorScope, *, until: datetime | None = None) -> Refusal:
    """A refusal of this offer."""
    return Refusal(
        cloud=offer.cloud,
        region=offer.region,
        zone=offer.zone,
        instance_type=offer.instance_type,
        gpu=offer.gpu,
        gpu_count=offer.gpu_count,
        market=offer.market,
        kind=kind,
        scope=scope,
        at=NOW - timedelta(seconds=10),
        until=until,
    )


def spec(**fields: Any) -> LaunchSpec:
    """A request for a g5.xlarge in us-east-1 unless told otherwise."""
    return LaunchSpec(
        **{
            "model_name": "m",
            "provider": "aws",
            "region": "us-east-1",
            "instance_type": "g5.xlarge",
            "market": MarketPolicy.SPOT,
            **fields,
        }
    )


def keys(result: Any) -> list[str]:
    """The planned offers, by key."""
    return [offer.key for offer in result.offers]


def test_a_pinned_request_gets_the_zones_of_its_region_and_nothing_else() -> None:
    """Zones are always tried; other regions, clouds and markets only if the policy says so."""
    assert keys(plan(spec(), catalog(), [], [], NOW)) == [
        "aws/us-east-1/us-east-1a/g5.xlarge/spot",
        "aws/us-east-1/us-east-1b/g5.xlarge/spot",
    ]


def test_fallback_goes_zone_region_cloud_then_on_demand() -> None:
    """Every spot place comes before any on-demand one, the place asked for before others."""
    wish = spec(
        market=MarketPolicy.SPOT_THEN_ON_DEMAND, fallback=Fallback(regions=["us-west-2"], clouds="any", on_demand=True)
    )
    found = keys(plan(wish, catalog(), [], [], NOW))
    assert found[:4] == [
        "aws/us-east-1/us-east-1a/g5.xlarge/spot",
        "aws/us-east-1/us-east-1b/g5.xlarge/spot",
        "aws/us-west-2/us-west-2a/g5.xlarge/spot",
        "aws/us-west-2/us-west-2b/g5.xlarge/spot",
    ]
    assert not any("eu-west-1" in key for key in found)
    markets = [key.rsplit("/", 1)[1] for key in found]
    assert markets == sorted(markets, reverse=True)  # spot… on_demand…
    # In another cloud the type is unknown: the same GPU is what counts. Region names bind only where they exist.
    assert not any(key.startswith("gcp") for key in found)
    anywhere = wish.model_copy(update={"fallback": Fallback(regions="any", clouds=["gcp"], on_demand=True)})
    assert {key.split("/")[3] for key in keys(plan(anywhere, catalog(), [], [], NOW)) if key.startswith("gcp")} == {
        "g2-standard-4"
    }


@pytest.mark.parametrize(
    ("kind", "scope", "left"),
    [
        (ErrorKind.CAPACITY, ErrorScope.ZONE, {"us-east-1b", "us-west-2a", "us-west-2b", "eu-west-1a"}),
        (ErrorKind.CAPACITY, ErrorScope.REGION, {"us-west-2a", "us-west-2b", "eu-west-1a"}),
        (ErrorKind.QUOTA, ErrorScope.REGION, {"us-west-2a", "us-west-2b", "eu-west-1a"}),
        (ErrorKind.AUTH, ErrorScope.CLOUD, set()),
        (ErrorKind.ENGINE, ErrorScope.ACCOUNT, set()),
    ],
)
def test_what_a_launch_met_rules_out_the_scope_of_its_error(kind: ErrorKind, scope: ErrorScope, left: set[str]) -> None:
    """An error in one zone speaks of exactly its scope."""
    wish = spec(fallback=Fallback(regions="any"))
    first = plan(wish, catalog(), [], [], NOW).offers[0]
    after = plan(wish, catalog(), [], [refusal(first, kind, scope)], NOW)
    assert {offer.zone for offer in after.offers} == left
    assert all(item.reason is not Reason.TRIED or "tried in this launch" in item.text for item in after.excluded)


def test_an_auth_error_of_one_cloud_leaves_the_others() -> None:
    """Permission errors stop the tour of a cloud's regions, not the way to another cloud that is allowed."""
    wish = spec(fallback=Fallback(regions="any", clouds="any"))
    first = plan(wish, catalog(), [], [], NOW).offers[0]
    after = plan(wish, catalog(), [], [refusal(first, ErrorKind.AUTH, ErrorScope.CLOUD)], NOW)
    assert {offer.cloud for offer in after.offers} == {"gcp"}


def test_a_quota_is_shared_by_the_types_of_one_gpu_but_not_by_markets() -> None:
    """A quota on A10G spot machines says nothing of on-demand ones."""
    offers = catalog()
    spot = next(item for item in offers if item.key == "aws/us-east-1/us-east-1a/g5.xlarge/spot")
    quota = refusal(spot, ErrorKind.QUOTA, ErrorScope.REGION)
    bigger = spot.model_copy(update={"instance_type": "g5.2xlarge"})
    assert quota.covers(bigger)
    assert not quota.covers(bigger.model_copy(update={"market": Market.ON_DEMAND}))
    assert not quota.covers(bigger.model_copy(update={"gpu": "T4"}))


def test_memory_steers_other_launches_and_ends() -> None:
    """A remembered refusal is left out with its reason until it ends."""
    wish = spec()
    first = plan(wish, catalog(), [], [], NOW).offers[0]
    until = memory_until(ErrorKind.CAPACITY, NOW)
    memory = [refusal(first, ErrorKind.CAPACITY, ErrorScope.ZONE, until=until)]
    steered = plan(wish, catalog(), memory, [], NOW)
    assert keys(steered) == ["aws/us-east-1/us-east-1b/g5.xlarge/spot"]
    assert not steered.last_resort
    why = next(item for item in steered.excluded if item.offer == first)
    assert why.reason is Reason.REFUSED
    assert "10 s ago" in why.text
    assert until is not None
    assert keys(plan(wish, catalog(), memory, [], until)) == keys(plan(wish, catalog(), [], [], NOW))


def test_the_last_resort_is_one_place_and_never_one_that_this_launch_tried() -> None:
    """When all places refused lately the one whose refusal ends first is tried; what we met ourselves is not."""
    wish = spec()
    both = plan(wish, catalog(), [], [], NOW).offers
    memory = [
        refusal(both[0], ErrorKind.CAPACITY, ErrorScope.ZONE, until=NOW + timedelta(seconds=90)),
        refusal(both[1], ErrorKind.CAPACITY, ErrorScope.ZONE, until=NOW + timedelta(seconds=30)),
    ]
    result = plan(wish, catalog(), memory, [], NOW)
    assert result.last_resort
    assert result.offers == [both[1]]
    own = [refusal(both[1], ErrorKind.CAPACITY, ErrorScope.ZONE)]
    assert plan(wish, catalog(), memory, own, NOW).offers == [both[0]]
    assert (
        plan(wish, catalog(), memory, [*own, refusal(both[0], ErrorKind.CAPACITY, ErrorScope.ZONE)], NOW).offers == []
    )


def test_too_small_and_too_dear_are_left_out_with_both_figures() -> None:
    """The reason names what was needed and what there is."""
    wish = spec(instance_type=None, vram_required_gb=20.0, max_hourly_cost=Decimal("0.5"), market=MarketPolicy.SPOT)
    result = plan(wish, catalog(), [], [], NOW)
    assert {offer.instance_type for offer in result.offers} == {"g5.xlarge"}
    small = next(item for item in result.excluded if item.reason is Reason.TOO_SMALL)
    assert "20 GB" in small.text
    assert "16 GB" in small.text
    dear = plan(wish.model_copy(update={"max_hourly_cost": Decimal("0.1")}), catalog(), [], [], NOW)
    assert dear.offers == []
    assert any("$0.1/h" in item.text for item in dear.excluded if item.reason is Reason.PRICE)


names = st.sampled_from
specs = st.builds(
    LaunchSpec,
    model_name=st.just("m"),
    provider=names([None, "aws", "gcp"]),
    region=names([None, "us-east-1", "us-central1"]),
    instance_type=names([None, "g5.xlarge", "a2-highgpu-1g"]),
    gpu=names([None, "A10G", "t4"]),
    market=names(list(MarketPolicy)),
    fallback=st.builds(
        Fallback,
        regions=st.one_of(st.just("any"), st.lists(names(["us-west-2", "europe-west1"]), max_size=2)),
        clouds=st.one_of(st.just("any"), st.lists(names(["aws", "gcp"]), max_size=2)),
        on_demand=st.booleans(),
    ),
    vram_required_gb=names([0.0, 20.0, 100.0]),
    max_hourly_cost=names([None, Decimal("0.4"), Decimal(2)]),
)
refusals = st.lists(
    st.builds(
        refusal,
        names(catalog()),
        names(list(ErrorKind)),
        names(list(ErrorScope)),
        until=st.integers(-300, 300).map(lambda s: NOW + timedelta(seconds=s)),
    ),
    max_size=4,
)


@given(specs, refusals, refusals, st.randoms(use_true_random=False))
def test_planning_is_deterministic_complete_and_honours_the_request(
    wish: LaunchSpec, memory: list[Refusal], tried: list[Refusal], dice: random.Random
) -> None:
    """Whatever is asked: each offer is either planned or left out for a reason, in an order of its own."""
    offers = catalog()
    shuffled = list(offers)
    dice.shuffle(shuffled)
    result = plan(wish, offers, memory, tried, NOW)
    assert result == plan(wish, shuffled, memory, tried, NOW)
    planned, left_out = set(keys(result)), {item.offer.key for item in result.excluded}
    assert planned.isdisjoint(left_out)
    assert all(item.text for item in result.excluded)
    if not result.last_resort:
        assert planned | left_out == {offer.key for offer in offers}
    for offer in result.offers:
        assert not any(item.covers(offer) for item in tried)
        assert wish.max_hourly_cost is None or offer.hourly_price <= wish.max_hourly_cost
        assert offer.total_gpu_memory_gb >= wish.vram_required_gb
        assert wish.market is not MarketPolicy.ON_DEMAND or offer.market is Market.ON_DEMAND
        assert wish.market is not MarketPolicy.SPOT or offer.market is Market.SPOT
        assert (
            wish.provider in (None, offer.cloud) or wish.fallback.clouds == "any" or offer.cloud in wish.fallback.clouds
        )
        if not result.last_resort:
            assert not any(item.covers(offer) and (item.until is None or item.until > NOW) for item in memory)
    assert len(result.offers) <= 1 or not result.last_resort


@pytest.mark.parametrize(("asked", "left"), [(2, ["1"]), (1, [])])
def test_where_so_many_gpus_of_one_s_own_were_not_free_more_are_not_either(asked: int, left: list[str]) -> None:
    """Their instance types are parts of the same nodes. Another cluster, or another GPU, is another matter."""
    parts = [
        Offer(
            backend="skypilot",
            cloud="slurm",
            region=cluster,
            zone="gpu",
            instance_type=f"{count}x{gpu}",
            market=Market.ON_DEMAND,
            hourly_price=Decimal(count),
            gpu=gpu,
            gpu_count=count,
            gpu_memory_gb=80,
        )
        for cluster in ("alpha", "beta")
        for gpu in ("H100", "L4")
        for count in (1, 2, 4)
    ]
    refused = next(offer for offer in parts if (offer.gpu, offer.gpu_count) == ("H100", asked))
    memory = [refusal(refused, ErrorKind.CAPACITY, ErrorScope.ZONE, until=NOW + timedelta(minutes=3))]
    request = LaunchSpec(model_name="m", market=MarketPolicy.ON_DEMAND)
    kept = plan(request, parts, memory, [], NOW).offers
    assert [f"{offer.gpu_count}" for offer in kept if (offer.region, offer.gpu) == ("alpha", "H100")] == left
    assert len([offer for offer in kept if (offer.region, offer.gpu) != ("alpha", "H100")]) == 9
