"""`node-agent install`, with a uv of ours on PATH: what it is asked for, what is told, and that once is enough."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from skyfleet.agent import bundle
from skyfleet.engines.registry import engine
from tests.agent.harness import FakeControlPlane, boot_of

VLLM = engine("vllm").requirement or ""


class Bench:
    """A machine's folder, with a `uv` that notes its calls."""

    def __init__(self, folder: Path, control_plane: FakeControlPlane, *, engine_name: str = "vllm") -> None:
        self.folder = folder
        (folder / "node-agent.pyz").write_bytes(bundle.build())
        boot = boot_of(control_plane.url, folder, engine={"name": engine_name, "args": [], "command": []})
        (folder / "boot.json").write_text(json.dumps(boot))
        (folder / "bin").mkdir()

    def uv(self, body: str) -> None:
        """What uv does, after it has noted its call."""
        file = self.folder / "bin" / "uv"
        file.write_text(f'#!/bin/bash\necho "$*" >>"{self.folder}/calls"\n{body}\n')
        file.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    async def install(self) -> tuple[int, str]:
        """Exit status and output."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(self.folder / "node-agent.pyz"), "install"),
            *("--boot", str(self.folder / "boot.json"), "--engines", str(self.folder / "engines")),
            env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, output.decode()


_MAKES_THE_FOLDER = 'if [ "$1" = venv ]; then mkdir -p "${!#}"; fi'


async def test_vllm_is_installed_once_at_its_pinned_version(tmp_path: Path, control_plane: FakeControlPlane) -> None:
    bench = Bench(tmp_path, control_plane)
    bench.uv(_MAKES_THE_FOLDER)
    assert (await bench.install())[0] == 0
    assert VLLM.startswith("vllm[runai]==")
    assert bench.calls[-1].endswith(f"--python {tmp_path}/engines/vllm/bin/python {VLLM}")
    made = len(bench.calls)
    assert (await bench.install())[0] == 0
    assert len(bench.calls) == made


async def test_a_failed_installation_is_told_with_its_last_lines(
    tmp_path: Path, control_plane: FakeControlPlane
) -> None:
    bench = Bench(tmp_path, control_plane)
    bench.uv(f'{_MAKES_THE_FOLDER}\nif [ "$1" = pip ]; then echo "No solution found: no CUDA"; exit 3; fi')
    status, output = await bench.install()
    assert status == 1
    assert "No solution found" in output
    failed = control_plane.stages[-1].body
    assert failed["stage"] == "ENGINE_FAILED"
    assert VLLM in failed["detail"]
    assert failed["log_tail"][-1] == "No solution found: no CUDA"
    bench.uv(_MAKES_THE_FOLDER)
    assert (await bench.install())[0] == 0  # what failed is not taken for installed


async def test_an_engine_that_needs_nothing(tmp_path: Path, control_plane: FakeControlPlane) -> None:
    bench = Bench(tmp_path, control_plane, engine_name="echo")
    bench.uv("exit 1")
    assert (await bench.install())[0] == 0
    assert bench.calls == []
