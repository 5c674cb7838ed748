"""SkyPilot's answers as offers and reasons. Rows and texts are what SkyPilot 0.14.1 really said, cut down.

The rows are from its own AWS, GCP, Azure, Lambda and RunPod catalogs, read by its `list_accelerators`; the check is
that of a server with AWS credentials only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from skyfleet.clouds.skypilot import catalog
from skyfleet.clouds.skypilot.catalog import (
    Gpu,
    SkyPilotCatalog,
    kubernetes_nodes,
    machine_of,
    parse_accelerators,
    parse_access,
    parse_nodes,
    parse_prices,
    slurm_nodes,
)
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudAccess, Offer
from skyfleet.domain.states import Market
from tests.waiting import eventually

NAN = float("nan")


class Row(NamedTuple):
    """`sky.catalog.common.InstanceTypeInfo`."""

    cloud: str
    instance_type: str | None
    accelerator_name: str
    accelerator_count: float
    cpu_count: float | None
    device_memory: float | None
    memory: float | None
    price: float | None
    spot_price: float | None
    region: str


AWS = [
    Row("AWS", "g5.xlarge", "A10G", 1.0, 4.0, 22.3515625, 16.0, 1.006, 0.4, "us-east-1"),
    Row("AWS", "g5.xlarge", "A10G", 1.0, 4.0, 22.3515625, 16.0, 1.0161, 0.404, "us-east-2"),
    Row("AWS", "p4d.24xlarge", "A100", 8.0, 96.0, 40.0, 1152.0, 21.96, 9.0, "us-east-1"),
]
GCP = [
    Row("GCP", "a2-highgpu-1g", "A100", 1.0, 12.0, 40.0, 85.0, 3.67339, 1.83671, "us-central1"),
    Row("GCP", "g2-standard-4", "L4", 1.0, 4.0, 24.0, 16.0, 0.7064699999999999, 0.28259, "us-central1"),
    Row("GCP", "n1-highmem-4", "T4", 1.0, 4.0, 16.0, 26.0, 0.5866899999999999, 0.1816, "us-central1"),
    Row("GCP", "n1-highmem-8", "T4", 1.0, 8.0, 16.0, 52.0, 0.82338, 0.2242, "us-central1"),
    Row("GCP", "n1-highmem-8", "T4", 2.0, 8.0, 16.0, 52.0, 1.1733799999999999, 0.3632, "us-central1"),
    Row("GCP", "n1-highmem-8", "V100", 1.0, 8.0, 16.0, 52.0, 2.95338, 1.0752, "us-central1"),
]
AZURE = [
    Row("Azure", "Standard_NV6ads_A10_v5", "A10", 0.167, 6.0, None, 55.0, 0.454, 0.0908, "eastus"),
    Row("Azure", "Standard_NV36ads_A10_v5", "A10", 1.0, 36.0, None, 440.0, 3.2, 0.64, "eastus"),
    Row("Azure", "Standard_NV72ads_A10_v5", "A10", 2.0, 72.0, None, 880.0, 6.52, 1.304, "eastus"),
    Row("Azure", "Standard_NC40ads_H100_v5", "H100", 1.0, 40.0, None, 320.0, NAN, NAN, "eastus"),
    Row("Azure", "Standard_NV4as_v4", "Radeon MI25", 0.125, 4.0, None, 14.0, 0.233, 0.0466, "eastus"),
    Row("Azure", "Standard_NC6s_v3", "V100", 1.0, 6.0, None, 112.0, 3.06, NAN, "centralus"),
]
LAMBDA = [Row("Lambda", "gpu_8x_v100", "V100", 8.0, 92.0, 16.0, 448.0, 6.32, NAN, "us-east-1")]
RUNPOD = [
    Row("RunPod", "1x_A100-80GB_SECURE", "A100-80GB", 1.0, 8.0, 0.078125, 117.0, 1.39, 1.39, "CA"),
    Row("RunPod", "2x_A100-80GB_SECURE", "A100-80GB", 2.0, 16.0, 0.078125, 234.0, 2.78, 2.78, "CA"),
]
KNOWN = {
    "a10": Gpu(24, "nvidia"),
    "h100": Gpu(80, "nvidia"),
    "v100": Gpu(16, "nvidia"),
    "radeon mi25": Gpu(16, "amd"),
}


def by_type(offers: list[Offer], market: Market = Market.ON_DEMAND) -> dict[str, Offer]:
    """The offers of one market by instance type; the last region of each."""
    return {offer.instance_type: offer for offer in offers if offer.market is market}


# --- offers -----------------------------------------------------------------------------------------------------


def test_a_row_becomes_an_offer_in_each_market() -> None:
    offers = parse_accelerators("aws", AWS, {}).offers
    assert {offer.key for offer in offers} == {
        "aws/us-east-1/*/g5.xlarge/on_demand",
        "aws/us-east-1/*/g5.xlarge/spot",
        "aws/us-east-2/*/g5.xlarge/on_demand",
        "aws/us-east-2/*/g5.xlarge/spot",
        "aws/us-east-1/*/p4d.24xlarge/on_demand",
        "aws/us-east-1/*/p4d.24xlarge/spot",
    }
    assert by_type(offers, Market.SPOT)["g5.xlarge"] == Offer(
        backend="skypilot",
        cloud="aws",
        region="us-east-2",
        instance_type="g5.xlarge",
        market=Market.SPOT,
        hourly_price=Decimal("0.404"),
        gpu="A10G",
        gpu_count=1,
        gpu_memory_gb=22.35,
        vcpus=4,
        memory_gb=16.0,
    )
    assert by_type(offers)["p4d.24xlarge"].total_gpu_memory_gb == 320


def test_a_price_that_is_missing_is_no_offer() -> None:
    offers = parse_accelerators("azure", AZURE, KNOWN).offers
    assert "Standard_NC40ads_H100_v5" not in by_type(offers)
    assert "Standard_NC6s_v3" in by_type(offers)
    assert "Standard_NC6s_v3" not in by_type(offers, Market.SPOT)


def test_prices_are_exact_to_a_millionth() -> None:
    assert by_type(parse_accelerators("gcp", GCP, {}).offers)["g2-standard-4"].hourly_price == Decimal("0.706470")


def test_gpu_memory_that_a_catalog_does_not_state_is_looked_up() -> None:
    offers = by_type(parse_accelerators("azure", AZURE, KNOWN).offers)
    assert offers["Standard_NV72ads_A10_v5"].gpu_memory_gb == 24
    assert offers["Standard_NV72ads_A10_v5"].gpu_count == 2


def test_a_gpu_of_unknown_memory_is_named_and_left_out() -> None:
    sold = parse_accelerators("azure", AZURE, {"v100": KNOWN["v100"]})
    assert set(by_type(sold.offers)) == {"Standard_NC6s_v3"}
    assert sold.unknown == {"A10", "H100", "Radeon MI25"}


def test_gpus_that_the_engines_cannot_use_are_left_out() -> None:
    sold = parse_accelerators("azure", AZURE, KNOWN)
    assert "Standard_NV4as_v4" not in by_type(sold.offers)
    assert not sold.unknown


def test_a_part_of_a_gpu_is_another_gpu() -> None:
    part = by_type(parse_accelerators("azure", AZURE, KNOWN).offers)["Standard_NV6ads_A10_v5"]
    assert (part.gpu, part.gpu_count, part.gpu_memory_gb) == ("1/6 A10", 1, 4.0)
    # AWS's catalog states the part's own memory
    g6f = Row("AWS", "g6f.large", "L4", 0.125, 2.0, 2.794, 8.0, 0.2, 0.1, "us-east-1")
    part = by_type(parse_accelerators("aws", [g6f], {}).offers)["g6f.large"]
    assert (part.gpu, part.gpu_count, part.gpu_memory_gb) == ("1/8 L4", 1, 2.79)


def test_gpu_memory_in_a_wrong_unit_is_put_right() -> None:
    offers = by_type(parse_accelerators("runpod", RUNPOD, {}).offers)
    assert [offer.gpu_memory_gb for offer in offers.values()] == [80, 80]


def test_gpu_memory_summed_over_a_machine_is_not_taken_for_one_gpus() -> None:
    vast = [
        Row("Vast", "1x-RTX4090-32-65536", "RTX4090", 1.0, 32.0, 24.0, 64.0, 0.4, 0.2, "SE"),
        Row("Vast", "4x-RTX4090-128-262144", "RTX4090", 4.0, 128.0, 96.0, 256.0, 1.6, 0.8, "SE"),
    ]
    offers = by_type(parse_accelerators("vast", vast, {}).offers)
    assert offers["4x-RTX4090-128-262144"].total_gpu_memory_gb == 96


def test_one_type_in_several_shapes_is_offered_at_its_lowest_price() -> None:
    dearer = AWS[0]._replace(cpu_count=8.0, price=2.0)
    offers = parse_accelerators("aws", [dearer, AWS[0]], {}).offers
    assert by_type(offers)["g5.xlarge"].hourly_price == Decimal("1.006")
    assert len({offer.key for offer in offers}) == len(offers)


def test_gpus_that_are_attached_to_a_type_tell_its_offers_apart() -> None:
    offers = by_type(parse_accelerators("gcp", GCP, {}).offers)
    assert set(offers) == {
        "a2-highgpu-1g",
        "g2-standard-4",
        "n1-highmem-4",
        "n1-highmem-8--T4:1",
        "n1-highmem-8--T4:2",
        "n1-highmem-8--V100:1",
    }
    # without its accelerators, GCP would make a machine that has none
    assert machine_of(offers["n1-highmem-8--T4:2"]) == ("n1-highmem-8", {"T4": 2})
    assert machine_of(offers["n1-highmem-4"]) == ("n1-highmem-4", {"T4": 1})
    assert machine_of(by_type(parse_accelerators("aws", AWS, {}).offers)["g5.xlarge"]) == ("g5.xlarge", None)


# --- one's own clusters -----------------------------------------------------------------------------------------


SLURM = [
    {
        "node_name": name,
        "slurm_cluster_name": "alpha",
        "node_state": "idle",
        "gpu_type": gpu,
        "total_gpus": gpus,
        "free_gpus": gpus,
        "vcpu_count": 64,
        "memory_gb": 256.0,
        "partition": partition,
    }
    for name, gpu, gpus, partition in (
        ("alpha1", "H100", 8, "gpu*,drained"),
        ("alpha2", "H100", 8, "gpu*,drained"),
        ("alpha3", None, 0, "gpu*"),
    )
]


def test_a_node_is_sold_in_parts() -> None:
    offers = parse_nodes("slurm", slurm_nodes(SLURM), KNOWN, {}).offers
    assert {(offer.zone, offer.gpu_count) for offer in offers} == {
        (partition, count) for partition in ("gpu", "drained") for count in (1, 2, 4, 8)
    }
    assert len(offers) == 8
    one = next(offer for offer in offers if offer.gpu_count == 1)
    assert one.instance_type == "7CPU--28GB--H100:1"
    assert (one.region, one.vcpus, one.memory_gb, one.gpu_memory_gb) == ("alpha", 7, 28.0, 80)
    assert {offer.hourly_price for offer in offers} == {0}
    assert machine_of(one) == ("7CPU--28GB--H100:1", None)


def test_all_of_an_odd_number_of_gpus_can_be_had() -> None:
    row = {**SLURM[0], "total_gpus": 6, "partition": "gpu"}
    offers = parse_nodes("slurm", slurm_nodes([row]), KNOWN, {}).offers
    assert sorted(offer.gpu_count for offer in offers) == [1, 2, 4, 6]


def test_a_cluster_that_has_a_price_keeps_it() -> None:
    listed = [Row("slurm", None, "H100", 2, 64, 0.0, 256.0, 4.2, 4.2, "gpu*,drained")]
    elsewhere = [Row("slurm", None, "H100", 2, 64, 0.0, 256.0, 9.9, 9.9, "gpu*")]
    set_prices = parse_prices("alpha", listed) | parse_prices("beta", elsewhere)
    offers = parse_nodes("slurm", slurm_nodes(SLURM), KNOWN, set_prices).offers
    prices = {(offer.zone, offer.gpu_count): offer.hourly_price for offer in offers}
    assert prices[("gpu", 2)] == prices[("drained", 2)] == Decimal("4.2")
    assert prices[("gpu", 1)] == 0


def test_only_kubernetes_nodes_that_take_work_are_sold() -> None:
    def node(**changes: Any) -> SimpleNamespace:
        usual = {
            "accelerator_type": "H100",
            "total": {"accelerator_count": 1},
            "cpu_count": 16.0,
            "memory_gb": 100.0,
            "is_ready": True,
            "is_cordoned": False,
        }
        return SimpleNamespace(**{**usual, **changes})

    away = [
        node(is_ready=False),
        node(is_cordoned=True),
        node(accelerator_type=None),
        node(accelerator_type="tpu-v5-lite-podslice"),
        node(total={"accelerator_count": 0}),
    ]
    assert kubernetes_nodes("prod", away) == []
    offers = parse_nodes("kubernetes", kubernetes_nodes("prod", [*away, node()]), KNOWN, {}).offers
    assert [offer.key for offer in offers] == ["kubernetes/prod/*/14CPU--90GB--H100:1/on_demand"]


# --- access -----------------------------------------------------------------------------------------------------


CHECK = """\
Checking credentials to enable infra for SkyPilot.
\x1b[32m\x1b[22m  AWS: enabled [compute, storage]\x1b[0m\x1b[0m
    Activated account: AKIAIOSFODNN7EXAMPLE [account=123456789012]
    Hint [compute, storage]: \x1b[93mAWS env is set. To set up static credentials, try: aws configure\x1b[0m
\x1b[2m  Azure: disabled \x1b[0m\x1b[0m
    Reason [compute, storage]: ~/.azure/msal_token_cache.json does not exist. Run the following commands:
      $ az login
      $ az account set -s <subscription_id>
    For more info: https://docs.microsoft.com/en-us/cli/azure/get-started-with-azure-cli
\x1b[2m  Cloudflare: disabled \x1b[0m\x1b[0m
    Reason [compute, storage]: [r2] profile is not set in ~/.cloudflare/r2.credentials.
\x1b[2m  DO: disabled \x1b[0m\x1b[0m
    Reason [compute]: Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/sky/check.py", line 213, in check_one_cloud_one_capability
    ok, reason = cloud.check_credentials(capability)
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ModuleNotFoundError: No module named 'azure'
\x1b[2m  Nebius: disabled \x1b[0m\x1b[0m
    Reason [compute]: Credentials can be set up by running: 
      $ nebius iam get-access-token > ~/.nebius/NEBIUS_IAM_TOKEN.txt 
     or generate  ~/.nebius/credentials.json
    Reason [storage]: [nebius] profile is not set in ~/.aws/credentials.
\x1b[2m  vSphere: disabled \x1b[0m\x1b[0m
    Reason [compute]: vSphere dependencies are not installed. Run the following commands:
      $ pip install skypilot[vSphere]

\x1b[32m🎉 Enabled infra 🎉\x1b[0m
  \x1b[32mAWS [compute, storage]\x1b[0m
\x1b[2m
To enable a cloud, follow the hints above and rerun: \x1b[0m\x1b[1msky check\x1b[0m
"""  # noqa: W291  (as it was written)


def test_each_cloud_that_is_not_enabled_has_its_reason() -> None:
    found = {access.cloud: access for access in parse_access(CHECK, ["aws"], ["Cloudflare"])}
    assert found["aws"] == CloudAccess(cloud="aws", enabled=True)
    assert {cloud: access.reason.splitlines()[0] for cloud, access in found.items() if not access.enabled} == {
        "azure": "~/.azure/msal_token_cache.json does not exist. Run the following commands:",
        "do": "ModuleNotFoundError: No module named 'azure'",
        "nebius": "Credentials can be set up by running:",
        "vsphere": "vSphere dependencies are not installed. Run the following commands:",
    }
    assert found["azure"].reason.splitlines()[1:] == [
        "  $ az login",
        "  $ az account set -s <subscription_id>",
        "For more info: https://docs.microsoft.com/en-us/cli/azure/get-started-with-azure-cli",
    ]
    assert found["vsphere"].reason.endswith("pip install skypilot[vSphere]")
    assert "profile" not in found["nebius"].reason


def test_a_cloud_enabled_for_storage_alone_is_not_one_to_launch_on() -> None:
    said = CHECK.replace("Nebius: disabled ", "Nebius: enabled [storage]")
    found = {access.cloud: access for access in parse_access(said, ["aws"])}
    assert not found["nebius"].enabled
    assert found["nebius"].reason.startswith("Credentials can be set up")


def test_a_cloud_that_the_configuration_bars_says_so() -> None:
    said = CHECK.replace(
        "\n\x1b[2m\nTo enable",
        "\nNote: The following clouds were disabled because they were not included in allowed_clouds in "
        "~/.sky/config.yaml: GCP, Lambda\n\x1b[2m\nTo enable",
    )
    found = {access.cloud: access.reason for access in parse_access(said, ["aws"])}
    assert found["gcp"] == found["lambda"] == "not in allowed_clouds of SkyPilot's configuration"


def test_what_is_enabled_is_known_though_the_check_reads_otherwise() -> None:
    assert parse_access("a later version's words", ["aws", "gcp"]) == [
        CloudAccess(cloud="aws", enabled=True),
        CloudAccess(cloud="gcp", enabled=True),
    ]


# --- asking -----------------------------------------------------------------------------------------------------


@dataclass
class FakeServer:
    """Answers by the name of the SDK's function: a value, an error to raise, or a function of the arguments."""

    answers: dict[str, Any]
    asked: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None  # `run` waits for it

    async def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.held is not None:
            await self.held.wait()
        return self._answer(call, args, kwargs)

    async def call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._answer(call, args, kwargs)

    def _answer(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.asked.append(call.__name__)
        answer = self.answers[call.__name__]
        if isinstance(answer, Exception):
            raise answer
        return answer(*args, **kwargs) if callable(answer) else answer


@pytest.fixture
def server() -> FakeServer:
    """Two enabled clouds."""

    def listed(**asked: Any) -> dict[str, list[Row]]:
        assert asked["gpus_only"]
        assert asked["all_regions"]
        rows = {"aws": AWS, "azure": AZURE}[asked["clouds"][0]]
        return {"any": rows}

    return FakeServer(
        {
            "_gpu_table": KNOWN,
            "enabled_clouds": lambda expand=False: ["aws", "azure"],
            "list_accelerators": listed,
            "check": None,
        }
    )


async def test_all_enabled_clouds_are_read_and_remembered(server: FakeServer) -> None:
    known = SkyPilotCatalog(server)
    offers = await known.offers()
    assert {offer.cloud for offer in offers} == {"aws", "azure"}
    asked = len(server.asked)
    assert await known.offers() == offers
    assert len(server.asked) == asked


async def test_after_a_check_the_catalog_is_read_anew(server: FakeServer) -> None:
    known = SkyPilotCatalog(server)
    await known.offers()
    server.answers["enabled_clouds"] = lambda expand=False: ["azure"]
    assert [access.cloud for access in await known.access() if access.enabled] == ["azure"]
    assert {offer.cloud for offer in await known.offers()} == {"azure"}


async def test_a_cloud_that_cannot_be_read_keeps_what_it_had(server: FakeServer) -> None:
    known = SkyPilotCatalog(server)
    before = await known.offers()
    await known.access()
    listed = server.answers["list_accelerators"]

    def half(**asked: Any) -> Any:
        if asked["clouds"] == ["aws"]:
            raise RuntimeError("the catalog's CSV is broken")
        return listed(**asked)

    server.answers["list_accelerators"] = half
    assert await known.offers() == before


async def test_a_server_that_does_not_answer_is_no_empty_catalog(server: FakeServer) -> None:
    server.answers["enabled_clouds"] = CloudUnreachable("away")
    known = SkyPilotCatalog(server)
    with pytest.raises(CloudUnreachable):
        await known.offers()
    server.answers["enabled_clouds"] = lambda expand=False: ["aws"]
    assert await known.offers()


async def test_what_the_server_refuses_is_a_refusal(server: FakeServer) -> None:
    server.answers["enabled_clouds"] = PermissionError("not your workspace")
    with pytest.raises(CloudError, match="PermissionError: not your workspace"):
        await SkyPilotCatalog(server).offers()
    server.answers["enabled_clouds"] = TimeoutError()
    with pytest.raises(CloudUnreachable):
        await SkyPilotCatalog(server).offers()


async def test_offers_do_without_the_table_of_gpus(server: FakeServer) -> None:
    server.answers["_gpu_table"] = OSError("no network")
    assert {offer.cloud for offer in await SkyPilotCatalog(server).offers()} == {"aws"}


async def test_a_long_check_is_waited_for_again_not_begun_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_PATIENCE_SECONDS", 0.01)
    server.held = asyncio.Event()
    known = SkyPilotCatalog(server)
    for _ in range(2):
        with pytest.raises(CloudUnreachable, match="still checking"):
            await known.access()
    server.held.set()
    await eventually(lambda: "enabled_clouds" in server.asked, what="the end of the check")
    assert [access.cloud for access in await known.access()] == ["aws", "azure"]
    assert server.asked.count("check") == 1


async def test_offers_are_those_of_before_while_new_ones_are_read(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_GPUS_FRESH_SECONDS", 0.0)
    known = SkyPilotCatalog(server)
    before = await known.offers()
    await known.access()
    monkeypatch.setattr(catalog, "_PATIENCE_SECONDS", 0.01)
    server.held = asyncio.Event()
    server.answers["enabled_clouds"] = lambda expand=False: ["azure"]
    assert await known.offers() == before
    server.held.set()
    await eventually(lambda: _clouds(known, {"azure"}), what="the new catalog")


async def _clouds(known: SkyPilotCatalog, clouds: set[str]) -> bool:
    return {offer.cloud for offer in await known.offers()} == clouds


async def test_a_first_catalog_that_takes_long_is_no_empty_one(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_PATIENCE_SECONDS", 0.01)
    server.held = asyncio.Event()
    with pytest.raises(CloudUnreachable, match="still being read"):
        await SkyPilotCatalog(server).offers()
    server.held.set()


async def test_slurm_and_kubernetes_are_read_from_their_nodes(server: FakeServer) -> None:
    node = SimpleNamespace(
        accelerator_type="V100",
        total={"accelerator_count": 1},
        cpu_count=8.0,
        memory_gb=64.0,
        is_ready=True,
        is_cordoned=False,
    )
    contexts = {"prod": SimpleNamespace(node_info_dict={"n1": node})}
    priced = {
        "alpha": {},
        "prod": {"V100": [Row("Kubernetes", None, "V100", 1, None, None, None, 2.5, 2.5, "prod")]},
    }
    server.answers |= {
        "enabled_clouds": lambda expand=False: (
            ["slurm/alpha", "kubernetes/prod"] if expand else ["slurm", "kubernetes"]
        ),
        "slurm_node_info": SLURM,
        "kubernetes_node_info": contexts.__getitem__,
        "list_accelerators": lambda **asked: priced[asked["region_filter"]],
    }
    offers = await SkyPilotCatalog(server).offers()
    assert {(offer.cloud, offer.region, offer.gpu, offer.hourly_price) for offer in offers if offer.gpu_count == 1} == {
        ("slurm", "alpha", "H100", 0),
        ("kubernetes", "prod", "V100", Decimal("2.5")),
    }
