"""The error classifier: the shared data file, our own table of variants, and properties that hold for any text."""

from __future__ import annotations

import json
import os
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyfleet.domain.classifier import classify, engine_error, timeout_error
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import Market

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SKYFLEET_SHARED_DATA") or ROOT.parent / "shared" / "data")
SHARED_FILE = SHARED / "errors" / "provisioning-errors.json"
VARIANTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "provisioning-error-variants.json").read_text()
)
SHARED_ENTRIES: list[dict[str, Any]] = json.loads(SHARED_FILE.read_text()) if SHARED_FILE.exists() else []

CLOUDS = [
    "aws gcp azure lambda runpod kubernetes oci vast nebius fluidstack paperspace cudo ibm do digitalocean vsphere",
    "hyperbolic primeintellect seeweb shadeform slurm scp ssh skypilot local sandbox acme",
]
ANY_CLOUD = st.sampled_from([cloud for line in CLOUDS for cloud in line.split()])


def _label(entry: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", f"{entry['cloud']}-{entry['raw'][:60]}")


def _decision(error: ClassifiedError) -> tuple[str, str, bool]:
    return error.kind.value, error.scope.value, error.retryable


def _expected(entry: dict[str, Any]) -> tuple[str, str, bool]:
    return entry["kind"], entry["scope"], entry["retryable"]


@pytest.mark.skipif(not SHARED_ENTRIES, reason=f"no shared data at {SHARED_FILE}; set SKYFLEET_SHARED_DATA")
def test_every_entry_of_the_shared_data_gets_its_class() -> None:
    wrong = {
        entry["raw"]: (decision, _expected(entry))
        for entry in SHARED_ENTRIES
        if (decision := _decision(classify(entry["cloud"], entry["raw"]))) != _expected(entry)
    }
    assert wrong == {}


def test_the_table_of_variants_is_large_and_wide() -> None:
    assert len(VARIANTS) >= 150
    assert len({entry["cloud"] for entry in VARIANTS}) >= 20


@pytest.mark.parametrize("entry", VARIANTS, ids=_label)
def test_variant(entry: dict[str, Any]) -> None:
    error = classify(entry["cloud"], entry["raw"])
    assert _decision(error) == _expected(entry)
    assert error.raw == entry["raw"]
    assert error.message
    assert error.next_steps


def _traceback(raw: str) -> str:
    return (
        'Traceback (most recent call last):\n  File "/opt/sky/provision/provisioner.py", line 141, in bulk_provision\n'
        f"    return _bulk_provision(cloud, region, cluster_name)\n{raw}"
    )


def _log(raw: str) -> str:
    lines = "\n".join(f"E 10-11 07:21:13 provisioner.py:152] {line}" for line in raw.split("\n"))
    return f"I 10-11 07:21:11 provisioner.py:72] Launching\n{lines}"


WRAPPINGS = {
    "traceback": _traceback,
    "json": json.dumps,
    "json in json": lambda raw: json.dumps({"detail": json.dumps({"body": raw})}),
    "repr": repr,
    "log": _log,
    "ansi": lambda raw: f"\x1b[31m{raw}\x1b[0m",
    "skypilot": lambda raw: f"sky.exceptions.ResourcesUnavailableError: {raw}",
}


@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_wrapping_changes_nothing(wrapping: Any) -> None:
    moved = {}
    for entry in (*VARIANTS, *SHARED_ENTRIES):
        plain = classify(entry["cloud"], entry["raw"])
        if plain.kind is ErrorKind.UNKNOWN:
            continue  # a wrapper that names a cause is then the only one
        decision = _decision(classify(entry["cloud"], wrapping(entry["raw"])))
        if decision != _decision(plain):
            moved[entry["raw"]] = (decision, _decision(plain))
    assert moved == {}


@given(
    raw=st.text(max_size=400), cloud=st.one_of(ANY_CLOUD, st.text(max_size=12)), code=st.none() | st.text(max_size=30)
)
@settings(deadline=None, max_examples=300)
def test_total_and_deterministic(raw: str, cloud: str, code: str | None) -> None:
    first = classify(cloud, raw, code=code)
    assert first == classify(cloud, raw, code=code)
    assert first.raw == raw
    assert first.retryable == (first.kind not in (ErrorKind.AUTH, ErrorKind.CONFIG, ErrorKind.ENGINE))


@given(raw=st.binary(max_size=400), cloud=ANY_CLOUD)
@settings(deadline=None)
def test_binary_junk(raw: bytes, cloud: str) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    assert classify(cloud, text).model_dump_json()


@given(pieces=st.lists(st.sampled_from([e["raw"] for e in VARIANTS]), min_size=1, max_size=6), cloud=ANY_CLOUD)
@settings(deadline=None, max_examples=100)
def test_any_pile_of_errors_is_classified(pieces: list[str], cloud: str) -> None:
    assert classify(cloud, "\n".join(pieces)).kind is not ErrorKind.UNKNOWN or len(pieces) < 6


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "(",
        "\\",
        "no ",
        "quota ",
        "not ",
        "x.",
        "zone ",
        "https://",
        "A-",
        "1",
        '"code": ',
        "is ",
        "\n",
        "exceed ",
        "A.",
        "a_",
        "Ab/",
        "reason=",
        "in zone-",
        "is not ",
        "no capacity ",
        "subnet ",
        "credentials ",
        "waiting ",
        "image ",
        "ssl ",
        "limit a ",
        "projects/a",
        "in a-b1",
    ],
)
def test_long_repetitions_take_bounded_time(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    started = time.monotonic()
    classify("skypilot", text)
    # 48 KB of it are read; the bound is generous for a busy machine, and a catastrophic pattern takes minutes.
    assert time.monotonic() - started < 15


def test_the_cause_is_found_at_both_ends_of_a_huge_log() -> None:
    cause = "An error occurred (VcpuLimitExceeded) when calling the RunInstances operation: no"
    filler = "D 10-11 07:21:13 provisioner.py:150] waiting\n" * 100_000
    for raw in (cause + "\n" + filler, filler + cause):
        assert classify("aws", raw).kind is ErrorKind.QUOTA


AWS_ZONE = st.from_regex(r"\A(us|eu|ap)-(east|west|central|south)-[1-4][a-f]\Z")
GCP_REGION = st.from_regex(r"\A(us|europe|asia)-(east|west|central)[1-9]\Z")
AWS_TYPE = st.from_regex(r"\A[gp][3-6][a-z]{0,2}\.(xlarge|(2|4|8|12|16|24|48)xlarge)\Z")
QUOTA = st.from_regex(
    r"\A(PREEMPTIBLE_|COMMITTED_)?(NVIDIA_(A100|H100|L4|T4)_GPUS|CPUS|SSD_TOTAL_GB|IN_USE_ADDRESSES)\Z"
)


@given(zone=AWS_ZONE, machine=AWS_TYPE)
@settings(deadline=None)
def test_names_do_not_change_aws_capacity(zone: str, machine: str) -> None:
    error = classify(
        "aws",
        "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: We currently do not "
        f"have sufficient {machine} capacity in the Availability Zone you requested ({zone}).",
    )
    assert _decision(error) == ("capacity", "zone", True)
    assert zone in error.message
    assert machine in error.message


@given(quota=QUOTA, region=GCP_REGION, limit=st.integers(0, 10_000))
@settings(deadline=None)
def test_names_do_not_change_gcp_quota(quota: str, region: str, limit: int) -> None:
    error = classify("gcp", f"Quota '{quota}' exceeded.  Limit: {limit}.0 in region {region}.")
    assert _decision(error) == ("quota", "region", True)
    assert quota in error.message
    assert f"limit {limit}" in error.message
    assert region in error.message


@given(quota=QUOTA, limit=st.integers(0, 10_000))
@settings(deadline=None)
def test_a_global_gcp_quota_blocks_the_cloud(quota: str, limit: int) -> None:
    assert _decision(classify("gcp", f"Quota '{quota}' exceeded.  Limit: {limit}.0 globally.")) == (
        "quota",
        "cloud",
        True,
    )


@pytest.mark.parametrize("spell", [str.lower, str.upper, lambda text: text], ids=["lower", "upper", "as is"])
def test_codes_are_read_in_any_case(spell: Any) -> None:
    raw = spell("An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: x")
    assert _decision(classify("aws", raw)) == ("capacity", "zone", True)


def test_a_code_given_apart_is_used() -> None:
    error = classify("aws", "it did not work", code="VcpuLimitExceeded")
    assert _decision(error) == ("quota", "region", True)
    assert error.code == "VcpuLimitExceeded"


def test_a_lasting_cause_beats_a_call_that_was_throttled_on_the_way() -> None:
    throttled = (
        "An error occurred (RequestLimitExceeded) when calling the DescribeInstances operation: Request limit exceeded."
    )
    full = "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: none"
    for raw in (f"{throttled}\n{full}", f"{full}\n{throttled}"):
        assert classify("aws", raw).kind is ErrorKind.CAPACITY


def test_a_look_up_that_finds_nothing_is_not_the_cause() -> None:
    raw = (
        "An error occurred (InvalidGroup.NotFound) when calling the DescribeSecurityGroups operation: no such group\n"
        "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: none"
    )
    assert classify("aws", raw).kind is ErrorKind.CAPACITY


def test_auth_beats_capacity() -> None:
    raw = (
        "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: none\n"
        "An error occurred (ExpiredToken) when calling the RunInstances operation: The provided token has expired."
    )
    assert classify("aws", raw).kind is ErrorKind.AUTH


@pytest.mark.parametrize("wrapper", ["skypilot", "local", "sandbox"])
def test_the_real_cloud_is_read_from_the_text(wrapper: str) -> None:
    error = classify(
        wrapper, "(SkuNotAvailable) The requested VM size 'Standard_NC6s_v3' is not available in location 'eastus'."
    )
    assert error.cloud == "azure"
    assert _decision(error) == ("capacity", "region", True)


def test_spot_capacity_offers_a_region_on_demand_and_waiting() -> None:
    error = classify(
        "aws",
        "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: There is no Spot "
        "capacity available in us-east-1a for p3.2xlarge.",
    )
    steps = " ".join(error.next_steps).lower()
    assert "spot" in error.message
    assert "us-east-1a" in error.message
    assert "another region" in steps
    assert "on-demand" in steps
    assert "wait" in steps


def test_azure_quota_names_quota_limit_and_place() -> None:
    error = classify(
        "azure",
        "(QuotaExceeded) Operation could not be completed as it results in exceeding approved Standard "
        "NCASv3_T4 Family Cores quota. Location: eastus, Current Limit: 8, Current Usage: 4, Additional Required: 16",
    )
    for part in ("Standard NCASv3_T4 Family Cores", "limit 8", "in use 4", "asked for 16", "eastus"):
        assert part in error.message


@pytest.mark.parametrize(
    ("cloud", "command"), [("aws", "aws sts"), ("gcp", "gcloud auth"), ("azure", "az login"), ("kubernetes", "kubectl")]
)
def test_refused_credentials_say_what_to_run(cloud: str, command: str) -> None:
    error = classify(cloud, "HTTP 401 Unauthorized: invalid credentials")
    assert error.kind is ErrorKind.AUTH
    assert any(command in step for step in error.next_steps)


def test_where_there_is_capacity_is_offered_first() -> None:
    error = classify(
        "lambda",
        "instance-operations/launch/insufficient-capacity: Not enough capacity to fulfill launch request. "
        "Regions with capacity available: us-west-1",
    )
    assert "us-west-1" in error.next_steps[0]
    assert "us-west-1" not in error.message


def test_timeout_error_names_stage_time_and_causes() -> None:
    error = timeout_error("aws", "loading model", 900, "42 % of the weights")
    assert _decision(error) == ("timeout", "zone", True)
    assert "loading model" in error.message
    assert "15 min" in error.message
    assert "42 % of the weights" in error.message
    assert error.next_steps[0] != timeout_error("aws", "registering node", 900, "").next_steps[0]


def test_engine_error_keeps_its_log_and_names_a_cause() -> None:
    error = engine_error("gcp", "exit code 1", ["starting", "torch.OutOfMemoryError: CUDA out of memory."])
    assert (error.kind, error.scope, error.retryable) == (ErrorKind.ENGINE, ErrorScope.ACCOUNT, False)
    assert error.raw.endswith("CUDA out of memory.")
    assert "GPU memory" in error.next_steps[0]


def test_unknown_falls_to_the_next_place() -> None:
    assert _decision(classify("aws", "")) == ("unknown", "zone", True)


def test_what_was_asked_for_fills_in_what_the_cloud_left_unsaid() -> None:
    """AWS says the same of a spot machine as of any other; the person asked for spot and is told of spot."""
    offer = Offer(
        backend="local",
        cloud="oci",
        region="us-ashburn-1",
        zone=None,
        instance_type="VM.GPU.A10.1",
        market=Market.SPOT,
        hourly_price=Decimal(1),
    )
    error = classify("oci", "Out of host capacity.", offer=offer)
    assert error.message.startswith("No spot capacity for VM.GPU.A10.1")
    assert "us-ashburn-1" in error.message
    assert any("on-demand" in step for step in error.next_steps)
    plain = classify("oci", "Out of host capacity.")
    assert (error.kind, error.scope, error.retryable) == (plain.kind, plain.scope, plain.retryable)


@pytest.mark.parametrize(
    ("said", "decision", "where"),
    [
        ("Job 18 did not get nodes allocated", ("capacity", "zone", True), "in partition gpu of Slurm cluster alpha"),
        ("slurm: Invalid credential", ("auth", "region", False), "Slurm"),
        ("JOBID 991 PD (QOSMaxGRESPerUser)", ("quota", "region", True), "on Slurm cluster alpha"),
    ],
)
def test_what_one_s_own_cluster_refuses_another_may_grant(
    said: str, decision: tuple[str, str, bool], where: str
) -> None:
    """A region of theirs is a cluster; the text seldom says which, the offer does."""
    offer = Offer(
        backend="skypilot",
        cloud="slurm",
        region="alpha",
        zone="gpu",
        instance_type="7CPU--28GB--H100:1",
        market=Market.ON_DEMAND,
        hourly_price=Decimal(0),
    )
    error = classify("slurm", said, offer=offer)
    assert _decision(error) == decision
    assert where in error.message
    if error.kind.value == "capacity":
        assert any("another cluster" in step for step in error.next_steps)


@pytest.mark.parametrize(
    "said",
    [
        "An error occurred (InvalidPermission.Duplicate) when calling the AuthorizeSecurityGroupIngress operation: the "
        'specified rule "peer: 0.0.0.0/0, TCP, from port: 8000, to port: 8000, ALLOW" already exists',
        "An error occurred (InvalidGroup.Duplicate) when calling the CreateSecurityGroup operation: The security group "
        "'sky-sg-skyfleet' already exists for VPC 'vpc-1'",
    ],
)
def test_a_firewall_that_another_launch_made_first_is_no_fault_of_anybodys(said: str) -> None:
    error = classify("aws", said)
    assert (error.kind, error.retryable) == (ErrorKind.TRANSIENT, True)
