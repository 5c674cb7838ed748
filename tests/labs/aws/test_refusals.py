"""What AWS refuses, all the way: `skyfleet up` on a real SkyPilot, whose EC2 answers with each of its errors."""

from __future__ import annotations

from typing import Any

import pytest

from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.states import LaunchStatus
from tests.labs.aws.lab import AwsLab
from tests.stack import RunningStack


@pytest.mark.parametrize(
    ("code", "market", "fault", "kind", "scope", "says"),
    [
        ("InsufficientInstanceCapacity", "spot", {}, ErrorKind.CAPACITY, ErrorScope.ZONE, "no spot capacity"),
        ("InsufficientInstanceCapacity", "on_demand", {}, ErrorKind.CAPACITY, ErrorScope.ZONE, "capacity"),
        ("MaxSpotInstanceCountExceeded", "spot", {}, ErrorKind.QUOTA, ErrorScope.REGION, "quota"),
        ("VcpuLimitExceeded", "on_demand", {}, ErrorKind.QUOTA, ErrorScope.REGION, "quota"),
        ("UnauthorizedOperation", "on_demand", {}, ErrorKind.AUTH, ErrorScope.CLOUD, "not allowed"),
        (
            "AuthFailure",
            "on_demand",
            {"action": None, "service": "ec2"},
            ErrorKind.AUTH,
            ErrorScope.CLOUD,
            "credentials",
        ),
        ("RequestExpired", "on_demand", {}, ErrorKind.AUTH, ErrorScope.CLOUD, "credentials"),
        ("InvalidAMIID.NotFound", "on_demand", {}, ErrorKind.CONFIG, ErrorScope.REGION, "image"),
        ("RequestLimitExceeded", "on_demand", {}, ErrorKind.TRANSIENT, ErrorScope.REGION, "rate"),
    ],
)
async def test_each_refusal_is_told_apart(
    real: RunningStack,
    aws_lab: AwsLab,
    code: str,
    market: str,
    fault: dict[str, Any],
    kind: ErrorKind,
    scope: ErrorScope,
    says: str,
) -> None:
    injected = await aws_lab.fault(code, **fault)
    job_id = await real.launch("g5.xlarge", use_spot=market == "spot", max_attempts=1)
    await real.event(job_id, lambda event: event.stage == "TEARING_DOWN", timeout_s=120)
    await injected.remove()
    view = await real.ended(job_id, timeout_s=60)
    assert view.status is LaunchStatus.FAILED
    error = view.attempts[0].error
    assert error is not None
    assert (error.kind, error.scope, error.code) == (kind, scope, code)
    assert says in error.message.lower()
    assert error.next_steps
    assert code in error.raw
    assert await aws_lab.running() == []
