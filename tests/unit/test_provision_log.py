"""Reading SkyPilot's provision log, on what SkyPilot 0.14.1 wrote when it launched on the AWS lab."""

from __future__ import annotations

import pytest

from skyfleet.clouds.skypilot.provision_log import read

_P = "11-24 00:18:24.562 PID=225"
_ASKED = f"D {_P} provisioner.py:281] ==================== Provisioning ===================="
_ACCEPTED = f"D {_P} provisioner.py:144] Waiting for instances of 't1' to be ready..."
_WHOLE = "\n".join(
    (
        f"D {_P} provisioner.py:279] SkyPilot version: 0.14.1; commit: 7e595970a806dcc9eefadf459f399edf1733e962",
        f"D {_P} provisioner.py:281] ",
        _ASKED,
        f"D {_P} instance.py:338] Creating 1 instances with config: ",
        _ACCEPTED,
        f"D {_P} provisioner.py:677] Waiting for SSH to be available for 't1' ...",
        f"D {_P} provisioner.py:604] Retrying in 1 second...",
        f"D {_P} provisioner.py:680] SSH Connection ready for 't1'",
        f"I {_P} provisioner.py:686] \x1b[2m└── \x1b[0m\x1b[2mInstance is up.\x1b[0m",
        f"I {_P} common.py:394] --------------------Start: setup_runtime_on_cluster --------------------",
        "bash: conda: command not found",
        f"D {_P} provisioner.py:854] Starting Ray on the entire cluster.",
    )
)
_REFUSED = (
    "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation "
    "(reached max retries: 0): We currently do not have sufficient g5.xlarge capacity in the Availability Zone you "
    "requested (us-east-1b)."
)
_FAILED = "\n".join(
    (
        _ASKED,
        f"D {_P} instance.py:144] create_instances: Attempt failed with {_REFUSED}",
        f"D {_P} provisioner.py:361] Traceback (most recent call last):",
        f"D {_P} provisioner.py:361]     raise error_class(parsed_response, operation_name)",
        f"D {_P} provisioner.py:361] botocore.exceptions.ClientError: {_REFUSED}",
        f"D {_P} provisioner.py:361] RuntimeError: Failed to launch instances. Max attempts exceeded.",
    )
)


def names(text: str) -> list[str]:
    return [milestone.name for milestone in read(text).milestones]


def test_the_milestones_of_a_launch_in_order() -> None:
    assert names(_WHOLE) == ["asked", "accepted", "ssh", "reached", "runtime", "ray"]
    assert read(_WHOLE).errors == ()
    assert read(_WHOLE).code is None


@pytest.mark.parametrize(("lines", "asked", "accepted"), [(0, False, False), (3, True, False), (5, True, True)])
def test_a_log_that_is_still_being_written(lines: int, asked: bool, accepted: bool) -> None:
    log = read("\n".join(_WHOLE.splitlines()[:lines]))
    assert (log.asked, log.accepted) == (asked, accepted)


def test_the_clouds_own_error_and_code() -> None:
    log = read(_FAILED)
    assert log.code == "InsufficientInstanceCapacity"
    assert log.errors == (
        f"botocore.exceptions.ClientError: {_REFUSED}",
        "RuntimeError: Failed to launch instances. Max attempts exceeded.",
    )


def test_a_try_that_follows_a_refusal_starts_anew() -> None:
    """Accepted in one zone, lost there, and asked for in the next: nothing is accepted there yet."""
    assert names(f"{_WHOLE}\n{_ASKED}") == ["asked"]
    assert names(f"{_FAILED}\n{_WHOLE}")[-1] == "ray"


def test_a_log_of_any_length_keeps_few_errors() -> None:
    text = "\n".join(f"D {_P} x.py:1] ValueError: number {number}" for number in range(10_000))
    assert len(read(text).errors) == 20
