"""The agent as one file: `node-agent.pyz`, a zip application of `skyfleet.agent` and `skyfleet.engines`.

The same sources give the same bytes, on every machine: names sorted, times fixed, nothing compressed (the output of
zlib differs between its versions). So the SHA-256 that a launch names can be computed by any API replica.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from importlib import resources

from skyfleet import __version__

FILE_NAME = "node-agent.pyz"
_PACKAGES = ("skyfleet.agent", "skyfleet.engines")
_MODULES = ("__init__.py", "ports.py")
_MAIN = b"import sys\n\nfrom skyfleet.agent.main import main\n\nsys.exit(main(sys.argv[1:]))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can express


@functools.lru_cache(maxsize=1)
def build() -> bytes:
    """The file's bytes. Runs with `python3 node-agent.pyz` on a bare Python 3.10 or later."""
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(_sources().items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, whatever builds it
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


@functools.lru_cache(maxsize=1)
def sha256() -> str:
    """SHA-256 of the file, in lower-case hexadecimal."""
    return hashlib.sha256(build()).hexdigest()


def version() -> str:
    """What a launch names: the release, and the first of the digest, since a source tree changes between releases."""
    return f"{__version__}-{sha256()[:8]}"


def _sources() -> dict[str, bytes]:
    files = {"__main__.py": _MAIN}
    files |= {f"skyfleet/{name}": (resources.files("skyfleet") / name).read_bytes() for name in _MODULES}
    for package in _PACKAGES:
        for source in resources.files(package).iterdir():
            if source.name.endswith(".py"):
                files[f"{package.replace('.', '/')}/{source.name}"] = source.read_bytes()
    return files
