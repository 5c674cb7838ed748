"""`terminate_machine` on a real database, with a cloud that a test scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.machines import MachineActivities
from skyfleet.db.repositories import AuditRepository
from skyfleet.db.session import Database
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudError
from skyfleet.domain.offers import CloudInstance, CreateRequest, InstanceProgress, InstanceState, Offer
from skyfleet.domain.states import Market

ENDED_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
REQUEST = m.TerminateInput(backend="fake", cluster_name="sf-1", reason="test", launch_id="launch-0123456789ab")


class FailingCloud:
    """A cloud whose terminate fails; `state` is what it says of the machine, None if it knows none."""

    backend = "fake"
    engines: tuple[str, ...] = ("echo",)

    def __init__(self, state: InstanceState | None) -> None:
        self.state = state

    async def offers(self) -> list[Offer]:
        return []

    async def create(self, request: CreateRequest) -> CloudInstance:
        raise AssertionError("nothing is created here")

    def progress(self, name: str) -> AsyncIterator[InstanceProgress]:
        raise AssertionError("nothing comes up here")

    async def get(self, name: str) -> CloudInstance | None:
        if self.state is None:
            return None
        return CloudInstance(
            name=name,
            id="i-1",
            backend="fake",
            cloud="aws",
            region="us-east-1",
            instance_type="g5.xlarge",
            market=Market.SPOT,
            state=self.state,
            hourly_price=Decimal("0.40"),
            owner="test",
            created_at=ENDED_AT,
            terminated_at=ENDED_AT if self.state is InstanceState.TERMINATED else None,
        )

    async def list(self, owner: str) -> list[CloudInstance]:
        return []

    async def terminate(self, name: str) -> None:
        raise CloudError("aws", "An error occurred (InternalError) when calling the TerminateInstances operation")

    async def aclose(self) -> None:
        return None


def activities(database: Database, cloud: FailingCloud) -> MachineActivities:
    """The activities on this cloud."""
    return MachineActivities(
        database, {"fake": cloud}, owner="test", control_plane_url="http://127.0.0.1:1", agent=("0", "0")
    )


async def test_a_machine_that_ended_by_itself_is_confirmed_although_terminate_fails(database: Database) -> None:
    steps = activities(database, FailingCloud(InstanceState.TERMINATED))
    result = await ActivityEnvironment().run(steps.terminate_machine, REQUEST)
    assert result == m.TerminateResult(confirmed_at=ENDED_AT, existed=True)
    async with database.transaction() as session:
        assert [row.action for row in await AuditRepository(session).page()] == ["machine.gone"]


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.STOPPING, None])
async def test_a_terminate_that_fails_is_never_called_done(database: Database, state: InstanceState | None) -> None:
    """Not even for a name that the cloud does not know: a create may still be on its way to it."""
    steps = activities(database, FailingCloud(state))
    with pytest.raises(ApplicationError, match="not terminated yet") as failed:
        await ActivityEnvironment().run(steps.terminate_machine, REQUEST)
    assert not failed.value.non_retryable
    async with database.transaction() as session:
        assert await AuditRepository(session).page() == []
