"""`skyfleet up --cloud skypilot`: with a server of others, which is a stub here, and with a real one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyfleet.client import find_endpoints
from skyfleet.domain.doctor import Check
from skyfleet.stack.processes import ends_with_parent
from tests.ports import free_port
from tests.stack import RunningStack
from tests.waiting import eventually


class _Health(BaseHTTPRequestHandler):
    """Says that it is a SkyPilot API server, and knows nothing else."""

    def do_GET(self) -> None:
        there = self.path == "/api/health"
        self.send_response(200 if there else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "healthy", "version": "0.14.1"}' if there else b"{}")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """A server that others run."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


def environment(home: Path, **more: str) -> dict[str, str]:
    """A person without any cloud's credentials, and with nothing set."""
    home.mkdir()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SKYFLEET_", "SKYPILOT_", "AWS_"))
    }
    return kept | {"HOME": str(home), "SKYPILOT_API_SERVER_LOCAL_PORT": str(free_port())} | more


def command(data: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "skyfleet.cli", "up", "--data", str(data)),
        *("--json", "--no-dashboard", *options),
    ]


@contextlib.contextmanager
def up(folder: Path, *options: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The running command, and what it wrote when all was healthy; ended with SIGTERM, cleanly."""
    with (folder / "messages").open("w") as messages:
        process = subprocess.Popen(
            command(folder / "data", *options),
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=env,
            start_new_session=True,
            preexec_fn=ends_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it only calls prctl
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "messages").read_text()
        yield process, json.loads(line)
        process.terminate()
        assert process.wait(60) == 0
        assert find_endpoints(folder / "data") is None
    finally:
        process.kill()
        process.wait()


def checks(stack_data: Path, env: dict[str, str]) -> dict[str, Check]:
    """`skyfleet doctor` by name."""
    done = subprocess.run(
        [sys.executable, "-m", "skyfleet.cli", "--data", str(stack_data), "doctor", "--json"],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    found = [Check.model_validate(check) for check in json.loads(done.stdout)["checks"]]
    assert done.returncode == any(check.status == "failed" for check in found)
    return {check.name: check for check in found}


def test_a_server_of_others_is_used_and_real_clouds_alone_are_no_sandbox(tmp_path: Path, server: str) -> None:
    env = environment(tmp_path / "home", SKYPILOT_API_SERVER_ENDPOINT=server)
    with up(tmp_path, "--cloud", "skypilot", env=env) as (_, said):
        assert said["sandbox"] is False
        assert said["local_cloud"] is None
        assert said["skypilot"] == server
        assert not {"skypilot", "local-cloud"} & set(said["pids"])
        assert httpx.get(f"{said['api']}/health", trust_env=False).json()["sandbox"] is False
        found = checks(tmp_path / "data", env)
        assert found["skypilot server"].status == "ok"
        assert found["public url"].status == "failed"
        assert "--public-url" in found["public url"].mend
    messages = (tmp_path / "messages").read_text()
    assert "WARNING: machines of real clouds are told to report to http://127.0.0.1:" in messages
    assert "nothing can be launched yet" in messages
    assert httpx.get(f"{server}/api/health", trust_env=False).is_success, "it was not ours to end"


def test_a_mistyped_public_url_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "data", "--public-url", "fleet.example.org"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is no web address" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.chaos
async def test_a_real_server_of_its_own_comes_back_and_leaves_nothing(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    stack = RunningStack(data, command(data, "--cloud", "skypilot"), environment(home))
    try:
        await stack.start(timeout_s=180)
        url = stack.endpoints.skypilot
        assert url is not None
        assert stack.endpoints.local_cloud is None
        first = stack.pids()["skypilot"]
        found = await asyncio.to_thread(checks, data, stack.environment)
        assert found["skypilot server"].detail.startswith(url)
        assert found["skypilot extra"].status == "ok"
        assert (home / ".sky").exists(), "it is the person's own"

        os.kill(first, signal.SIGKILL)

        async def back() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
                    return stack.pids().get("skypilot", first) != first and (
                        (await http.get(f"{url}/api/health")).is_success
                    )
            return False

        await eventually(back, timeout_s=90, interval_s=0.5, what="another server")
        assert group(first) == []

        second = stack.pids()["skypilot"]
        assert stack.process is not None
        stack.process.kill()  # `skyfleet up` itself
        await asyncio.to_thread(stack.process.wait, 10)
        await eventually(lambda: group(second) == [], timeout_s=60, interval_s=0.5, what="end of server and executors")

        await stack.start(timeout_s=180)
        third = stack.pids()["skypilot"]
        assert await stack.stop() == 0
        assert group(third) == []
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.process.kill()
            stack.process.wait()
        for pid in stack.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def group(leader: int) -> list[int]:
    """What runs in a process group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, member_of, state in rows if int(member_of) == leader and state[0] not in "ZX"]
