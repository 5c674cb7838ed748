"""Capacity, concurrency, injected faults, wordings, preemption and its notices, and the bill."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyfleet.clouds.local import ledger, wording
from skyfleet.clouds.local.faults import FaultRule, Faults
from skyfleet.clouds.local.world import SpotTrace, load_world, read_trace
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudInstance, InstanceState
from skyfleet.domain.states import Market
from tests.localcloud.harness import QUICK_WORLD, RunningCloud, offer_of, request_for, running_cloud
from tests.waiting import eventually

AWS_SPOT = "aws/us-east-1/us-east-1a/g5.xlarge/spot"
AWS = "aws/us-east-1/us-east-1a/g5.xlarge/on_demand"
GCP_SPOT = "gcp/us-central1/us-central1-a/n1-standard-4/spot"
AZURE_SPOT = "azure/eastus/*/Standard_NV36ads_A10_v5/spot"
AZURE = "azure/eastus/*/Standard_NV36ads_A10_v5/on_demand"
LAMBDA = "lambda/us-west-1/*/gpu_1x_a10/on_demand"


async def create(cloud: RunningCloud, key: str, name: str, **options: Any) -> CloudInstance:
    return await cloud.client.create(request_for(await offer_of(cloud, key), name, **options))


async def reach(cloud: RunningCloud, name: str, state: InstanceState) -> CloudInstance:
    async def there() -> CloudInstance | None:
        machine = await cloud.client.get(name)
        return machine if machine is not None and machine.state is state else None

    machine = await eventually(there, timeout_s=10, interval_s=0.02, what=f"{name} {state}")
    assert machine is not None
    return machine


# --- concurrency and capacity ---------------------------------------------------------------------------------


async def test_200_creates_of_one_name_make_one_machine(cloud: RunningCloud) -> None:
    request = request_for(await offer_of(cloud, AWS), "one-name")
    answers = await asyncio.gather(*(cloud.client.create(request) for _ in range(200)))
    assert len({answer.id for answer in answers}) == 1
    assert len(await cloud.bench.ledger(name="one-name")) == 1


async def test_capacity_is_never_oversold(cloud: RunningCloud) -> None:
    offer = await offer_of(cloud, AWS)
    answers = await asyncio.gather(
        *(cloud.client.create(request_for(offer, f"oversold-{n}")) for n in range(40)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, CloudError)]
    assert len(answers) - len(refused) == 8
    assert {error.code for error in refused} == {"InsufficientInstanceCapacity"}
    (pool,) = await cloud.bench.capacity(
        cloud="aws", zone="us-east-1a", instance_type="g5.xlarge", market=Market.ON_DEMAND
    )
    assert (pool["capacity"], pool["used"], pool["free"]) == (8, 8, 0)
    made = next(answer.name for answer in answers if isinstance(answer, CloudInstance))
    await cloud.client.terminate(made)
    await reach(cloud, made, InstanceState.TERMINATED)
    await cloud.client.create(request_for(offer, "oversold-again"))


async def test_capacity_of_a_type_overrides_its_clouds(cloud: RunningCloud) -> None:
    await create(cloud, "aws/us-east-1/us-east-1a/p3.2xlarge/spot", "few-1")
    with pytest.raises(CloudError, match=r"sufficient p3\.2xlarge capacity"):
        await create(cloud, "aws/us-east-1/us-east-1a/p3.2xlarge/spot", "few-2")


async def test_capacity_is_set_by_wildcard_and_given_back(cloud: RunningCloud) -> None:
    await cloud.bench.set_capacity(0, cloud="aws", market="spot")
    with pytest.raises(CloudError):
        await create(cloud, AWS_SPOT, "wild-1")
    await create(cloud, AWS, "wild-2")
    await create(cloud, GCP_SPOT, "wild-3")
    await cloud.bench.set_capacity(None, cloud="aws", region="us-east-1")
    await create(cloud, AWS_SPOT, "wild-1")
    with pytest.raises(CloudError):
        await create(cloud, "aws/eu-west-1/eu-west-1a/g5.xlarge/spot", "wild-4")
    with pytest.raises(CloudError, match="nothing is sold"):
        await cloud.bench.set_capacity(1, cloud="aws", zone="us-central1-a")


async def test_lowered_capacity_takes_the_youngest_spot_machines_only_when_told_to(cloud: RunningCloud) -> None:
    for n in range(3):
        await create(cloud, GCP_SPOT, f"reclaim-{n}")
    await cloud.bench.set_capacity(1, cloud="gcp")
    assert (await reach(cloud, "reclaim-2", InstanceState.RUNNING)).termination_reason is None
    base = f"{cloud.url}/metadata/{(await cloud.bench.ledger(name='reclaim-2'))[0]['id']}"
    kept = f"{cloud.url}/metadata/{(await cloud.bench.ledger(name='reclaim-0'))[0]['id']}"
    path, headers = "computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as machine:
        assert (await machine.get(f"{base}/{path}")).text == "FALSE"
        await cloud.bench.set_capacity(1, cloud="gcp", reclaim=True)
        assert (await machine.get(f"{base}/{path}")).text == "TRUE"
        assert (await machine.get(f"{kept}/{path}")).text == "FALSE"


async def test_spot_capacity_follows_a_trace(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "time,us-east-1a,elsewhere\n2023-02-15 22:00:00,2,0\n2023-02-15 22:10:00,1,0\n2023-02-15 22:20:00,1,0\n"
    )
    world = QUICK_WORLD.replace("preemption_notice_s = 120", "preemption_notice_s = 0.1")
    world += '\n[[spot_trace]]\nfile = "trace.csv"\ncloud = "aws"\ntime_scale = 120\ninstance_types = ["g5.xlarge"]\n'
    async with running_cloud(tmp_path, config=world) as cloud:  # 22:10 is 5 s after the start
        await create(cloud, AWS_SPOT, "trace-1")
        await create(cloud, AWS_SPOT, "trace-2")
        with pytest.raises(CloudError, match=r"do not have sufficient g5\.xlarge"):
            await create(cloud, AWS_SPOT, "trace-3")
        await create(cloud, AWS, "trace-on-demand")
        await create(cloud, "aws/us-east-1/us-east-1b/g5.xlarge/spot", "trace-other-zone")
        taken = await reach(cloud, "trace-2", InstanceState.TERMINATED)
        assert taken.termination_reason == "preempted"
        assert (await reach(cloud, "trace-1", InstanceState.RUNNING)).termination_reason is None
        (pool,) = await cloud.bench.capacity(zone="us-east-1a", instance_type="g5.xlarge", market="spot")
        assert (pool["capacity"], pool["used"], pool["set_by"]) == (1, 1, "trace")


def test_a_trace_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("time_utc,a,b\n2025-10-04T00:10Z,16,0\n2025-10-04T00:20Z,9,3\n")
    rows = read_trace(SpotTrace(file=file, cloud="gcp", columns={"a": "zone-1"}), {"zone-1"})
    assert [(row.offset_s, row.by_zone) for row in rows] == [(0.0, {"zone-1": 16}), (600.0, {"zone-1": 9})]
    for broken in ("time,c\n2025-10-04T00:10Z,1\n", "time,a\n", "time,a\nnow,1\n", "time,a\n2025-10-04T00:10Z,x\n"):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r".+"):
            read_trace(SpotTrace(file=file, cloud="gcp"), {"a"})


def test_the_default_world_sells_what_the_contract_names() -> None:
    offers = {(offer.cloud, offer.region, offer.instance_type): offer for offer in load_world(None).offers()}
    for cloud, regions, types in (
        ("azure", ("eastus", "westus2", "centralus"), ("Standard_NV36ads_A10_v5", "Standard_NC6s_v3")),
        ("aws", ("us-east-1", "us-west-2", "eu-west-1"), ("g4dn.xlarge", "g5.xlarge")),
        ("gcp", ("us-central1", "europe-west1"), ("n1-standard-4", "a2-highgpu-1g")),
    ):
        for region in regions:
            for instance_type in types:
                assert offers[cloud, region, instance_type].sandbox
    assert offers["aws", "us-east-1", "g5.xlarge"].gpu_memory_gb == 24
    assert offers["aws", "us-east-1", "p5.48xlarge"].total_gpu_memory_gb == 640


# --- faults -----------------------------------------------------------------------------------------------------


async def test_a_named_error_has_the_real_clouds_words(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"real": "VcpuLimitExceeded"}, match={"operation": "create", "cloud": "aws"})
    with pytest.raises(CloudError) as refused:
        await create(cloud, AWS, "named")
    assert refused.value.raw.startswith("An error occurred (VcpuLimitExceeded) when calling the RunInstances operation")
    assert (refused.value.cloud, refused.value.code) == ("aws", "VcpuLimitExceeded")
    assert refused.value.request_id
    await create(cloud, AWS, "named")


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        (AWS_SPOT, "InsufficientInstanceCapacity", "Availability Zone you requested (us-east-1a)"),
        (GCP_SPOT, "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "zones/us-central1-a' does not have enough resources"),
        (AZURE_SPOT, "SkuNotAvailable", "Standard_NV36ads_A10_v5' is currently not available in location 'eastus'"),
        (AZURE, "AllocationFailed", "We do not have sufficient capacity for the requested VM size in this region"),
        (LAMBDA, "instance-operations/launch/insufficient-capacity", "Not enough capacity to fulfill launch request"),
    ],
)
async def test_no_capacity_is_said_as_each_cloud_says_it(cloud: RunningCloud, key: str, code: str, words: str) -> None:
    await cloud.bench.set_capacity(0)
    with pytest.raises(CloudError) as refused:
        await create(cloud, key, "no-capacity")
    assert refused.value.code == code
    assert words in refused.value.raw


async def test_other_zones_are_named_only_if_they_have_some(cloud: RunningCloud) -> None:
    await cloud.bench.set_capacity(0, cloud="aws", zone="us-east-1a")
    with pytest.raises(CloudError, match="or choosing us-east-1b"):
        await create(cloud, AWS, "other-zones")
    await cloud.bench.set_capacity(0, cloud="aws", zone="us-east-1b")
    with pytest.raises(CloudError) as refused:
        await create(cloud, AWS, "other-zones")
    assert "choosing" not in refused.value.raw


def test_every_wording_can_be_filled_in() -> None:
    place = wording.Place("aws", "us-east-1", "us-east-1a", "g5.xlarge", Market.SPOT, 4, ("us-east-1b",))
    for code in wording.known_codes():
        raw = wording.real(code, place).raw
        assert raw
        assert "{" not in raw


async def test_rules_match_count_and_end(cloud: RunningCloud) -> None:
    match = {"operation": "create", "region": "us-east-1", "market": "on_demand", "name": "count-*"}
    rule = await cloud.bench.add_fault({"error": {"code": "Made", "raw": "up", "status": 418}}, times=2, match=match)
    await create(cloud, AWS, "other-1")
    await create(cloud, AWS_SPOT, "count-spot")
    for _ in range(2):
        with pytest.raises(CloudError, match="up"):
            await create(cloud, AWS, "count-1")
    await create(cloud, AWS, "count-1")
    assert [(one["id"], one["hits"]) for one in await cloud.bench.faults()] == [(rule, 2)]


def test_probability_is_drawn_from_the_seed(tmp_path: Path) -> None:
    def draws(seed: int) -> list[bool]:
        book = ledger.Ledger(tmp_path / f"{seed}.sqlite3")
        book.remove_faults()
        faults = Faults(book, random.Random(seed))
        rule = {"times": None, "probability": 0.5, "then": {"rate_limit": True}}
        faults.add(FaultRule.model_validate(rule))
        return [faults.strike("get").effect.rate_limit for _ in range(100)]

    assert draws(1) == draws(1) != draws(2)
    assert 30 < sum(draws(1)) < 70


async def test_every_operation_can_fail(cloud: RunningCloud) -> None:
    await create(cloud, AWS, "operations")
    operations = {
        "offers": cloud.client.offers,
        "list": lambda: cloud.client.list("tests"),
        "get": lambda: cloud.client.get("operations"),
        "terminate": lambda: cloud.client.terminate("operations"),
    }
    for operation, ask in operations.items():
        await cloud.bench.add_fault({"rate_limit": True}, match={"operation": operation})
        with pytest.raises(CloudError):
            await ask()
        await ask()


async def test_a_rate_limit_is_said_as_the_machines_cloud_says_it(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"rate_limit": True}, match={"operation": "create", "cloud": "lambda"})
    with pytest.raises(CloudError, match="Your API requests are being rate limited"):
        await create(cloud, LAMBDA, "limited")


async def test_a_server_error_without_the_clouds_words_says_nothing_about_state(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"error": {"status": 502}}, match={"operation": "terminate"})
    await create(cloud, AWS, "gateway")
    with pytest.raises(CloudUnreachable):
        await cloud.client.terminate("gateway")
    await reach(cloud, "gateway", InstanceState.RUNNING)


async def test_a_lost_reply_leaves_the_machine_and_a_retry_finds_it(cloud: RunningCloud) -> None:
    # For as often as it is asked: the HTTP client repeats a PUT by itself where it used a connection before.
    await cloud.bench.add_fault({"drop_reply": True}, times=None, match={"operation": "create"})
    with pytest.raises(CloudUnreachable):
        await create(cloud, AWS, "lost-reply")
    await cloud.bench.clear_faults()
    (entry,) = await cloud.bench.ledger(name="lost-reply")
    again = await create(cloud, AWS, "lost-reply")
    assert again.id == entry["id"]
    assert len(await cloud.bench.ledger(name="lost-reply")) == 1


async def test_a_create_that_arrives_after_its_terminate_yields_nothing(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"delay_before_s": 0.3}, match={"operation": "create", "name": "late-create"})
    late = asyncio.ensure_future(create(cloud, AWS, "late-create"))

    async def struck() -> bool:
        return bool((await cloud.bench.faults())[0]["hits"])

    await eventually(struck, what="the delayed create")
    await cloud.client.terminate("late-create")
    with pytest.raises(CloudError) as refused:
        await late
    assert refused.value.code == "NameRetired"
    assert await cloud.bench.ledger(name="late-create") == []


async def test_a_late_reply_comes_after_the_machine_exists(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"delay_after_s": 0.5}, match={"operation": "create", "name": "late-reply"})
    late = asyncio.ensure_future(create(cloud, AWS, "late-reply"))
    machine = await reach(cloud, "late-reply", InstanceState.RUNNING)
    assert not late.done()
    assert (await late).id == machine.id


async def test_a_failed_boot_says_why_and_is_billed_until_then(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"boot_fails": "Server.InternalError: boot disk lost"}, match={"operation": "create"})
    await create(cloud, AWS, "boot-fails")
    with pytest.raises(CloudError, match="boot disk lost") as failed:
        [step async for step in cloud.client.progress("boot-fails")]
    assert failed.value.cloud == "aws"
    ended = await reach(cloud, "boot-fails", InstanceState.TERMINATED)
    assert ended.termination_reason == "boot_failed"
    assert ended.running_at is None


async def test_a_slow_boot_and_one_that_never_ends(cloud: RunningCloud) -> None:
    await cloud.bench.add_fault({"boot_delay_s": 0.4}, match={"name": "slow"})
    await cloud.bench.add_fault({"never_boots": True}, match={"name": "never"})
    await create(cloud, AWS, "slow")
    await create(cloud, AWS, "never")
    steps = [step.state async for step in cloud.client.progress("slow")]
    assert steps == [InstanceState.PENDING, InstanceState.RUNNING]
    slow = await reach(cloud, "slow", InstanceState.RUNNING)
    assert slow.running_at is not None
    assert slow.running_at - slow.created_at >= timedelta(seconds=0.39)
    never = await cloud.client.get("never")
    assert never is not None
    assert never.state is InstanceState.PENDING
    await cloud.client.terminate("never")
    await reach(cloud, "never", InstanceState.TERMINATED)


async def test_bad_requests_are_told_what_is_wrong(cloud: RunningCloud) -> None:
    for then in ({"real": "NoSuchCode"}, {"rate_limit": True, "real": "InternalError"}, {"unknown": 1}):
        with pytest.raises(CloudError) as refused:
            await cloud.bench.add_fault(then)
        assert refused.value.code == "InvalidRequest"
    with pytest.raises(CloudError):
        await create(cloud, AWS, "a name with spaces")
    async with httpx.AsyncClient(base_url=cloud.url, trust_env=False) as raw:
        secret = {"boot": {"registration_token": "hush"}}
        answer = await raw.put("/v1/instances/x", content=json.dumps(secret))
        assert answer.status_code == 422
        assert "hush" not in answer.text
        assert (await raw.get("/v1/instances/x/wait?state=odd")).status_code == 422
        assert (await raw.get("/v1/instances/x/wait?timeout=nan")).status_code == 422
        assert (await raw.get("/v1/nowhere")).status_code == 404


# --- preemption and metadata ------------------------------------------------------------------------------------


async def test_a_preempted_machine_is_announced_then_taken(cloud: RunningCloud) -> None:
    await create(cloud, AWS_SPOT, "taken")
    await reach(cloud, "taken", InstanceState.RUNNING)
    await cloud.bench.preempt("taken", notice_s=0.2)
    ended = await reach(cloud, "taken", InstanceState.TERMINATED)
    assert ended.termination_reason == "preempted"
    with pytest.raises(CloudError, match="is terminated"):
        await cloud.bench.preempt("taken")
    await create(cloud, AWS, "kept")
    with pytest.raises(CloudError, match="not a spot machine"):
        await cloud.bench.preempt("kept")


async def test_aws_metadata(cloud: RunningCloud) -> None:
    machine = await create(cloud, AWS_SPOT, "imds")
    base = f"{cloud.url}/metadata/{machine.id}/latest"
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{base}/meta-data/instance-id")).status_code == 401
        assert (await http.put(f"{base}/api/token")).status_code == 400
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        token = {"X-aws-ec2-metadata-token": (await http.put(f"{base}/api/token", headers=ttl)).text}
        forged = {"X-aws-ec2-metadata-token": token["X-aws-ec2-metadata-token"][:-1] + "x"}
        assert (await http.get(f"{base}/meta-data/instance-id", headers=forged)).status_code == 401
        for path, value in (
            ("instance-id", machine.id),
            ("instance-type", "g5.xlarge"),
            ("placement/availability-zone", "us-east-1a"),
        ):
            assert (await http.get(f"{base}/meta-data/{path}", headers=token)).text == value
        for path in ("spot/instance-action", "events/recommendations/rebalance"):
            assert (await http.get(f"{base}/meta-data/{path}", headers=token)).status_code == 404
        await cloud.bench.preempt("imds")
        action = (await http.get(f"{base}/meta-data/spot/instance-action", headers=token)).json()
        assert action["action"] == "terminate"
        left = datetime.fromisoformat(action["time"]) - datetime.now(UTC)
        assert timedelta(seconds=110) < left <= timedelta(seconds=120)
        assert (await http.get(f"{base}/meta-data/events/recommendations/rebalance", headers=token)).status_code == 200
        other = f"{cloud.url}/metadata/{machine.id}/computeMetadata/v1/instance/preempted"
        assert (await http.get(other, headers={"Metadata-Flavor": "Google"})).status_code == 404


async def test_gcp_metadata(cloud: RunningCloud) -> None:
    machine = await create(cloud, GCP_SPOT, "gce")
    base = f"{cloud.url}/metadata/{machine.id}/computeMetadata/v1/instance"
    google = {"Metadata-Flavor": "Google"}
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{base}/preempted")).status_code == 403
        assert (await http.get(f"{base}/preempted", headers=google)).text == "FALSE"
        assert (await http.get(f"{base}/id", headers=google)).text == machine.id
        assert (await http.get(f"{base}/zone", headers=google)).text.endswith("/zones/us-central1-a")
        assert (await http.get(f"{base}/machine-type", headers=google)).text.endswith("/machineTypes/n1-standard-4")
        unchanged = await http.get(f"{base}/preempted?wait_for_change=true&timeout_sec=0", headers=google)
        assert unchanged.text == "FALSE"
        held = asyncio.ensure_future(http.get(f"{base}/preempted?wait_for_change=true", headers=google))
        await reach(cloud, "gce", InstanceState.RUNNING)
        assert not held.done()
        await cloud.bench.preempt("gce", notice_s=30)
        assert (await asyncio.wait_for(held, 5)).text == "TRUE"
        event = await http.get(f"{base}/maintenance-event", headers=google)
        assert event.text == "TERMINATE_ON_HOST_MAINTENANCE"


async def test_azure_metadata(cloud: RunningCloud) -> None:
    machine = await create(cloud, AZURE_SPOT, "vm")
    base = f"{cloud.url}/metadata/{machine.id}/metadata"
    async with httpx.AsyncClient(trust_env=False, params={"api-version": "2020-07-01"}) as http:
        assert (await http.get(f"{base}/scheduledevents")).status_code == 400
        http.headers["Metadata"] = "true"
        assert (await http.get(f"{base}/scheduledevents")).json()["Events"] == []
        compute = (await http.get(f"{base}/instance/compute")).json()
        assert (compute["vmId"], compute["vmSize"], compute["priority"], compute["location"]) == (
            machine.id,
            "Standard_NV36ads_A10_v5",
            "Spot",
            "eastus",
        )
        await cloud.bench.preempt("vm")
        (event,) = (await http.get(f"{base}/scheduledevents")).json()["Events"]
        assert (event["EventType"], event["Resources"]) == ("Preempt", ["vm"])
        left = parsedate_to_datetime(event["NotBefore"]) - datetime.now(UTC)
        assert timedelta(seconds=25) < left <= timedelta(seconds=30)


# --- the bill ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "elapsed", "seconds", "cost"),
    [
        ("1.006", timedelta(hours=1), 3600, "1.006000"),
        ("3.60", timedelta(seconds=1), 1, "0.001000"),
        ("3.60", timedelta(seconds=1, microseconds=1), 2, "0.002000"),
        ("98.32", timedelta(days=30), 2_592_000, "70790.400000"),
        ("0.2104", timedelta(seconds=59.999), 60, "0.003507"),
        ("1", timedelta(0), 0, "0.000000"),
    ],
)
def test_the_billing_rule(price: str, elapsed: timedelta, seconds: int, cost: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert ledger.billed_seconds(start, start + elapsed) == seconds
    assert str(ledger.cost(Decimal(price), seconds)) == cost


async def test_the_ledger_agrees_with_the_clock_and_the_price(cloud: RunningCloud) -> None:
    await create(cloud, "aws/eu-west-1/eu-west-1a/g5.xlarge/on_demand", "billed", owner="accounts")
    await reach(cloud, "billed", InstanceState.RUNNING)
    (running,) = await cloud.bench.ledger(owner="accounts")
    assert running["state"] == "running"
    assert running["billed_seconds"] >= 1
    await cloud.client.terminate("billed")
    await reach(cloud, "billed", InstanceState.TERMINATED)
    (entry,) = await cloud.bench.ledger(owner="accounts")
    assert entry["hourly_price"] == "1.1066"
    lived = datetime.fromisoformat(entry["terminated_at"]) - datetime.fromisoformat(entry["created_at"])
    assert entry["billed_seconds"] == -(-lived // timedelta(seconds=1))
    assert Decimal(entry["cost"]) == (Decimal("1.1066") * entry["billed_seconds"] / 3600).quantize(Decimal("0.000001"))
    assert (entry["termination_reason"], entry["mode"], entry["sandbox"]) == ("requested", "virtual", True)
    summary = await cloud.bench.summary(owner="accounts")
    assert (summary["instances"], summary["by_state"]["terminated"], summary["living"]) == (1, 1, [])
    assert summary["cost"] == entry["cost"]
