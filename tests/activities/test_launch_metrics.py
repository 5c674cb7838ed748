"""What a worker counts, it counts once: an activity that runs again after its worker died adds nothing."""

from __future__ import annotations

from decimal import Decimal

import pytest
from temporalio.testing import ActivityEnvironment

from activities.launch import LaunchActivities
from skyfleet.db.repositories import LaunchRepository, NodeRepository
from skyfleet.db.repositories.launches import NewLaunch
from skyfleet.db.session import Database
from skyfleet.db.tables import NodeRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import LaunchStage, Market, NodeStatus
from skyfleet.telemetry.metrics import WORKER

#: A cloud that no other test has, so that what is counted is this test's.
OFFER = Offer(
    backend="fake",
    cloud="countedcloud",
    region="r",
    instance_type="t",
    market=Market.SPOT,
    hourly_price=Decimal("0.40"),
)
CAPACITY = ClassifiedError(
    kind=ErrorKind.CAPACITY, scope=ErrorScope.ZONE, retryable=True, cloud="countedcloud", message="full", raw="full"
)


class Counted:
    """What was counted since it was made."""

    def __init__(self) -> None:
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        names = ("succeeded", "cancelled", "capacity")
        read = {name: self._value("skyfleet_attempts_total", cloud="countedcloud", outcome=name) for name in names}
        for outcome in ("completed", "failed", "cancelled", "timeout"):
            read[f"launch {outcome}"] = self._value("skyfleet_launch_duration_seconds_count", outcome=outcome)
        read["planning"] = self._value("skyfleet_launch_stage_duration_seconds_count", stage="PLANNING")
        return read

    @staticmethod
    def _value(name: str, **labels: str) -> float:
        return WORKER.get_sample_value(name, labels) or 0.0

    @property
    def more(self) -> dict[str, float]:
        """What is more than it was."""
        now = self._read()
        return {name: now[name] - self._before[name] for name in now if now[name] != self._before[name]}


@pytest.fixture
async def ref(database: Database) -> m.AttemptRef:
    """The first attempt of a launch that is being planned."""
    launch_id = ids.new_launch_id()
    intent = NewLaunch(
        id=launch_id,
        tenant="default",
        principal="test",
        idempotency_key=None,
        request_hash="",
        spec=LaunchSpec(model_name="tiny").model_dump(mode="json"),
        model_name="tiny",
        deployment=None,
        engine="echo",
        sandbox=False,
        audit_detail={},
        remote=None,
    )
    async with database.transaction() as session:
        launches = LaunchRepository(session)
        await launches.add_all([intent])
        await launches.record(launch_id, kind="plan", stage=LaunchStage.PLANNING, message="planning")
    steps = LaunchActivities(database)
    opening = m.OpenAttemptInput(launch_id=launch_id, number=1, offer=OFFER)
    return await ActivityEnvironment().run(steps.open_attempt, opening)


async def test_a_launch_that_got_ready(database: Database, ref: m.AttemptRef) -> None:
    async with database.transaction() as session:
        NodeRepository(session).add(
            NodeRow(
                id=ref.node_id,
                launch_id=ref.launch_id,
                attempt=1,
                cluster_name=ref.cluster_name,
                tenant="default",
                backend="fake",
                provider="countedcloud",
                region="r",
                instance_type="t",
                market="spot",
                hourly_price=OFFER.hourly_price,
                model_name="tiny",
                endpoint_url="http://127.0.0.1:1",
                status=NodeStatus.READY.value,
                heartbeat_key_hash="",
                billed_from=utcnow(),
            )
        )
    counted = Counted()
    for _ in range(2):
        steps = LaunchActivities(database)  # of another worker
        await ActivityEnvironment().run(steps.complete_launch, m.CompleteInput(attempt=ref))
    assert counted.more == {"succeeded": 1, "launch completed": 1, "planning": 1}


async def test_a_launch_whose_attempt_was_refused(database: Database, ref: m.AttemptRef) -> None:
    counted = Counted()
    closing = m.CloseAttemptInput(attempt=ref, offer=OFFER, error=CAPACITY)
    ending = m.FinishInput(launch_id=ref.launch_id, stage=LaunchStage.FAILED, error=CAPACITY)
    for _ in range(2):
        steps = LaunchActivities(database)
        await ActivityEnvironment().run(steps.close_attempt, closing)
    assert counted.more == {"capacity": 1}
    for _ in range(2):
        steps = LaunchActivities(database)
        await ActivityEnvironment().run(steps.finish_launch, ending)
    assert counted.more == {"capacity": 1, "launch failed": 1, "planning": 1}


async def test_a_launch_that_was_cancelled_before_any_create(database: Database, ref: m.AttemptRef) -> None:
    counted = Counted()
    ending = m.FinishInput(launch_id=ref.launch_id, stage=LaunchStage.CANCELLED)
    for _ in range(2):
        await ActivityEnvironment().run(LaunchActivities(database).finish_launch, ending)
    assert counted.more == {"cancelled": 1, "launch cancelled": 1, "planning": 1}
