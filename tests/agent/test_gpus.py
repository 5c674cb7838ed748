"""The GPUs' figures, through the real ctypes code and a stand-in for NVIDIA's library."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.schemas import GpuFigures
from skyfleet.agent.nvml import LIBRARY
from tests.agent.harness import AgentProcess, FakeControlPlane, bare_python
from tests.waiting import eventually

Machine = Callable[..., AgentProcess]

TWO_GPUS = "gpu 37 4000000000 24000000000 61 2\ngpu 0 0 24000000000 30 -1\n"


class Driver:
    """The stand-in's answers: a file that is replaced at once."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._file = folder / "nvml"
        self.environ = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(self._file)}

    def says(self, text: str) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self._file)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: NVIDIA's library cannot be stood in for")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(folder / LIBRARY), str(source)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def driver(tmp_path: Path, library: Path) -> Driver:
    """Two GPUs that are well."""
    made = Driver(tmp_path, library)
    made.says(TWO_GPUS)
    return made


def gpus(control_plane: FakeControlPlane) -> list[dict[str, Any]]:
    """What the last heartbeat says, and the API takes."""
    found: list[dict[str, Any]] = control_plane.heartbeats[-1].body["gpus"] if control_plane.heartbeats else []
    for figures in found:
        GpuFigures.model_validate(figures)
    return found


def gone(pid: int) -> bool:
    """Whether there is no such process."""
    return not Path(f"/proc/{pid}").exists()


def readers(agent: AgentProcess) -> list[int]:
    """Processes that read the GPUs."""
    found = []
    for pid in agent.engine_processes():
        if b"gpu-reader" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    return found


async def test_figures_errors_and_a_lost_gpu(control_plane: FakeControlPlane, machine: Machine, driver: Driver) -> None:
    agent = machine(
        environ=driver.environ, python=bare_python()
    )  # the oldest one that it has to run on, if there is one
    agent.start()
    first, second = await eventually(lambda: gpus(control_plane), what="figures")
    assert first == {
        "index": 0,
        "name": "NVIDIA Fake 0",
        "utilization": 37,
        "memory_used_gb": 4.0,
        "memory_total_gb": 24.0,
        "temperature_c": 61,
        "ecc_uncorrected_errors": 2,
    }
    # What a GPU does not have is left out, and is no problem.
    assert (second["index"], second["temperature_c"]) == (1, 30)
    assert not {"ecc_uncorrected_errors", "problem", "last_xid"} & set(second)

    driver.says(TWO_GPUS.replace("gpu 37", "gpu 99") + "xid 1 79\n")
    await eventually(lambda: gpus(control_plane)[1:] and "last_xid" in gpus(control_plane)[1], what="the XID error")
    assert gpus(control_plane)[1]["last_xid"] == 79
    await eventually(lambda: gpus(control_plane)[0]["utilization"] == 99, what="new figures")
    assert "last_xid" not in gpus(control_plane)[0]

    driver.says("gpu 1 1 1 4294967295 0\nlost\n")
    await eventually(lambda: "problem" in gpus(control_plane)[-1], what="the lost GPU")
    assert "GPU is lost" in gpus(control_plane)[1]["problem"]
    assert "utilization" not in gpus(control_plane)[1]
    # A driver's way to say that it does not know; the API would refuse the whole heartbeat for it.
    assert "temperature_c" not in gpus(control_plane)[0]

    (reader,) = readers(agent)
    agent.signal(signal.SIGTERM)
    await eventually(lambda: agent.ended, what="the agent's end")
    assert gone(reader)


async def test_a_driver_that_hangs_holds_up_nothing_and_old_figures_are_not_repeated(
    control_plane: FakeControlPlane, machine: Machine, driver: Driver
) -> None:
    agent = machine(environ=driver.environ)
    agent.start()
    await eventually(lambda: gpus(control_plane), what="figures")
    (reader,) = readers(agent)
    driver.says(TWO_GPUS + "hang\n")
    hung_at = time.monotonic()
    await eventually(lambda: not gpus(control_plane), what="a heartbeat without figures")
    assert time.monotonic() - hung_at < 5  # three readings, half a second each
    beats = len(control_plane.heartbeats)
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 10, what="ten more heartbeats")
    assert not any(call.body["gpus"] for call in control_plane.heartbeats[beats:])
    assert control_plane.heartbeats[-1].body["engine"]["healthy"]
    # It is ended in the end, and another reads on once the driver answers.
    await eventually(lambda: gone(reader), what="the end of the reader that hung")
    driver.says(TWO_GPUS)
    await eventually(lambda: gpus(control_plane), what="figures again")
    assert "event=gpus.reader_hangs" in agent.log


async def test_a_reader_goes_with_its_agent(control_plane: FakeControlPlane, machine: Machine, driver: Driver) -> None:
    agent = machine(environ=driver.environ)
    agent.start()
    await eventually(lambda: gpus(control_plane), what="figures")
    (reader,) = readers(agent)
    # One that dies is replaced.
    os.kill(reader, signal.SIGSEGV)
    await eventually(lambda: readers(agent) not in ([], [reader]), what="another reader")
    driver.says(TWO_GPUS + "hang\n")
    agent.signal(signal.SIGKILL)
    await eventually(lambda: agent.engine_processes() == [], what="no process left")


async def test_without_a_driver_or_a_library_there_are_no_figures(
    control_plane: FakeControlPlane, machine: Machine, driver: Driver
) -> None:
    driver.says("init 9\n")
    agent = machine(environ=driver.environ)
    agent.start()
    await eventually(lambda: "Driver Not Loaded" in agent.log, what="the reason")
    await eventually(lambda: control_plane.heartbeats, what="a heartbeat")
    assert gpus(control_plane) == []
    agent.signal(signal.SIGTERM)
    await eventually(lambda: agent.ended, what="the agent's end")
    control_plane.heartbeats.clear()
    bare = machine()
    bare.start()
    await eventually(lambda: len(control_plane.heartbeats) >= 3, what="heartbeats")
    assert "event=gpus" not in bare.log
