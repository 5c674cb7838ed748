"""The clouds of a stack that runs: checked when somebody asks, and what they sell."""

from __future__ import annotations

from tests.stack import RunningStack
from tests.waiting import eventually


async def test_a_check_that_is_asked_for_is_made_by_a_worker(stack: RunningStack) -> None:
    before = await stack.client.providers()
    assert {"aws", "azure", "gcp"} <= {one.cloud for one in before.providers}
    asked = await stack.client.refresh_providers()
    assert all(one.checked_at is not None and one.checked_at < asked.requested_at for one in before.providers)

    async def checked() -> bool:
        return all(
            one.checked_at is not None and one.checked_at >= asked.requested_at
            for one in (await stack.client.providers()).providers
        )

    await eventually(checked, timeout_s=30, what="the check")
    after = await stack.client.providers()
    assert all(one.enabled and one.sandbox and one.regions for one in after.providers)
    assert [one.name for one in after.backends] == ["local"]


async def test_offers_can_be_paged_through(stack: RunningStack) -> None:
    twenty = await stack.client.offers(limit=20)
    first = await stack.client.offers(limit=10)
    second = await stack.client.offers(limit=10, cursor=first.next)
    assert twenty.total == first.total == second.total > 20
    assert [*first.offers, *second.offers] == twenty.offers
    spot = next(one for one in twenty.offers if one.market == "spot")
    assert spot.spot_saving is not None
    assert 0 < spot.spot_saving < 1
