"""What only the cloud knows, and what only the database knows: the sweep ends both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from skyfleet.clouds.local.client import LocalCloud
from skyfleet.domain.states import Market
from skyfleet.settings import Settings
from tests.localcloud.harness import request_for
from tests.stack import RunningStack, running_stack
from tests.waiting import eventually


@pytest.fixture(scope="module")
async def sweeping(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """A stack that compares all the time."""
    settings = {"SKYFLEET_COMPARE_INTERVAL_SECONDS": "0.5"}
    async with running_stack(tmp_path_factory.mktemp("strays"), settings=settings) as stack:
        yield stack


async def _told(stack: RunningStack, kind: str) -> list[str]:
    """What notifications of a kind are about."""
    return [one.subject for one in (await stack.client.notifications(kind=kind)).notifications]


async def test_a_machine_that_nobody_wrote_down_is_ended(sweeping: RunningStack) -> None:
    kind = sweeping.kind()
    cloud = LocalCloud(sweeping.endpoints.local_cloud or "")
    try:
        offer = next(offer for offer in await cloud.offers() if offer.instance_type == kind.aws)
        owner = Settings().owner
        await cloud.create(request_for(offer, "sf-nobodys-1", owner=owner))
        await cloud.create(request_for(offer, "somebody-elses", owner="another-control-plane"))

        async def ended() -> bool:
            machine = await cloud.get("sf-nobodys-1")
            assert machine is not None
            return machine.termination_reason == "requested"

        await eventually(ended, timeout_s=30, what="end of the stray")
        other = await cloud.get("somebody-elses")
        assert other is not None
        assert other.termination_reason is None
    finally:
        await cloud.aclose()

    async def audited() -> bool:
        return bool((await sweeping.client.audit(action="machine.gone", subject="sf-nobodys-1")).entries)

    await eventually(audited, what="the audit row of its end")
    assert await _told(sweeping, "orphan_found") == ["sf-nobodys-1"]  # once, though it was found by several sweeps


async def test_a_node_whose_machine_is_gone_ends(sweeping: RunningStack) -> None:
    kind = sweeping.kind()
    job_id = await sweeping.launch(kind.aws, use_spot=True)
    view = await sweeping.ready(job_id)
    [machine] = await sweeping.ledger(job_id)
    assert machine["market"] == Market.SPOT
    await sweeping.bench.preempt(machine["name"], notice_s=0)
    await sweeping.terminated(job_id)
    node = await sweeping.client.node(view.node_id or "")
    assert "the cloud has no such machine" in node.status_message
    assert "no other: it was launched by hand" not in node.status_message
    events = (await sweeping.client.node_events(node.node_id)).events
    assert [event.data["signals"] for event in events if event.message.startswith("dead")] == [
        {"heartbeat": "no", "engine": "no", "cloud": "no"}
    ]
    assert await sweeping.living(job_id) == []
    assert await _told(sweeping, "node_lost") == [view.node_id]
