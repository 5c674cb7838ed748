"""What `skyfleet doctor` can see of the stack on this machine, whether it runs or not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import Final

import httpx

from skyfleet.client import Endpoints
from skyfleet.domain.doctor import Check, failed, note, ok, warning
from skyfleet.stack import skypilot
from skyfleet.stack.folder import children, port_of

_GB: Final = 10**9
#: Free space under which PostgreSQL will soon stop, and under which a person should know.
_TOO_LITTLE: Final = 1 * _GB
_LITTLE: Final = 5 * _GB


def examine(data: Path, endpoints: Endpoints | None) -> list[Check]:
    """The checks of the stack on this data folder; `endpoints` is where it runs, None when it does not."""
    return [
        _extra(wanted=endpoints is not None and endpoints.skypilot is not None),
        *([_server(data)] if endpoints is None else _processes(data, endpoints)),
        _space(data),
        _token(data),
    ]


def _extra(*, wanted: bool) -> Check:
    name = "skypilot extra"
    try:
        return ok(name, f"SkyPilot {importlib.metadata.version('skypilot')} is installed")
    except importlib.metadata.PackageNotFoundError:
        how = "Install `skyfleet[skypilot]`, as in `uv tool install 'skyfleet[skypilot]'`."
        return (failed if wanted else note)(name, "SkyPilot, which launches on real clouds, is not installed here", how)


def _server(data: Path) -> Check:
    """Which SkyPilot API server `skyfleet up --cloud skypilot` would use."""
    name = "skypilot server"
    folder = next(path for path in (data, *data.absolute().parents) if path.exists())
    try:
        found = skypilot.find_server(folder)
    except skypilot.SkyPilotUnusable as error:
        return note(name, "`skyfleet up --cloud skypilot` cannot use one", str(error))
    if found is None:
        return note(name, "none runs here; `skyfleet up --cloud skypilot` starts one")
    return note(name, f"`skyfleet up --cloud skypilot` uses the one at {found.url}")


def _processes(data: Path, endpoints: Endpoints) -> list[Check]:
    now = dict.fromkeys(endpoints.pids) | children(data)
    dead = sorted(name for name, pid in now.items() if pid is None)
    checks = []
    if dead:
        logs = ", ".join(str(data / "logs" / f"{name}.log") for name in dead)
        how = f"`skyfleet up` starts again what dies; start it if it does not run, and read {logs}."
        checks.append(failed("processes", f"not running: {', '.join(dead)}", how))
    else:
        checks.append(ok("processes", ", ".join(f"{name} {pid}" for name, pid in sorted(now.items()))))
    if now.get("worker") is not None:
        checks.append(_worker(data))
    return checks


def _worker(data: Path) -> Check:
    port = port_of(data, "worker_health")
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False)
        why = "" if reply.is_success else f"answers {reply.status_code}: {reply.text[:200]}"
    except httpx.HTTPError as error:
        why = f"does not answer: {str(error) or type(error).__name__}"
    if why:
        return failed("worker", why, f"Read {data / 'logs' / 'worker.log'}; `skyfleet up` restarts one that hangs.")
    return ok("worker", "answers, and its queues are polled")


def _space(data: Path) -> Check:
    name = "data folder"
    folder = next(path for path in (data, *data.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{data}: {free / _GB:.1f} GB free"
    how = "Make room there, or move the folder and give it with --data."
    if free < _TOO_LITTLE:
        return failed(name, text, how)
    return warning(name, text, how) if free < _LITTLE else ok(name, text)


def _token(data: Path) -> Check:
    name = "admin token here"
    if os.environ.get("SKYFLEET_ADMIN_TOKEN"):
        return ok(name, "from SKYFLEET_ADMIN_TOKEN")
    if os.access(data / "admin_token", os.R_OK):
        return ok(name, f"in {data / 'admin_token'}")
    return note(name, f"none in {data}; the first `skyfleet up` makes it")
