"""What the lab's SkyPilot needs for Slurm beside what is in our environment: a module of pure Python.

    python -m tests.labs.slurm.runtime      # build it unless it is there; needs the package index, takes seconds

It holds requirements/lab-slurm.txt and is made once for each version of that file, below SKYFLEET_LAB_CACHE. It is no
part of our environment because there is no wheel of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from tests.labs import cache

LOCK: Final = Path(__file__).parents[3] / "requirements" / "lab-slurm.txt"


def folder() -> Path:
    """Where it is, or would be: a folder for `PYTHONPATH`."""
    return cache.place("slurm", LOCK)


def build() -> Path:
    """Make it unless it is there; its folder. Raises CalledProcessError when the installation fails."""
    return cache.make(folder(), _fill)


def _fill(target: Path) -> None:
    # Built with the setuptools that is here, so that nothing is downloaded but what the lock pins.
    where = ("--python", sys.executable, "--target", str(target), "--no-build-isolation")
    cache.run_uv("pip", "install", *where, "--require-hashes", "--requirements", str(LOCK))


if __name__ == "__main__":
    print(build())
