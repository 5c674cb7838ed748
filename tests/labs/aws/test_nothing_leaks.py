"""Whatever SkyPilot leaves behind: the ledger of the lab's AWS holds nothing that was given up, and nothing twice.

The lab has no machines here: a launch that EC2 accepted waits for SSH until it is ended.
"""

from __future__ import annotations

import pytest

from skyfleet.domain.states import LaunchStatus
from tests.labs.aws.lab import AwsLab
from tests.labs.aws.records import Instance
from tests.stack import RunningStack
from tests.waiting import eventually


async def ours(lab: AwsLab, job_id: str) -> list[Instance]:
    """Every machine that was ever made for a launch."""
    name = f"sf-{job_id.removeprefix('launch-')}-"
    return [one for one in await lab.instances() if one.tags.get("ray-cluster-name", "").startswith(name)]


async def asked(lab: AwsLab) -> None:
    """Wait until EC2 is being asked for a machine."""

    async def is_asked() -> bool:
        return bool(await lab.calls("RunInstances"))

    await eventually(is_asked, timeout_s=60, what="a RunInstances call")


async def launched(stack: RunningStack, job_id: str) -> None:
    """Wait until EC2 has accepted and SkyPilot waits for the machine."""
    await stack.event(job_id, lambda event: event.data.get("milestone") == "ssh", timeout_s=60)


async def cancelled(stack: RunningStack, lab: AwsLab, job_id: str) -> None:
    """Cancel; the launch ends so, with nothing in the cloud or in SkyPilot's records."""
    await stack.client.cancel(job_id)
    view = await stack.ended(job_id, timeout_s=90)
    assert view.status is LaunchStatus.CANCELLED
    assert await lab.running() == []
    assert "sf-" not in await lab.sky("status")


async def test_a_cancel_while_the_machine_comes_up(real: RunningStack, aws_lab: AwsLab) -> None:
    job_id = await real.launch("g5.xlarge", use_spot=True)
    await launched(real, job_id)
    story = [event.data["milestone"] for event in await real.told(job_id) if "milestone" in event.data]
    assert story[:3] == ["asked", "accepted", "ssh"]
    [machine] = await ours(aws_lab, job_id)
    assert machine.market == "spot"
    assert machine.tags["skyfleet-owner"] == "skyfleet"
    await cancelled(real, aws_lab, job_id)


async def test_a_cancel_while_ec2_is_being_asked(real: RunningStack, aws_lab: AwsLab) -> None:
    """The machine comes to be after the cancel, and is seen and ended all the same."""
    await aws_lab.fault(delay_s=4)
    job_id = await real.launch("g5.xlarge")
    await asked(aws_lab)
    assert await ours(aws_lab, job_id) == []
    await cancelled(real, aws_lab, job_id)
    assert len(await ours(aws_lab, job_id)) == 1


async def test_a_lost_reply_makes_no_second_machine(real: RunningStack, aws_lab: AwsLab) -> None:
    await aws_lab.fault(drop_reply=True, times=1)
    job_id = await real.launch("g5.xlarge")
    await launched(real, job_id)
    assert len(await aws_lab.running()) == 1
    await cancelled(real, aws_lab, job_id)


@pytest.mark.slow
async def test_skypilots_server_is_killed_while_ec2_is_being_asked(real: RunningStack, aws_lab: AwsLab) -> None:
    """Its launch is forgotten and its record says INIT; the next create finds the machine that came of it."""
    await aws_lab.fault(delay_after_s=3, times=1)
    job_id = await real.launch("g5.xlarge")
    await asked(aws_lab)
    await aws_lab.kill_api_server()
    await aws_lab.start_api_server()
    await launched(real, job_id)
    assert len(await ours(aws_lab, job_id)) == 1
    await cancelled(real, aws_lab, job_id)


@pytest.mark.slow
async def test_a_cancel_while_skypilots_server_is_away(real: RunningStack, aws_lab: AwsLab) -> None:
    job_id = await real.launch("g5.xlarge")
    await launched(real, job_id)
    await aws_lab.kill_api_server()
    await real.client.cancel(job_id)
    await aws_lab.start_api_server()
    assert (await real.ended(job_id, timeout_s=90)).status is LaunchStatus.CANCELLED
    assert await aws_lab.running() == []


@pytest.mark.slow
async def test_a_worker_that_is_killed_finds_its_machine_again(real: RunningStack, aws_lab: AwsLab) -> None:
    job_id = await real.launch("g5.xlarge")
    await launched(real, job_id)
    real.kill("worker")
    await real.event(job_id, lambda event: event.message.endswith("waiting for SSH"), timeout_s=60)
    await real.healthy(timeout_s=90)
    await cancelled(real, aws_lab, job_id)
    assert len(await ours(aws_lab, job_id)) == 1


@pytest.mark.slow
async def test_a_machine_that_is_taken_while_it_comes_up(real: RunningStack, aws_lab: AwsLab) -> None:
    job_id = await real.launch(
        "g5.xlarge", use_spot=True, max_attempts=1, deadlines={"provision_seconds": 15, "registration_seconds": 60}
    )
    await launched(real, job_id)
    [machine] = await ours(aws_lab, job_id)
    await aws_lab.preempt(machine.id)
    view = await real.ended(job_id, timeout_s=120)
    assert view.status in (LaunchStatus.FAILED, LaunchStatus.TIMEOUT)
    assert await aws_lab.running() == []
    assert "sf-" not in await aws_lab.sky("status")


@pytest.mark.slow
async def test_a_machine_that_no_launch_claims_is_ended(real: RunningStack, aws_lab: AwsLab) -> None:
    """The database was restored from yesterday: the label says that the machine is ours, and nothing knows it."""
    task = aws_lab.home / "stray.yaml"
    task.write_text(
        "resources: {infra: aws/us-east-2, instance_type: g5.xlarge, labels: {skyfleet-owner: skyfleet}}\nrun: echo\n"
    )
    await aws_lab.sky("launch", "--cluster", "sf-of-yesterday-1", "--yes", "--async", str(task))

    async def there() -> bool:
        return bool(await aws_lab.running())

    await eventually(there, timeout_s=60, what="the machine")

    async def gone() -> bool:
        return not await aws_lab.running()

    await eventually(gone, timeout_s=90, what="its end")
