"""What every `Cloud` keeps, whichever it is. `conftest.py` lists the implementations."""

from __future__ import annotations

import asyncio
from datetime import UTC

import pytest

from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudInstance, InstanceState, Offer
from tests.contract.under_test import CloudUnderTest
from tests.waiting import eventually


async def first_offer(under: CloudUnderTest) -> Offer:
    return min(await under.cloud.offers(), key=lambda offer: offer.hourly_price)


async def come_up(under: CloudUnderTest, name: str) -> list[InstanceState]:
    async with asyncio.timeout(under.patience_s):
        return [step.state async for step in under.cloud.progress(name)]


async def gone(under: CloudUnderTest, name: str) -> bool:
    machine = await under.cloud.get(name)
    return machine is None or machine.state is InstanceState.TERMINATED


async def wait_gone(under: CloudUnderTest, name: str) -> None:
    await eventually(lambda: gone(under, name), timeout_s=under.patience_s, what=f"end of {name}")


async def test_offers_are_complete_and_unique(under_test: CloudUnderTest) -> None:
    offers = await under_test.cloud.offers()
    assert offers
    assert len({offer.key for offer in offers}) == len(offers)
    for offer in offers:
        assert offer.backend == under_test.cloud.backend
        assert offer.hourly_price >= 0  # a cluster of one's own costs nothing
        assert offer.vcpus > 0
        assert offer.memory_gb > 0
        assert (offer.gpu is None) == (offer.gpu_count == 0) == (offer.gpu_memory_gb == 0)
    assert under_test.cloud.engines


async def test_every_cloud_that_sells_is_enabled(under_test: CloudUnderTest) -> None:
    access = await under_test.cloud.access()
    enabled = {one.cloud for one in access if one.enabled}
    assert {offer.cloud for offer in await under_test.cloud.offers()} <= enabled
    assert len({one.cloud for one in access}) == len(access)
    assert all(one.reason for one in access if not one.enabled)


async def test_offers_are_the_callers_own(under_test: CloudUnderTest) -> None:
    offers = await under_test.cloud.offers()
    offers.clear()
    assert await under_test.cloud.offers()


async def test_a_machine_lives_from_create_to_terminate(under_test: CloudUnderTest) -> None:
    offer = await first_offer(under_test)
    made = await under_test.cloud.create(under_test.request(offer, "contract-life"))
    assert made.state in (InstanceState.PENDING, InstanceState.RUNNING)
    assert (made.cloud, made.region) == (offer.cloud, offer.region)
    assert offer.zone in (None, made.zone)
    assert (made.instance_type, made.market) == (offer.instance_type, offer.market)
    assert made.hourly_price == offer.hourly_price
    assert made.sandbox == offer.sandbox
    assert made.created_at.tzinfo is not None
    assert made.created_at.utcoffset() == UTC.utcoffset(None)
    states = await come_up(under_test, "contract-life")
    assert states[-1] is InstanceState.RUNNING
    running = await under_test.cloud.get("contract-life")
    assert running is not None
    assert running.state is InstanceState.RUNNING
    assert running.running_at is not None
    assert running.running_at >= running.created_at
    await under_test.cloud.terminate("contract-life")
    await wait_gone(under_test, "contract-life")
    ended = await under_test.cloud.get("contract-life")
    if ended is not None:
        assert ended.terminated_at is not None
        assert ended.termination_reason == "requested"


async def test_progress_of_a_running_machine_ends_at_once(under_test: CloudUnderTest) -> None:
    await under_test.cloud.create(under_test.request(await first_offer(under_test), "contract-late"))
    await come_up(under_test, "contract-late")
    assert await come_up(under_test, "contract-late") == [InstanceState.RUNNING]


async def test_create_is_idempotent_by_name(under_test: CloudUnderTest) -> None:
    request = under_test.request(await first_offer(under_test), "contract-once")
    many = await asyncio.gather(*(under_test.cloud.create(request) for _ in range(5)))
    await come_up(under_test, "contract-once")
    many.append(await under_test.cloud.create(request))
    assert len({machine.id for machine in many}) == 1
    assert [machine.name for machine in await under_test.cloud.list(under_test.owner)] == ["contract-once"]


async def test_a_machine_is_adopted_by_name(under_test: CloudUnderTest) -> None:
    made = await under_test.cloud.create(under_test.request(await first_offer(under_test), "contract-adopt"))
    found = await under_test.cloud.get("contract-adopt")
    assert found is not None
    assert (found.id, found.owner) == (made.id, under_test.owner)


async def test_another_offer_under_the_same_name_is_refused(under_test: CloudUnderTest) -> None:
    offers = await under_test.cloud.offers()
    await under_test.cloud.create(under_test.request(offers[0], "contract-clash"))
    with pytest.raises(CloudError):
        await under_test.cloud.create(under_test.request(offers[1], "contract-clash"))
    found = await under_test.cloud.get("contract-clash")
    assert found is not None
    assert found.instance_type == offers[0].instance_type


async def test_list_is_by_owner_and_without_the_ended(under_test: CloudUnderTest) -> None:
    offer = await first_offer(under_test)
    for name in ("contract-list-1", "contract-list-2", "contract-list-3"):
        await under_test.cloud.create(under_test.request(offer, name))
    await under_test.cloud.terminate("contract-list-2")
    await wait_gone(under_test, "contract-list-2")
    listed: list[CloudInstance] = await under_test.cloud.list(under_test.owner)
    assert sorted(machine.name for machine in listed) == ["contract-list-1", "contract-list-3"]
    assert {machine.owner for machine in listed} == {under_test.owner}
    assert await under_test.cloud.list("somebody-else") == []


async def test_terminate_is_idempotent_and_final(under_test: CloudUnderTest) -> None:
    request = under_test.request(await first_offer(under_test), "contract-end")
    await under_test.cloud.create(request)
    await under_test.cloud.terminate("contract-end")
    await under_test.cloud.terminate("contract-end")
    with pytest.raises(CloudError):
        await under_test.cloud.create(request)
    await wait_gone(under_test, "contract-end")
    await under_test.cloud.terminate("contract-end")
    with pytest.raises(CloudError):
        await under_test.cloud.create(request)
    assert await gone(under_test, "contract-end")
    assert await under_test.cloud.list(under_test.owner) == []


async def test_a_terminated_name_never_yields_a_machine(under_test: CloudUnderTest) -> None:
    await under_test.cloud.terminate("contract-tomb")
    with pytest.raises(CloudError):
        await under_test.cloud.create(under_test.request(await first_offer(under_test), "contract-tomb"))
    assert await under_test.cloud.get("contract-tomb") is None


async def test_a_create_that_races_its_terminate_leaves_nothing(under_test: CloudUnderTest) -> None:
    request = under_test.request(await first_offer(under_test), "contract-race")
    await asyncio.gather(
        under_test.cloud.create(request),
        under_test.cloud.terminate("contract-race"),
        under_test.cloud.create(request),
        return_exceptions=True,
    )
    await wait_gone(under_test, "contract-race")
    assert await under_test.cloud.list(under_test.owner) == []


async def test_an_unknown_name_is_none(under_test: CloudUnderTest) -> None:
    assert await under_test.cloud.get("contract-unknown") is None


async def test_progress_raises_when_the_machine_will_never_run(under_test: CloudUnderTest) -> None:
    await under_test.cloud.create(under_test.request(await first_offer(under_test), "contract-never"))
    await under_test.cloud.terminate("contract-never")
    await wait_gone(under_test, "contract-never")
    with pytest.raises(CloudError):
        await come_up(under_test, "contract-never")
    with pytest.raises(CloudError):
        await come_up(under_test, "contract-unknown")


async def test_no_capacity_is_a_typed_error_in_the_clouds_words(under_test: CloudUnderTest) -> None:
    offer = await first_offer(under_test)
    await under_test.exhaust(offer)
    with pytest.raises(CloudError) as refused:
        await under_test.cloud.create(under_test.request(offer, "contract-full"))
    assert refused.value.cloud == offer.cloud
    assert refused.value.raw
    assert refused.value.code
    assert await under_test.cloud.get("contract-full") is None


async def test_what_is_not_sold_is_refused(under_test: CloudUnderTest) -> None:
    offer = (await first_offer(under_test)).model_copy(update={"instance_type": "no-such-type"})
    with pytest.raises(CloudError):
        await under_test.cloud.create(under_test.request(offer, "contract-unsold"))


async def test_no_answer_is_unreachable(under_test: CloudUnderTest) -> None:
    request = under_test.request(await first_offer(under_test), "contract-away")
    away = under_test.unreachable()
    try:
        for ask in (
            away.offers(),
            away.access(),
            away.create(request),
            away.get("a"),
            away.list("a"),
            away.terminate("a"),
        ):
            with pytest.raises(CloudUnreachable):
                await ask
        with pytest.raises(CloudUnreachable):
            [step async for step in away.progress("a")]
    finally:
        await away.aclose()
