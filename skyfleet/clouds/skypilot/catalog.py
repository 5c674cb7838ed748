"""What the clouds sell that SkyPilot is enabled for, and why it is not enabled for the others.

Prices, regions, instance types and their GPUs are those of SkyPilot's catalog, as its server has it. Clusters of one's
own (Slurm, Kubernetes) have no catalog: their nodes are asked, and sold in parts of one, two, four, … GPUs.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudAccess, Offer
from skyfleet.domain.states import Market

_log = logging.getLogger(__name__)

T = TypeVar("T")

BACKEND: Final = "skypilot"

#: SkyPilot's server reads prices anew every seven hours; what is enabled changes when a person acts.
_FRESH_SECONDS: Final = 300.0
#: `sky check` talks to every cloud. Who asks waits this long, and may ask again for the same answer.
_PATIENCE_SECONDS: Final = 20.0
_CHECK_SECONDS: Final = 300.0
_GPUS_FRESH_SECONDS: Final = 86_400.0
_GPUS_RETRY_SECONDS: Final = 3_600.0
_GPUS_SECONDS: Final = 20.0

#: No GPUs, though listed among them. Left out by the server: TPUs among its rows keep it from reading the GPU memory of
#: all the others in GCP's catalog (`list_accelerators_impl` in `sky/catalog/common.py`).
_GPU_NAMES: Final = "^(?!tpu|inferentia|trainium)"
#: What the engines' wheels are built for (CUDA).
_MANUFACTURER: Final = "nvidia"
#: Clouds whose instance types do not say their GPUs: some are attached to a machine that is sold without.
_GPUS_ATTACHED: Final = frozenset({"gcp"})
_OWN: Final = frozenset({"slurm", "kubernetes"})
#: Of a node's CPUs and memory, what its GPUs are sold with; the rest is kubelet's, slurmd's and the system's.
_NODE_SHARE: Final = 0.9
_MICRO: Final = Decimal("0.000001")


#: Cluster, partition (Kubernetes: the context again), GPU, and how many.
_Part: TypeAlias = tuple[str, str, str, int]


class Listed(Protocol):
    """A row of SkyPilot's catalog: `sky.catalog.common.InstanceTypeInfo`.

    Memory is GiB, of one GPU and of the machine; prices are US dollars an hour, NaN or None where there is none.
    """

    @property
    def instance_type(self) -> str | None: ...
    @property
    def accelerator_name(self) -> str: ...
    @property
    def accelerator_count(self) -> float: ...
    @property
    def cpu_count(self) -> float | None: ...
    @property
    def device_memory(self) -> float | None: ...
    @property
    def memory(self) -> float | None: ...
    @property
    def price(self) -> float | None: ...
    @property
    def spot_price(self) -> float | None: ...
    @property
    def region(self) -> str: ...


@dataclass(frozen=True)
class Gpu:
    """A GPU in SkyPilot's own table; memory is GiB."""

    memory_gb: float
    manufacturer: str


@dataclass(frozen=True)
class Node:
    """A machine with GPUs in a cluster of one's own. `zone` is Slurm's partition; memory is GiB."""

    cluster: str
    zone: str | None
    gpu: str
    gpus: int
    vcpus: float
    memory_gb: float


@dataclass
class Sold:
    """Offers, and the GPUs whose machines are left out because nobody says how much memory they have."""

    offers: list[Offer] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


def machine_of(offer: Offer) -> tuple[str, dict[str, int] | None]:
    """`instance_type` and `accelerators` of SkyPilot's resources for an offer of this catalog."""
    if offer.cloud not in _GPUS_ATTACHED or offer.gpu is None:
        return offer.instance_type, None
    return offer.instance_type.partition("--")[0], {offer.gpu: offer.gpu_count}


# --- reading what SkyPilot answers ------------------------------------------------------------------------------------


def parse_accelerators(cloud: str, rows: Iterable[Listed], known: Mapping[str, Gpu]) -> Sold:
    """The offers of a cloud's catalog; `known` are GPUs known from elsewhere, by name in lower case.

    SkyPilot lists each instance type once a region, at its cheapest zone's spot price, so offers have no zone. A part
    of a GPU is a GPU of another name (`1/6 A10`): whoever asks for an A10 wants a whole one.
    """
    rows = [row for row in rows if row.instance_type]
    stated = _stated_memory(rows)
    built_in = _built_in(rows)
    found: dict[str, Offer] = {}
    sold = Sold()
    for row in rows:
        name, count = row.accelerator_name, row.accelerator_count
        model = known.get(name.lower())
        if model is not None and model.manufacturer != _MANUFACTURER:
            continue
        if count >= 1:
            gpu, gpus = name, int(count)
            memory = stated.get(name) or (model.memory_gb if model else None)
        else:
            part = Fraction(count).limit_denominator(16)
            gpu, gpus = f"{part} {name}", 1
            memory = _gib(row.device_memory) or (float(model.memory_gb * part) if model else None)
        if memory is None:
            sold.unknown.add(name)
            continue
        instance_type = str(row.instance_type)
        if len(built_in[instance_type]) > 1:
            instance_type = f"{instance_type}--{name}:{count:g}"
        for market, amount in ((Market.ON_DEMAND, row.price), (Market.SPOT, row.spot_price)):
            price = _number(amount)
            if not price:  # a cloud that asks for nothing is one whose price is not known
                continue
            offer = Offer(
                backend=BACKEND,
                cloud=cloud,
                region=row.region,
                instance_type=instance_type,
                market=market,
                hourly_price=Decimal(str(price)).quantize(_MICRO),
                gpu=gpu,
                gpu_count=gpus,
                gpu_memory_gb=round(memory, 2),
                vcpus=int(_number(row.cpu_count) or 0),
                memory_gb=_number(row.memory) or 0.0,
            )
            # Some clouds sell one type in several shapes.
            same = found.get(offer.key)
            if same is None or offer.hourly_price < same.hourly_price:
                found[offer.key] = offer
    sold.offers = list(found.values())
    return sold


def parse_nodes(
    cloud: str,
    nodes: Iterable[Node],
    known: Mapping[str, Gpu],
    prices: Mapping[_Part, Decimal],
) -> Sold:
    """The offers of one's own cluster: a node's GPUs in powers of two, and all of them, each with its part of the rest.

    They cost what SkyPilot's configuration says (`prices`), else nothing. The instance type is SkyPilot's own name of
    such a part (`7CPU--28GB--H100:1`).
    """
    found: dict[str, Offer] = {}
    sold = Sold()
    for node in nodes:
        model = known.get(node.gpu.lower())
        if model is None:
            sold.unknown.add(node.gpu)
            continue
        if model.manufacturer != _MANUFACTURER:
            continue
        for count in {1 << power for power in range(node.gpus.bit_length())} | {node.gpus}:
            part = _NODE_SHARE * count / node.gpus
            vcpus, memory = max(1, int(node.vcpus * part)), int(node.memory_gb * part)
            offer = Offer(
                backend=BACKEND,
                cloud=cloud,
                region=node.cluster,
                zone=node.zone,
                instance_type=f"{vcpus}CPU--{memory}GB--{node.gpu.replace(' ', '_')}:{count}",
                market=Market.ON_DEMAND,
                hourly_price=prices.get((node.cluster, node.zone or node.cluster, node.gpu, count), Decimal(0)),
                gpu=node.gpu,
                gpu_count=count,
                gpu_memory_gb=model.memory_gb,
                vcpus=vcpus,
                memory_gb=float(memory),
            )
            found[offer.key] = offer
    sold.offers = list(found.values())
    return sold


def parse_prices(cluster: str, rows: Iterable[Listed]) -> dict[_Part, Decimal]:
    """What the parts of one's own cluster cost, where SkyPilot's configuration says that they cost something."""
    return {
        (cluster, place, row.accelerator_name, int(row.accelerator_count)): Decimal(str(price)).quantize(_MICRO)
        for row in rows
        if (price := _number(row.price))
        for place in _partitions(row.region)
    }


def _partitions(listed: str) -> list[str]:
    """Slurm's partitions, of which the default has a mark (sinfo(1), `%P`)."""
    return [name.rstrip("*") for name in listed.split(",")]


def slurm_nodes(rows: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes with GPUs of `sky.client.sdk.slurm_node_info`, once for each of their partitions."""
    return [
        Node(
            cluster=row["slurm_cluster_name"],
            zone=partition,
            gpu=row["gpu_type"],
            gpus=int(row["total_gpus"]),
            vcpus=_number(row["vcpu_count"]) or 0.0,
            memory_gb=_number(row["memory_gb"]) or 0.0,
        )
        for row in rows
        if row["gpu_type"] and row["total_gpus"]
        for partition in _partitions(row["partition"])
    ]


def kubernetes_nodes(context: str, nodes: Iterable[Any]) -> list[Node]:
    """The nodes with GPUs of a context (`sky.models.KubernetesNodeInfo`) that take work."""
    return [
        Node(
            cluster=context,
            zone=None,
            gpu=node.accelerator_type,
            gpus=int(node.total["accelerator_count"]),
            vcpus=node.cpu_count or 0.0,
            memory_gb=node.memory_gb or 0.0,
        )
        for node in nodes
        if node.accelerator_type
        and re.match(_GPU_NAMES, node.accelerator_type, re.IGNORECASE)
        and node.total.get("accelerator_count")
        and node.is_ready
        and not node.is_cordoned
    ]


def parse_access(said: str, enabled: Collection[str], storage_only: Collection[str] = ()) -> list[CloudAccess]:
    """Each cloud that `sky check` spoke of, and each that is `enabled` for machines.

    `said` is what the check wrote; a cloud's reason is what stands there beneath its name. `storage_only` are names
    that the check knows and nobody can launch on. Names are taken in any case.
    """
    said = _ANSI.sub("", said)
    wrote: dict[str, str] = {}
    # text before the first cloud, then name and text of each
    _, *blocks = _CHECKED.split(said)
    for name, block in zip(blocks[::2], blocks[1::2], strict=True):
        reasons = _REASON.split(_SUMMARY.split(block)[0])
        for kind, abilities, text in zip(reasons[1::3], reasons[2::3], reasons[3::3], strict=True):
            if kind == "Reason" and "compute" in abilities:
                wrote[name.lower()] = _reason(text)
        wrote.setdefault(name.lower(), "")
    for names in _BARRED.findall(said):
        wrote |= {
            name.strip().lower(): "not in allowed_clouds of SkyPilot's configuration" for name in names.split(",")
        }
    on = {name.lower() for name in enabled}
    off = wrote.keys() - on - {name.lower() for name in storage_only}
    return [
        *(CloudAccess(cloud=cloud, enabled=True) for cloud in sorted(on)),
        *(CloudAccess(cloud=cloud, enabled=False, reason=wrote[cloud]) for cloud in sorted(off)),
    ]


_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_CHECKED: Final = re.compile(r"^  (\w+): (?:enabled|disabled)\b.*$", re.MULTILINE)
_REASON: Final = re.compile(r"^    (Reason|Hint) \[([^\]]*)\]: ", re.MULTILINE)
_SUMMARY: Final = re.compile(r"^.*Enabled infra.*$", re.MULTILINE)
_BARRED: Final = re.compile(r"not included in allowed_clouds.*: (.+)$", re.MULTILINE)


def _reason(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    if lines and lines[0].startswith("Traceback"):
        return lines[-1]  # the check itself failed: the error says more than where
    return "\n".join(line.removeprefix("    ") for line in lines)


def _stated_memory(rows: Iterable[Listed]) -> dict[str, float]:
    """GPU memory by name. The least of what is stated: Vast's catalog states the sum of a machine's GPUs."""
    stated: dict[str, float] = {}
    for row in rows:
        memory = _gib(row.device_memory)
        if memory and row.accelerator_count >= 1:
            stated[row.accelerator_name] = min(memory, stated.get(row.accelerator_name, memory))
    return stated


def _built_in(rows: Iterable[Listed]) -> dict[str, set[tuple[str, float]]]:
    """The GPUs that each instance type is listed with: several, if they are attached to it."""
    found: dict[str, set[tuple[str, float]]] = {}
    for row in rows:
        found.setdefault(str(row.instance_type), set()).add((row.accelerator_name, row.accelerator_count))
    return found


def _gib(stated: float | None) -> float | None:
    """GPU memory in GiB. What RunPod's and Shadeform's catalogs state as MiB is GiB; no GPU has less than one."""
    memory = _number(stated)
    if not memory:
        return None
    return memory * 1024 if memory < 1 else memory


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)  # NaN is not itself


# --- asking -----------------------------------------------------------------------------------------------------------


class Sdk(Protocol):
    """What is needed of `SkyPilotServer`."""

    async def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of the SDK returns."""
        ...

    async def call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of the request that a function of the SDK makes."""
        ...


class _Shared(Generic[T]):
    """Work that goes on by itself once it is asked for: all who ask while it does wait for the same result."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """What the work comes to. Raises `TimeoutError` when it takes long; to ask again is to go on waiting."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
            # Seen to here, should nobody ask again.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        task = self._task
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(task)
        finally:
            if task.done() and self._task is task:
                self._task = None


class SkyPilotCatalog:
    """The catalog of the clouds that a SkyPilot server is enabled for, remembered for minutes."""

    def __init__(self, server: Sdk) -> None:
        self._server = server
        self._checking = _Shared(self._check)
        self._reading = _Shared(self._read)
        self._sold: dict[str, list[Offer]] = {}  # by cloud; one that cannot be read keeps what it had
        self._read_at = float("-inf")
        self._gpus: dict[str, Gpu] = {}
        self._gpus_due = float("-inf")
        self._unknown: set[str] = set()

    async def offers(self) -> list[Offer]:
        """What is on sale, as read some minutes ago at most. Raises `CloudError`, `CloudUnreachable`."""
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            try:
                await self._reading.result()
            except TimeoutError:
                if not self._sold:
                    raise CloudUnreachable("SkyPilot's catalog is still being read") from None
        return [offer for offers in self._sold.values() for offer in offers]

    async def access(self) -> list[CloudAccess]:
        """Have SkyPilot check its clouds; the next `offers` reads anew. Raises `CloudError`, `CloudUnreachable`."""
        try:
            return await self._checking.result()
        except TimeoutError:
            raise CloudUnreachable("SkyPilot is still checking its clouds") from None

    async def _check(self) -> list[CloudAccess]:
        from sky.check import STORAGE_ONLY_CLOUDS
        from sky.client import sdk

        said = io.StringIO()

        def check() -> None:
            # Why a cloud is not enabled is in no result, only in what the check writes.
            sdk.stream_and_get(sdk.check(None, verbose=True), output_stream=said)

        async with _in_our_terms(), asyncio.timeout(_CHECK_SECONDS):
            await self._server.run(check)
            enabled = await self._server.call(sdk.enabled_clouds)
        self._read_at = float("-inf")
        return parse_access(said.getvalue(), enabled, STORAGE_ONLY_CLOUDS)

    async def _read(self) -> None:
        from sky.client import sdk

        self._read_at = time.monotonic()  # a check that ends meanwhile sets it back
        try:
            await self._read_gpus()
            async with _in_our_terms():
                infra: list[str] = await self._server.call(sdk.enabled_clouds, expand=True)
            sold: dict[str, list[Offer]] = {}
            unknown: set[str] = set()
            for cloud in sorted({name.partition("/")[0].lower() for name in infra}):
                try:
                    async with _in_our_terms():
                        found = await self._read_cloud(cloud, infra)
                except CloudError as failure:  # the other clouds are not to blame
                    _log.warning("what %s sells could not be read: %s", cloud, failure)
                    sold[cloud] = self._sold.get(cloud, [])
                    continue
                sold[cloud] = found.offers
                unknown |= found.unknown
        except BaseException:
            self._read_at = float("-inf")
            raise
        if unknown - self._unknown:
            _log.warning("not offered, as nobody says how much memory they have: %s", ", ".join(sorted(unknown)))
        self._sold, self._unknown = sold, unknown

    async def _read_cloud(self, cloud: str, infra: list[str]) -> Sold:
        if cloud not in _OWN:
            return await asyncio.to_thread(parse_accelerators, cloud, await self._listed(cloud), self._gpus)
        nodes = await (self._slurm_nodes() if cloud == "slurm" else self._kubernetes_nodes(infra))
        prices: dict[_Part, Decimal] = {}
        for cluster in sorted({node.cluster for node in nodes}):
            prices |= parse_prices(cluster, await self._listed(cloud, cluster))
        return parse_nodes(cloud, nodes, self._gpus, prices)

    async def _listed(self, cloud: str, region: str | None = None) -> list[Listed]:
        from sky.client import sdk

        by_gpu = await self._server.call(
            sdk.list_accelerators,
            gpus_only=True,  # without it one row that has no GPU takes the GPU memory from all
            name_filter=_GPU_NAMES,
            region_filter=region,
            clouds=[cloud],
            all_regions=True,
            case_sensitive=False,
        )
        return [row for rows in by_gpu.values() for row in rows]

    async def _slurm_nodes(self) -> list[Node]:
        from sky.client import sdk

        return slurm_nodes(await self._server.call(sdk.slurm_node_info))

    async def _kubernetes_nodes(self, infra: list[str]) -> list[Node]:
        from sky.client import sdk

        nodes: list[Node] = []
        for context in [name.partition("/")[2] for name in infra if name.startswith("kubernetes/")]:
            info = await self._server.call(sdk.kubernetes_node_info, context)
            nodes += kubernetes_nodes(context, info.node_info_dict.values())
        return nodes

    async def _read_gpus(self) -> None:
        """SkyPilot's table of GPUs. Azure's catalog, Slurm and Kubernetes say nothing of GPU memory."""
        if time.monotonic() < self._gpus_due:
            return
        try:
            async with asyncio.timeout(_GPUS_SECONDS):
                self._gpus = await self._server.run(_gpu_table)
        except Exception as failure:  # the client downloads it, which fails in many ways; offers can do without
            _log.warning("SkyPilot's table of GPUs could not be read: %s: %s", type(failure).__name__, failure)
            self._gpus_due = time.monotonic() + _GPUS_RETRY_SECONDS
        else:
            self._gpus_due = time.monotonic() + _GPUS_FRESH_SECONDS


@asynccontextmanager
async def _in_our_terms() -> AsyncIterator[None]:
    """SkyPilot's errors, of whatever class, as `CloudError`; no answer in time as `CloudUnreachable`."""
    try:
        yield
    except (CloudError, CloudUnreachable):
        raise
    except TimeoutError as failure:
        raise CloudUnreachable("SkyPilot's API server gave no answer in time") from failure
    except Exception as failure:
        name = type(failure).__name__
        raise CloudError(BACKEND, f"{name}: {failure}", code=name) from failure


def _gpu_table() -> dict[str, Gpu]:
    from sky.catalog.common import read_catalog

    table = read_catalog("common/metadata.csv", pull_frequency_hours=24)
    return {
        str(name).lower(): Gpu(float(memory), str(manufacturer).lower())
        for name, memory, manufacturer in zip(table["GPU"], table["MemoryGB"], table["Manufacturer"], strict=True)
    }
