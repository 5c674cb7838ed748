"""SkyPilot's catalog of AWS, cut down to a few regions and instance types, in place of the one that it downloads.

Files as in SkyPilot 0.14 (catalog schema v8). SkyPilot takes a file without a checksum beside it for the user's own,
and never refreshes it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCHEMA = "v8"
#: Region to the prefix of its zones' ids. Prices rise from one to the next, so that their order is certain.
REGIONS = {"us-east-1": "use1", "us-east-2": "use2", "us-west-2": "usw2"}
#: One that moto ships in every region.
IMAGE = "ami-785db401"


@dataclass(frozen=True)
class InstanceType:
    """One row; prices are those of the first region, in USD an hour."""

    name: str
    vcpus: int
    memory_gib: int
    price: float
    spot_price: float
    gpu: str = ""
    gpus: int = 0
    gpu_memory_mib: int = 0

    @property
    def gpu_info(self) -> str:
        """The column GpuInfo: a Python literal."""
        if not self.gpus:
            return ""
        one = {
            "Name": self.gpu,
            "Manufacturer": "NVIDIA",
            "Count": self.gpus,
            "MemoryInfo": {"SizeInMiB": self.gpu_memory_mib},
        }
        return str({"Gpus": [one], "TotalGpuMemoryInMiB": self.gpus * self.gpu_memory_mib})


INSTANCE_TYPES = (
    InstanceType("m6i.large", 2, 8, 0.096, 0.035),
    InstanceType("m6i.2xlarge", 8, 32, 0.384, 0.14),
    InstanceType("g5.xlarge", 4, 16, 1.006, 0.40, "A10G", 1, 22888),
    InstanceType("g5.12xlarge", 48, 192, 5.672, 2.3, "A10G", 4, 22888),
    InstanceType("g6.xlarge", 4, 16, 0.8048, 0.32, "L4", 1, 22888),
    InstanceType("p4d.24xlarge", 96, 1152, 21.96, 9.0, "A100", 8, 40960),
    InstanceType("p5.48xlarge", 192, 2048, 55.04, 25.0, "H100", 8, 81920),
)
_IMAGE_TAGS = (
    "custom-cpu-ubuntu",
    "custom-gpu-ubuntu",
    "custom-gpu-ubuntu-cuda13",
    "custom-cpu-ubuntu-arm64",
    "custom-gpu-ubuntu-arm64-cuda13",
)
#: First letter of an instance type to AWS's quota codes of its family, spot and on-demand.
_QUOTAS = {"m": ("L-34B43A08", "L-1216C47A"), "g": ("L-3819A6DF", "L-DB2E81BA"), "p": ("L-7212CCBC", "L-417A185B")}


def write(sky_home: Path) -> None:
    """Put the catalog where SkyPilot looks for it; `sky_home` is its `~/.sky`."""
    folder = sky_home / "catalogs" / SCHEMA
    _write(folder / "aws" / "vms.csv", _VMS, _vms())
    _write(
        folder / "aws" / "images.csv",
        ("Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"),
        (
            (f"skypilot:{tag}", region, "ubuntu", "22.04", IMAGE, "20260101", "")
            for tag in _IMAGE_TAGS
            for region in REGIONS
        ),
    )
    _write(
        folder / "aws" / "instance_quota_mapping.csv",
        ("InstanceType", "SpotInstanceCode", "OnDemandInstanceCode"),
        ((kind.name, *_QUOTAS[kind.name[0]]) for kind in INSTANCE_TYPES),
    )
    _write(
        folder / "common" / "accelerators.csv",
        ("AcceleratorName", "Clouds"),
        ((gpu, "['AWS']") for gpu in sorted({kind.gpu for kind in INSTANCE_TYPES if kind.gpu})),
    )


_VMS = (
    *("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo"),
    *("Price", "SpotPrice", "Region", "AvailabilityZone", "Arch"),
)


def _vms() -> Iterable[Sequence[object]]:
    for dearer, (region, prefix) in enumerate(REGIONS.items()):
        for kind in INSTANCE_TYPES:
            for number in (1, 2):
                price = round(kind.price * (1 + 0.01 * dearer), 4)
                spot_price = round(kind.spot_price * (1 + 0.01 * dearer) + 0.001 * (number - 1), 4)
                gpu = (kind.gpu, kind.gpus or "")
                sizes = (float(kind.vcpus), float(kind.memory_gib), kind.gpu_info)
                yield (kind.name, *gpu, *sizes, price, spot_price, region, f"{prefix}-az{number}", "x86_64")


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
