"""What labs are made of and what takes a while to make: made once for each version of its lock file.

It is kept below SKYFLEET_LAB_CACHE, outside the tree.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import uv


def place(kind: str, lock: Path) -> Path:
    """The folder for what `lock` pins; it is there once it is made."""
    cache = Path(os.environ.get("SKYFLEET_LAB_CACHE", "/var/tmp/skyfleet-lab"))
    return cache / f"{kind}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"


def make(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder unless it is there; a second process that wants it waits for the first. Raises what `fill` does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(
                prefix="building-", dir=folder.parent, ignore_cleanup_errors=True
            ) as partial:
                fill(Path(partial) / "new")
                (Path(partial) / "new").rename(folder)
    return folder


def run_uv(*arguments: str) -> None:
    """Run uv, with the Pythons that are here. Raises CalledProcessError when it fails."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"}
    subprocess.run([uv.find_uv_bin(), "--quiet", *arguments], env=environment, stdin=subprocess.DEVNULL, check=True)
