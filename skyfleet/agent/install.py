"""`node-agent install`: puts the engine of the boot file on this machine, and says so to those who wait.

Run by the machine's set-up, before the agent. An engine that is there already is left alone, so that a set-up which is
run again is done at once. What goes wrong is reported as the engine's failure, with the last lines of the installation:
it would go wrong on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from skyfleet.agent.config import Boot, BootError, load_boot
from skyfleet.agent.control_plane import ControlPlane, Dismissed, StageReached
from skyfleet.agent.logs import hide, log, now_iso
from skyfleet.agent.stages import INSTALLING
from skyfleet.engines.registry import UnknownEngine, engine

INSTALLED, FAILED, BAD_START = 0, 1, 2
_TELL_S = 60.0
_TAIL_LINES = 50


def main(argv: Sequence[str]) -> int:
    """Install; returns the exit status: 0 there, 1 not to be had, 2 bad boot file."""
    parser = argparse.ArgumentParser(prog="node-agent install", description="Installs the engine of a boot file.")
    parser.add_argument("--boot", required=True, metavar="FILE", help="what the machine was told at creation (JSON)")
    parser.add_argument("--engines", required=True, metavar="DIR", help="where engines are installed")
    options = parser.parse_args(argv)
    try:
        boot = load_boot(options.boot)
        requirement = engine(boot.engine).requirement
    except (BootError, UnknownEngine) as error:
        log("install.cannot_start", level="error", reason=error)
        return BAD_START
    hide(boot.secrets)
    if requirement is None:
        return INSTALLED
    return asyncio.run(_install(boot, requirement, Path(options.engines) / boot.engine))


async def _install(boot: Boot, requirement: str, folder: Path) -> int:
    there = folder / "installed"
    with contextlib.suppress(OSError):
        if there.read_text(encoding="utf-8") == requirement:
            log("install.there", requirement=requirement)
            return INSTALLED
    control_plane = ControlPlane(boot)
    telling = asyncio.ensure_future(
        control_plane.report_stage(StageReached(INSTALLING, now_iso(), f"installing {requirement}"))
    )
    log("install.started", requirement=requirement)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        await asyncio.to_thread(_with_uv, requirement, folder, tail)
        there.write_text(requirement, encoding="utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        log("install.failed", level="error", reason=error)
        with contextlib.suppress(Dismissed, asyncio.TimeoutError):
            report = control_plane.report_engine_failed(f"{requirement} could not be installed: {error}", list(tail))
            await asyncio.wait_for(report, _TELL_S)
        return FAILED
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        if not telling.cancelled():
            telling.exception()
    log("install.done", requirement=requirement)
    return INSTALLED


def _with_uv(requirement: str, folder: Path, tail: deque[str]) -> None:
    uv = _uv(tail)
    _run([uv, "venv", "--quiet", "--clear", str(folder)], tail)
    _run([uv, "pip", "install", "--python", str(folder / "bin" / "python"), requirement], tail)


def _uv(tail: deque[str]) -> str:
    """SkyPilot puts uv on its machines; elsewhere it is fetched."""
    home = os.path.expanduser("~/.local/bin")
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), home])
    found = shutil.which("uv", path=search)
    if found is None:
        _run([sys.executable, "-m", "pip", "install", "--user", "--quiet", "uv"], tail)
        found = shutil.which("uv", path=search)
    if found is None:
        raise FileNotFoundError("there is no uv, and pip did not bring one")
    return found


def _run(command: list[str], tail: deque[str]) -> None:
    """Run a program; its lines go to our output and to the tail. Raises CalledProcessError."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            tail.append(line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[:3])
