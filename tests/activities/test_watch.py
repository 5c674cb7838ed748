"""The fleet watch on a real database, with clouds, engines and agents that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import cast

import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.watch import FleetWatch
from skyfleet.clouds.base import Cloud
from skyfleet.db.repositories import AuditRepository, NodeRepository, WatchRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import LaunchRow, NodeRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudUnreachable
from skyfleet.domain.health import Condition, HealthPolicy
from skyfleet.domain.offers import CloudInstance, InstanceState
from skyfleet.domain.states import Market
from tests.waiting import eventually

BEAT_S = 1.0
#: A grace that a busy machine does not outlast while one node after the other is found silent.
POLICY = HealthPolicy(
    recover_seconds=0.3,
    grace_seconds=dict.fromkeys(Condition, 5.0) | {Condition.HEALTHY: 600.0, Condition.DEAD: 0.0},
)


@dataclass
class Fleet:
    """Machines, engines and agents: by name, those that are well. It is the cloud, the prober and the commands too."""

    database: Database
    machines: set[str] = field(default_factory=set)
    engines: set[str] = field(default_factory=set)
    agents: set[str] = field(default_factory=set)
    cloud_away: bool = False
    lists: int = 0
    replaced: list[m.ReplaceNode] = field(default_factory=list)
    ended: list[m.TerminateNode] = field(default_factory=list)
    drained: list[m.DrainNode] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    async def list(self, owner: str) -> list[CloudInstance]:
        """One call for all."""
        self.lists += 1
        if self.cloud_away:
            raise CloudUnreachable("503 Service Unavailable")
        return [instance(name) for name in sorted(self.machines)]

    async def get(self, name: str) -> CloudInstance | None:
        """One by name."""
        if self.cloud_away:
            raise CloudUnreachable("503 Service Unavailable")
        return instance(name) if name in self.machines else None

    async def answers(self, endpoint_url: str, engine: str | None) -> bool:
        """A poll."""
        return endpoint_url.removeprefix("http://") in self.engines

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode) -> bool:
        """Delivered."""
        self.ended.append(command)
        self.told.append(node.node_id)
        return True

    async def drain_node(self, node: m.NodeInput, command: m.DrainNode) -> bool:
        """Delivered."""
        self.drained.append(command)
        self.told.append(node.node_id)
        return True

    async def replace_node(self, node: m.NodeInput, command: m.ReplaceNode) -> bool:
        """Delivered."""
        self.replaced.append(command)
        self.told.append(node.node_id)
        return True

    async def beat(self) -> None:
        """Every agent that is well says so, until cancelled."""
        while True:
            async with self.database.transaction() as session:
                beat = text(
                    "UPDATE nodes SET last_heartbeat_at = clock_timestamp(), last_heartbeat = "
                    """'{"engine": {"healthy": true, "running": 0, "waiting": 0}}' WHERE id = ANY(:ids)"""
                )
                await session.execute(beat, {"ids": sorted(self.agents)})
            await asyncio.sleep(BEAT_S / 4)

    def lose(self, *names: str) -> None:
        """No agent and no engine of them answers any more."""
        self.agents -= set(names)
        self.engines -= set(names)

    async def node(self, name: str) -> NodeRow:
        """The node as it is written."""
        async with self.database.transaction() as session:
            found = await NodeRepository(session).get(name)
        assert found is not None
        return found

    async def becomes(self, name: str, condition: Condition) -> NodeRow:
        """The node once it is in that condition."""

        async def there() -> NodeRow | None:
            found = await self.node(name)
            return found if found.health == condition.value else None

        found = await eventually(there, timeout_s=60, what=f"{name} {condition.value}")
        assert found is not None
        return found

    async def audited(self, action: str) -> bool:
        """Whether that stands in the audit log."""
        async with self.database.transaction() as session:
            return bool(await AuditRepository(session).page(action=action))


def instance(name: str) -> CloudInstance:
    """A machine that runs."""
    return CloudInstance(
        name=name,
        id=f"i-{name}",
        backend="fake",
        cloud="aws",
        region="us-east-1",
        instance_type="g5.xlarge",
        market=Market.SPOT,
        state=InstanceState.RUNNING,
        hourly_price=Decimal("0.40"),
        owner="test",
        created_at=utcnow(),
    )


@asynccontextmanager
async def watching(fleet: Fleet) -> AsyncIterator[None]:
    """The watch runs."""
    watch = FleetWatch(
        fleet.database,
        {"fake": cast(Cloud, fleet)},
        fleet,
        fleet,
        owner="test",
        heartbeat_interval_s=BEAT_S,
        poll_interval_s=0.5,
        cloud_interval_s=0.5,
        policy=POLICY,
    )
    running = asyncio.ensure_future(ActivityEnvironment().run(watch.watch_fleet, m.WatchInput()))
    try:
        yield
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def fleet(database: Database) -> AsyncIterator[Fleet]:
    """Ten nodes that are well, each by its name everywhere."""
    names = [f"n{number}" for number in range(10)]
    async with database.transaction() as session:
        session.add(
            LaunchRow(
                id="launch-00000001",
                tenant="t",
                principal="p",
                request_hash="h",
                model_name="m",
                stage="READY",
                status="completed",
            )
        )
        await session.flush()
        for name in names:
            session.add(
                NodeRow(
                    id=name,
                    launch_id="launch-00000001",
                    attempt=1,
                    cluster_name=name,
                    tenant="t",
                    backend="fake",
                    provider="aws",
                    region="us-east-1",
                    instance_type="g5.xlarge",
                    market="spot",
                    hourly_price=Decimal("0.40"),
                    model_name="m",
                    endpoint_url=f"http://{name}",
                    status="ready",
                    heartbeat_key_hash="h",
                    billed_from=utcnow(),
                    # The list that knows of them must have begun later.
                    registered_at=utcnow() - timedelta(seconds=5),
                )
            )
    found = Fleet(database, set(names), set(names), set(names))
    beating = asyncio.ensure_future(found.beat())
    yield found
    beating.cancel()
    await asyncio.wait([beating])


async def test_all_is_well_and_little_is_asked(fleet: Fleet) -> None:
    async with watching(fleet):
        for name in sorted(fleet.machines):
            node = await fleet.becomes(name, Condition.HEALTHY)
            assert node.routable

        async def sure() -> bool:
            signals = (await fleet.node("n0")).signals
            return signals == {"heartbeat": "yes", "engine": "yes", "cloud": "yes"}

        await eventually(sure, timeout_s=60, what="three signals")
    assert fleet.told == []
    assert fleet.lists < 100  # one for the whole fleet at a time


async def test_a_node_that_is_gone_is_replaced_at_once(fleet: Fleet) -> None:
    async with watching(fleet):
        await fleet.becomes("n0", Condition.HEALTHY)
        fleet.lose("n0")
        fleet.machines.discard("n0")
        node = await fleet.becomes("n0", Condition.DEAD)
        await eventually(lambda: fleet.told, timeout_s=30, what="the command")
    assert (node.routable, node.health_score) == (False, 0.0)
    assert fleet.told == ["n0"]
    assert fleet.replaced[0].at_once
    assert (await fleet.node("n0")).replace_requested_by == "skyfleet"
    assert await fleet.audited("node.replace")


async def test_half_the_fleet_silent_at_once_is_our_network(fleet: Fleet) -> None:
    """Nothing is replaced, a person is told; when they are back, all is as before."""
    lost = [f"n{number}" for number in range(5)]
    async with watching(fleet):
        for name in sorted(fleet.machines):
            await fleet.becomes(name, Condition.HEALTHY)
        fleet.lose(*lost)
        for name in lost:
            await fleet.becomes(name, Condition.UNREACHABLE)
        await eventually(lambda: fleet.audited("fleet.breaker_opened"), timeout_s=30, what="the breaker")

        async def alerted() -> bool:
            async with fleet.database.transaction() as session:
                events = await NodeRepository(session).events("n0")
            return any(event.kind == "alert" and "not repaired" in event.message for event in events)

        await eventually(alerted, timeout_s=30, what="an alert, after the grace")
        assert fleet.told == []

        async def said() -> bool:
            async with fleet.database.transaction() as session:
                state = await WatchRepository(session).state()
            return state is not None and (state.sick, state.serving) == (5, 10) and state.breaker_open_since is not None

        await eventually(said, timeout_s=30, what="the figures of the whole fleet")
        fleet.agents |= set(lost)
        fleet.engines |= set(lost)
        for name in lost:
            await fleet.becomes(name, Condition.HEALTHY)
        await eventually(lambda: fleet.audited("fleet.breaker_closed"), timeout_s=30, what="the breaker closed")
    assert fleet.told == []


async def test_half_the_fleet_taken_by_its_cloud_is_replaced(fleet: Fleet) -> None:
    """The cloud's own word that they are gone is no fault of our network."""
    lost = [f"n{number}" for number in range(5)]
    async with watching(fleet):
        for name in sorted(fleet.machines):
            await fleet.becomes(name, Condition.HEALTHY)
        fleet.machines -= set(lost)
        fleet.lose(*lost)
        await eventually(lambda: len(fleet.told) == 5, timeout_s=20, what="five replacements")
    assert sorted(fleet.told) == lost


async def test_a_cloud_that_errs_says_nothing(fleet: Fleet) -> None:
    fleet.cloud_away = True
    async with watching(fleet):
        await fleet.becomes("n0", Condition.HEALTHY)
        fleet.lose("n0")
        node = await fleet.becomes("n0", Condition.UNREACHABLE)
        assert node.signals == {"heartbeat": "no", "engine": "no", "cloud": "unknown"}
        await eventually(lambda: fleet.told, timeout_s=60, what="the replacement after its grace")
    assert "neither agent nor engine answers" in fleet.replaced[0].reason
    async with fleet.database.transaction() as session:
        state = await WatchRepository(session).state()
    assert state is not None
    assert "503" in state.clouds["fake"]["error"]


async def test_an_engine_that_is_down_takes_the_node_out_of_rotation(fleet: Fleet) -> None:
    async with watching(fleet):

        async def reached() -> bool:
            return (await fleet.node("n0")).reached_at is not None

        await eventually(reached, timeout_s=60, what="an answer to a poll")
        fleet.engines.discard("n0")
        assert not (await fleet.becomes("n0", Condition.DEGRADED)).routable
        fleet.engines.add("n0")
        node = await fleet.becomes("n0", Condition.HEALTHY)
    assert node.routable
    assert node.health_score == pytest.approx(0.8)


async def test_an_engine_that_never_could_be_reached_is_not_called_down(fleet: Fleet) -> None:
    """Its network leads to us, and not back: the agent's word counts."""
    fleet.engines.discard("n0")
    async with watching(fleet):
        node = await fleet.becomes("n0", Condition.HEALTHY)
        lists = fleet.lists
        await eventually(lambda: fleet.lists > lists + 3, timeout_s=20, what="some polls more")
        assert (await fleet.node("n0")).health == node.health == Condition.HEALTHY.value
    assert fleet.told == []


async def test_a_watch_that_begins_while_all_were_silent_calls_nobody_lost(fleet: Fleet) -> None:
    """The control plane was away: that no beat was written says nothing of the nodes."""
    agents, fleet.agents = fleet.agents, set()
    async with fleet.database.transaction() as session:
        await session.execute(text("UPDATE nodes SET last_heartbeat_at = now() - interval '1 hour'"))
    async with watching(fleet):
        node = await fleet.becomes("n0", Condition.HEALTHY)
        assert node.signals is not None
        assert node.signals["heartbeat"] == "unknown"
        fleet.agents = agents
        await eventually(lambda: fleet.lists > 3, timeout_s=20, what="some looks")
        async with fleet.database.transaction() as session:
            for name in sorted(fleet.machines):
                events = await NodeRepository(session).events(name)
                assert [event for event in events if event.data.get("routable") is False] == []
    assert fleet.told == []


async def test_an_idle_node_ends_and_an_old_one_drains(fleet: Fleet) -> None:
    async with fleet.database.transaction() as session:
        await session.execute(text("UPDATE nodes SET idle_shutdown_seconds = 1 WHERE id = 'n0'"))
        await session.execute(text("UPDATE nodes SET max_life_seconds = 1 WHERE id = 'n1'"))
    async with watching(fleet):
        await eventually(lambda: len(fleet.told) == 2, timeout_s=20, what="both")
    assert sorted(fleet.told) == ["n0", "n1"]
    assert fleet.ended[0].reason.startswith("idle for")
    assert fleet.drained[0].reason == "it has lived its 1 s"
