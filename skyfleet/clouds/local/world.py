"""The world: which clouds there are, what they sell where, how much of it and how fast.

Read from a TOML file (`default.toml` beside this module unless another is named):

    mode = "process"               # or "virtual": how machines run unless a request's tag says otherwise
    provisioning_delay_s = 1.0     # from accepted to running; a cloud or an instance type may have its own
    provisioning_jitter_s = 1.0    # up to this much more, drawn from the seed
    capacity = { spot = 64, on_demand = 64 }  # of each type in each zone; a cloud or a type may have its own

    [clouds.aws]
    preemption_notice_s = 120      # between a preemption's notice and the machine's end
    [clouds.aws.regions]           # no `zones`: machines are asked for by region
    us-east-1 = { zones = ["us-east-1a"], price_factor = "1.0" }
    [clouds.aws.types]             # dollars an hour as strings; without `spot` the type has no spot market
    "g5.xlarge" = { vcpus = 4, memory_gb = 16, gpu = "A10G", gpu_count = 1, gpu_memory_gb = 24,
                    on_demand = "1.006", spot = "0.4024", regions = ["us-east-1"], capacity = { spot = 2 } }

    [[spot_trace]]                 # spot capacity of one cloud follows a file: a time column, then one column a zone
    file = "trace.csv"             # relative to this file
    cloud = "aws"
    time_scale = 60.0              # seconds of the trace that pass in one second
    instance_types = ["g5.xlarge"] # default: all of the zone
    columns = { "us-east-1a" = "us-east-1a" }  # column = zone; default: columns named as zones are

A trace starts when the data folder is first used and begins again after its last row.
"""

from __future__ import annotations

import csv
import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skyfleet.domain.offers import Offer
from skyfleet.domain.states import Market

BACKEND = "local"
DEFAULT_WORLD = Path(__file__).with_name("default.toml")

Mode = Literal["process", "virtual"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Capacity(_Part):
    """How many machines can be had, by market; None: as the level above says."""

    spot: int | None = Field(default=None, ge=0)
    on_demand: int | None = Field(default=None, ge=0)

    def of(self, market: Market) -> int | None:
        """The figure for one market."""
        return self.spot if market is Market.SPOT else self.on_demand


class Region(_Part):
    """A region; without zones it is asked for as a whole."""

    zones: list[str] = []
    price_factor: Decimal = Decimal(1)


class MachineType(_Part):
    """An instance type. Prices are US dollars an hour, memory is GiB (`gpu_memory_gb` of one GPU)."""

    vcpus: int
    memory_gb: float
    gpu: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float = 0.0
    on_demand: Decimal | None = None
    spot: Decimal | None = None
    regions: list[str] | None = None
    capacity: Capacity = Capacity()
    provisioning_delay_s: float | None = Field(default=None, ge=0)


class CloudWorld(_Part):
    """One cloud."""

    preemption_notice_s: float = Field(default=30.0, ge=0)
    provisioning_delay_s: float | None = Field(default=None, ge=0)
    provisioning_jitter_s: float | None = Field(default=None, ge=0)
    capacity: Capacity = Capacity()
    regions: dict[str, Region]
    types: dict[str, MachineType]

    @model_validator(mode="after")
    def _regions_exist(self) -> CloudWorld:
        for name, machine_type in self.types.items():
            unknown = set(machine_type.regions or ()) - set(self.regions)
            if unknown:
                raise ValueError(f"{name} names regions that the cloud does not have: {', '.join(sorted(unknown))}")
        return self


class SpotTrace(_Part):
    """A recorded spot market that one cloud's spot capacity follows."""

    file: Path
    cloud: str
    time_scale: float = Field(default=1.0, gt=0)
    instance_types: list[str] | None = None
    columns: dict[str, str] | None = None


class World(_Part):
    """Everything in the file."""

    mode: Mode = "process"
    provisioning_delay_s: float = Field(default=0.0, ge=0)
    provisioning_jitter_s: float = Field(default=0.0, ge=0)
    capacity: Capacity = Capacity(spot=64, on_demand=64)
    clouds: dict[str, CloudWorld]
    spot_trace: list[SpotTrace] = []

    @model_validator(mode="after")
    def _traced_clouds_exist(self) -> World:
        for trace in self.spot_trace:
            if trace.cloud not in self.clouds:
                raise ValueError(f"spot_trace names a cloud that does not exist: {trace.cloud}")
        return self

    def offers(self) -> Iterator[Offer]:
        """Everything on sale."""
        for cloud_name, cloud in self.clouds.items():
            for type_name, machine_type in cloud.types.items():
                for region_name, region in cloud.regions.items():
                    if machine_type.regions is not None and region_name not in machine_type.regions:
                        continue
                    zones: list[str] | list[None] = region.zones or [None]
                    for zone in zones:
                        for market, price in (
                            (Market.ON_DEMAND, machine_type.on_demand),
                            (Market.SPOT, machine_type.spot),
                        ):
                            if price is not None:
                                yield Offer(
                                    backend=BACKEND,
                                    cloud=cloud_name,
                                    region=region_name,
                                    zone=zone,
                                    instance_type=type_name,
                                    market=market,
                                    hourly_price=(price * region.price_factor).quantize(Decimal("0.0001")),
                                    gpu=machine_type.gpu,
                                    gpu_count=machine_type.gpu_count,
                                    gpu_memory_gb=machine_type.gpu_memory_gb,
                                    vcpus=machine_type.vcpus,
                                    memory_gb=machine_type.memory_gb,
                                    sandbox=True,
                                )

    def capacity_of(self, offer: Offer) -> int:
        """How many of it the file says can run at a time."""
        cloud = self.clouds[offer.cloud]
        for level in (cloud.types[offer.instance_type].capacity, cloud.capacity, self.capacity):
            figure = level.of(offer.market)
            if figure is not None:
                return figure
        return 0

    def provisioning_s(self, offer: Offer) -> tuple[float, float]:
        """Delay from accepted to running, and the jitter on top of it, in seconds."""
        cloud = self.clouds[offer.cloud]
        delays = (cloud.types[offer.instance_type].provisioning_delay_s, cloud.provisioning_delay_s)
        delay = next((value for value in delays if value is not None), self.provisioning_delay_s)
        jitter = self.provisioning_jitter_s if cloud.provisioning_jitter_s is None else cloud.provisioning_jitter_s
        return delay, jitter


def load_world(path: Path | None) -> World:
    """Read a world file. Raises `OSError`, `tomllib.TOMLDecodeError` or pydantic's `ValidationError`."""
    path = path or DEFAULT_WORLD
    world = World.model_validate(tomllib.loads(path.read_text()))
    traces = [trace.model_copy(update={"file": path.parent / trace.file}) for trace in world.spot_trace]
    return world.model_copy(update={"spot_trace": traces})


@dataclass(frozen=True, slots=True)
class TraceRow:
    """Capacity by zone from `offset_s` (seconds after the trace's first row) on."""

    offset_s: float
    by_zone: dict[str, int]


def read_trace(trace: SpotTrace, zones: set[str]) -> list[TraceRow]:
    """The rows of a trace file, oldest first.

    The first column is a time (ISO 8601, UTC unless it says otherwise), every other one a zone with whole figures.
    Raises `ValueError` for a file that is not like that, or that names none of the cloud's `zones`.
    """
    with trace.file.open(newline="") as lines:
        table = csv.reader(lines)
        header = next(table, [])
        columns = trace.columns if trace.columns is not None else {name: name for name in header[1:] if name in zones}
        missing = [name for name in columns if name not in header]
        unknown = [zone for zone in columns.values() if zone not in zones]
        if missing or unknown or not columns:
            raise ValueError(
                f"{trace.file}: columns that do not exist: {missing or 'none'}; zones that {trace.cloud} does not "
                f"have: {unknown or 'none'}; columns used: {list(columns) or 'none'}"
            )
        places = [(header.index(column), zone) for column, zone in columns.items()]
        rows: list[TraceRow] = []
        start: datetime | None = None
        for cells in table:
            at = datetime.fromisoformat(cells[0])
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            start = start or at
            rows.append(TraceRow((at - start).total_seconds(), {zone: int(cells[index]) for index, zone in places}))
    if not rows or any(later.offset_s <= row.offset_s for row, later in itertools.pairwise(rows)):
        raise ValueError(f"{trace.file}: no rows, or times that do not go forward")
    return rows
