"""What the sweep and the teardown write into the ledger, with a cloud that a test scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.machines import MachineActivities
from activities.sweep import SweepActivities
from skyfleet.db.repositories import CostRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import CostIntervalRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudUnreachable
from skyfleet.domain.offers import CloudInstance, CreateRequest, InstanceProgress, InstanceState, Offer
from skyfleet.domain.states import Market

BEGIN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def machine(name: str, **changes: Any) -> CloudInstance:
    """A machine as its cloud tells of it."""
    given = CloudInstance(
        name=name,
        id="i-1",
        backend="fake",
        cloud="aws",
        region="us-east-1",
        instance_type="g5.xlarge",
        market=Market.SPOT,
        state=InstanceState.RUNNING,
        hourly_price=Decimal("0.40"),
        owner="test",
        created_at=BEGIN,
    )
    return given.model_copy(update=changes)


class ForgetfulCloud:
    """Knows what is in `machines`; forgets a machine whose end is asked for. `away`: what it cannot look up."""

    backend = "fake"
    engines: tuple[str, ...] = ("echo",)

    def __init__(self, *machines: CloudInstance) -> None:
        self.machines = {one.name: one for one in machines}
        self.away: set[str] = set()

    async def offers(self) -> list[Offer]:
        return []

    async def create(self, request: CreateRequest) -> CloudInstance:
        raise AssertionError("nothing is created here")

    def progress(self, name: str) -> AsyncIterator[InstanceProgress]:
        raise AssertionError("nothing comes up here")

    async def get(self, name: str) -> CloudInstance | None:
        if name in self.away:
            raise CloudUnreachable("away")
        return self.machines.get(name)

    async def list(self, owner: str) -> list[CloudInstance]:
        return [one for one in self.machines.values() if one.state is not InstanceState.TERMINATED]

    async def terminate(self, name: str) -> None:
        self.machines.pop(name, None)

    async def aclose(self) -> None:
        return None


class NoDelivery:
    """Delivers nothing: what is found is all that counts here."""

    async def start_launch(self, launch: m.LaunchInput) -> bool:
        return False

    async def cancel_launch(self, launch_id: str, command: m.CancelLaunch) -> bool:
        return False

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode) -> bool:
        return False

    async def end_stray(self, stray: m.TerminateInput) -> bool:
        return False


async def _sweep(database: Database, cloud: ForgetfulCloud, *, dry_run: bool = False) -> None:
    steps = SweepActivities(database, NoDelivery(), {"fake": cloud}, owner="test", compare_interval_s=0.0)
    await ActivityEnvironment().run(steps.compare_with_clouds, m.SweepInput(dry_run=dry_run))


async def _ledger(database: Database) -> dict[str, CostIntervalRow]:
    async with database.transaction() as session:
        return await CostRepository(session).of_machines(["sf-1", "sf-2", "sf-3"])


async def test_the_sweep_bills_what_nobody_wrote_down_and_ends_what_is_gone(database: Database) -> None:
    cloud = ForgetfulCloud(machine("sf-1"), machine("sf-2"), machine("sf-3"))
    await _sweep(database, cloud, dry_run=True)
    assert await _ledger(database) == {}
    await _sweep(database, cloud)
    ledger = await _ledger(database)
    assert {(row.started_at, row.ended_at, row.hourly_price) for row in ledger.values()} == {
        (BEGIN, None, Decimal("0.40"))
    }
    assert len(ledger) == 3
    # One ended when its cloud says, one is forgotten, of one nothing is known for now.
    end = BEGIN + timedelta(minutes=7)
    cloud.machines["sf-1"] = machine("sf-1", state=InstanceState.TERMINATED, terminated_at=end)
    del cloud.machines["sf-2"], cloud.machines["sf-3"]
    cloud.away = {"sf-3"}
    before = utcnow()
    await _sweep(database, cloud)
    ledger = await _ledger(database)
    assert ledger["sf-1"].ended_at == end
    seen = ledger["sf-2"].ended_at
    assert seen is not None
    assert before <= seen <= utcnow()
    assert ledger["sf-3"].ended_at is None
    # What was confirmed gone and is there is billed on.
    cloud.machines["sf-2"] = machine("sf-2")
    await _sweep(database, cloud)
    assert (await _ledger(database))["sf-2"].ended_at is None


async def test_a_machine_whose_create_was_never_answered_is_billed_by_its_teardown(database: Database) -> None:
    cloud = ForgetfulCloud(machine("sf-1"))
    steps = MachineActivities(
        database, {"fake": cloud}, owner="test", control_plane_url="http://127.0.0.1:1", agent=("0", "0")
    )
    request = m.TerminateInput(backend="fake", cluster_name="sf-1", reason="test", launch_id=None)
    first = await ActivityEnvironment().run(steps.terminate_machine, request)
    await ActivityEnvironment().run(steps.terminate_machine, request)
    row = (await _ledger(database))["sf-1"]
    assert (row.started_at, row.ended_at) == (BEGIN, first.confirmed_at)
