"""The home folder of the lab's machines: uv, and the Python environment that SkyPilot would install on each.

    python -m tests.labs.aws.runtime        # build it unless it is there; needs the package index, takes a minute

It holds requirements/lab-vm.txt and is made once for each version of that file, below SKYFLEET_LAB_CACHE.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import uv

from tests.labs import cache

LOCK: Final = Path(__file__).parents[3] / "requirements" / "lab-vm.txt"
#: SkyPilot's names for the two environments of a machine: its own, and the one that tasks run in.
SKYPILOT_ENV: Final = "skypilot-runtime"
USER_ENV: Final = "sky-user-env"


class NoRuntime(Exception):
    """This machine lacks what it is made of; the text says what."""


def folder() -> Path:
    """Where it is, or would be."""
    return cache.place("home", LOCK)


def build() -> Path:
    """Make it unless it is there; its folder.

    Raises NoRuntime, or CalledProcessError when an installation fails.
    """
    return cache.make(folder(), _fill)


def python310() -> str:
    """An interpreter 3.10, from pyenv's folder or PATH. Raises NoRuntime."""
    found = [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))]
    for candidate in (*found, shutil.which("python3.10")):
        if candidate and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    raise NoRuntime("no Python 3.10, which SkyPilot runs with on its machines")


def _fill(home: Path) -> None:
    tool = Path(uv.find_uv_bin())
    own = home / ".local" / "bin" / "uv"
    own.parent.mkdir(parents=True)
    shutil.copy(tool, own)
    cache.run_uv("venv", "--seed", "--relocatable", "--python", python310(), str(home / SKYPILOT_ENV))
    where = ("--python", str(home / SKYPILOT_ENV / "bin" / "python"))
    cache.run_uv("pip", "install", *where, "--require-hashes", "--compile-bytecode", "--requirements", str(LOCK))
    cache.run_uv("venv", "--seed", "--relocatable", "--python", "/usr/bin/python3", str(home / USER_ENV))


if __name__ == "__main__":
    try:
        print(build())
    except NoRuntime as reason:
        print(f"the lab's machines cannot be built, tests that need them will be skipped: {reason}", file=sys.stderr)
