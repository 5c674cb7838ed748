"""The lab itself: its cloud fares as AWS does, and SkyPilot meets its faults."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from skyfleet.agent.processes import process_info
from tests.labs.aws.aws_client import client, run_instance
from tests.labs.aws.catalog import IMAGE
from tests.labs.aws.lab import AwsLab
from tests.waiting import eventually

LAUNCH = ("launch", "--yes", "--infra", "aws/us-east-1", "--instance-type", "m6i.large", "--use-spot")


async def refusal(call: Any, **parameters: Any) -> ClientError:
    """The error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        await asyncio.to_thread(call, **parameters)
    return caught.value


async def test_a_launch_that_is_refused_says_so_in_the_clouds_words_and_leaves_nothing(aws_lab: AwsLab) -> None:
    fault = await aws_lab.fault("InsufficientInstanceCapacity", region="us-east-1", market="spot")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        await aws_lab.sky(*LAUNCH, "--cluster", "refused", "true")
    assert "(InsufficientInstanceCapacity)" in failure.value.output
    assert "There is no Spot capacity available that matches your request." in failure.value.output
    calls = await aws_lab.calls("RunInstances")
    assert {(call.region, call.market, call.instance_type, call.result) for call in calls} == {
        ("us-east-1", "spot", "m6i.large", "InsufficientInstanceCapacity")
    }
    assert len({call.zone for call in calls}) == 2
    assert await fault.hits() == len(calls)
    assert await aws_lab.running() == []


async def test_a_launch_whose_reply_is_lost_is_seen_in_the_ledger(aws_lab: AwsLab) -> None:
    await aws_lab.fault(drop_reply=True, times=1)
    await aws_lab.fault("InsufficientInstanceCapacity")
    untidy = await aws_lab.fault("RequestLimitExceeded", action="TerminateInstances")  # SkyPilot tidies up behind it
    launch = asyncio.create_task(aws_lab.sky(*LAUNCH, "--cluster", "lost-reply", "true"))
    running = await eventually(aws_lab.running, timeout_s=60, what="the instance")
    await untidy.remove()
    with pytest.raises(subprocess.CalledProcessError):
        await launch
    call, *_ = await aws_lab.calls("RunInstances")
    assert call.result == "dropped"
    assert running[0].tags["skypilot-cluster-name"].startswith("lost-reply-")
    assert (running[0].market, running[0].region, running[0].zone) == ("spot", "us-east-1", call.zone)


async def test_an_api_server_that_was_killed_leaves_no_process_and_starts_again(aws_lab: AwsLab) -> None:
    processes = aws_lab.api_server_processes()
    assert len(processes) > 2
    await aws_lab.kill_api_server()
    assert [info for info in map(process_info, processes) if info and not info.zombie] == []
    await aws_lab.start_api_server()
    assert aws_lab.api_server_processes()


async def test_a_token_that_comes_again_makes_no_second_instance(aws_lab: AwsLab) -> None:
    ec2 = client(aws_lab)
    first, again, other = [await run_instance(ec2, ClientToken=token) for token in ("one", "one", "two")]
    assert first == again != other
    assert {instance.id for instance in await aws_lab.running()} == {first, other}


async def test_a_client_that_retries_after_a_lost_reply_gets_the_instance_that_was_made(aws_lab: AwsLab) -> None:
    await aws_lab.fault(drop_reply=True, times=1)
    made = await run_instance(client(aws_lab, attempts=2))
    assert [instance.id for instance in await aws_lab.running()] == [made]
    assert [call.result for call in await aws_lab.calls("RunInstances")] == ["dropped", "200"]
    await aws_lab.fault(drop_reply=True, times=1)
    with pytest.raises(ConnectionClosedError):
        await run_instance(client(aws_lab))
    assert len(await aws_lab.running()) == 2


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("InsufficientInstanceCapacity", 500, "do not have sufficient g5.xlarge capacity in the Availability Zone"),
        ("MaxSpotInstanceCountExceeded", 400, "Max spot instance count exceeded"),
        ("VcpuLimitExceeded", 400, "You have requested more vCPU capacity than your current vCPU limit of 0"),
        ("UnauthorizedOperation", 403, "is not authorized to perform: ec2:RunInstances on resource: arn:aws:ec2:us-"),
        ("AuthFailure", 401, "AWS was not able to validate the provided access credentials"),
        ("RequestExpired", 400, "Request has expired."),
        ("RequestLimitExceeded", 503, "Request limit exceeded."),
        ("InvalidAMIID.NotFound", 400, f"The image id '[{IMAGE}]' does not exist"),
        ("InternalError", 500, "An internal error has occurred"),
        ("Unsupported", 400, "Your requested instance type (g5.xlarge) is not supported"),
    ],
)
async def test_an_error_of_ec2s_has_its_code_status_and_words(
    aws_lab: AwsLab, code: str, status: int, words: str
) -> None:
    await aws_lab.fault(code)
    error = await refusal(
        client(aws_lab).run_instances, ImageId=IMAGE, InstanceType="g5.xlarge", MinCount=1, MaxCount=1
    )
    assert error.response["Error"]["Code"] == code
    assert words in error.response["Error"]["Message"]
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert await aws_lab.running() == []


@pytest.mark.parametrize(
    ("code", "elsewhere"), [("AuthFailure", "InvalidClientTokenId"), ("RequestExpired", "ExpiredToken")]
)
async def test_credentials_fail_on_every_service_in_its_own_way(aws_lab: AwsLab, code: str, elsewhere: str) -> None:
    await aws_lab.fault(code, action=None)
    calls = {"ec2": "describe_instances", "sts": "get_caller_identity", "iam": "list_roles"}
    errors = [await refusal(getattr(client(aws_lab, service), call)) for service, call in calls.items()]
    assert [error.response["Error"]["Code"] for error in errors] == [code, elsewhere, elsewhere]


async def test_a_fault_strikes_only_what_it_names_and_ends_when_removed(aws_lab: AwsLab) -> None:
    fault = await aws_lab.fault(
        "VcpuLimitExceeded", region="us-east-2", market="spot", instance_type="g5.xlarge", times=2
    )
    east, west = client(aws_lab, region="us-east-2"), client(aws_lab, region="us-west-2")
    await run_instance(west, spot=True)
    await run_instance(east)
    await run_instance(east, spot=True, InstanceType="m6i.large")
    assert await fault.hits() == 0
    for _ in range(2):
        with pytest.raises(ClientError, match="VcpuLimitExceeded"):
            await run_instance(east, spot=True)
    await run_instance(east, spot=True)
    lasting = await aws_lab.fault("InternalError")
    with pytest.raises(ClientError, match="InternalError"):
        await run_instance(west)
    await lasting.remove()
    await run_instance(west)


async def test_a_call_may_be_late_before_or_after_it_takes_effect(aws_lab: AwsLab) -> None:
    ec2 = client(aws_lab)
    before = await aws_lab.fault(delay_s=60)
    launch = asyncio.create_task(run_instance(ec2))
    await eventually(before.hits, what="the call")
    assert await aws_lab.running() == []
    await before.remove()
    first = await launch
    after = await aws_lab.fault(delay_after_s=60)
    launch = asyncio.create_task(run_instance(ec2))

    async def made() -> bool:
        return len(await aws_lab.running()) == 2

    await eventually(made, what="the instance")
    assert not launch.done()
    await after.remove()
    assert {instance.id for instance in await aws_lab.running()} == {first, await launch}


async def test_a_machine_that_is_preempted_is_terminated_by_aws(aws_lab: AwsLab) -> None:
    ec2 = client(aws_lab)
    taken = await run_instance(ec2, spot=True)
    await aws_lab.preempt(taken)
    assert await aws_lab.running() == []
    answer = await asyncio.to_thread(ec2.describe_instances, InstanceIds=[taken])
    instance = answer["Reservations"][0]["Instances"][0]
    assert instance["State"]["Name"] == "terminated"
    assert instance["StateReason"]["Code"] == "Server.SpotInstanceTermination"
