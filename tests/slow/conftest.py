"""A real llama.cpp, and a model for it that is small enough to make on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTALLED = Path("/var/tmp/skyfleet-llama")


@pytest.fixture(scope="module")
def llama_server() -> str:
    """The real server: LLAMA_SERVER, or what `install_llama_cpp.sh` compiled."""
    server = os.environ.get("LLAMA_SERVER") or str(INSTALLED / "bin" / "llama-server")
    if not os.access(server, os.X_OK):
        pytest.skip(f"no llama.cpp: {server} is not there; run tests/slow/install_llama_cpp.sh (9 minutes)")
    return server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of half a megabyte, with random weights."""
    if not (INSTALLED / "site" / "gguf").is_dir():
        pytest.skip("no gguf to write a model with; run tests/slow/install_llama_cpp.sh")
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    writer = Path(__file__).parent / "tiny_gguf.py"
    environment = {**os.environ, "PYTHONPATH": str(INSTALLED / "site")}
    subprocess.run([sys.executable, str(writer), str(path)], env=environment, check=True, timeout=60)
    return path
