"""SkyPilot's API server under the stack: found, or started, watched, and ended with all that it started.

A stub stands in for the real one, which takes half a minute; it is as hard to end: it has executors in its process
group that no signal but SIGKILL ends, and that live on when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from skyfleet.stack import skypilot
from skyfleet.stack.folder import DataFolder
from skyfleet.stack.services import skypilot_unit
from skyfleet.stack.skypilot import Server, SkyPilotUnusable, find_server, server_command, server_environment
from skyfleet.stack.supervisor import External, Notice, NoticeKind, Service, Supervisor
from tests.ports import free_port
from tests.waiting import eventually

#: `sky api start --foreground --port N`, in small.
STUB = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
assert sys.argv[1:5] == ["api", "start", "--foreground", "--port"]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
for _ in range(2):
    executor = subprocess.Popen([sys.executable, "-S", "-c", deaf], stdout=subprocess.PIPE)
    executor.stdout.readline()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "healthy", "version": "0.14.1"}')

HTTPServer(("127.0.0.1", int(sys.argv[5])), Handler).serve_forever()
"""


class Answer(BaseHTTPRequestHandler):
    """What a server that is there already says."""

    body = b'{"status": "healthy"}'

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class NotSkyPilot(Answer):
    """Some other program."""

    body = b"<html>It works!</html>"


@contextlib.contextmanager
def answering(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """An HTTP server on loopback; its port."""
    server = HTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def members(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, member_of, state in rows if int(member_of) == group and state[0] not in "ZX"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """No server that is configured or runs here, and a stub in the place of SkyPilot's command; the usual port."""
    port = free_port()
    monkeypatch.setattr(skypilot, "_CLI", STUB)
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", str(port))
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(tmp_path / "no-config.yaml"))
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    return port


@pytest.fixture
def heard() -> list[Notice]:
    return []


def kinds(heard: list[Notice]) -> list[NoticeKind]:
    return [notice.kind for notice in heard]


@asynccontextmanager
async def supervised(
    folder: Path, server: Server, heard: list[Notice], *, hung_after_s: float = 30.0
) -> AsyncIterator[Supervisor]:
    """The server alone, as the stack runs it."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        unit = skypilot_unit(server, http)
        made = Supervisor(folder, [unit], notify=heard.append, probe_interval_s=0.05, hung_after_s=hung_after_s)
        try:
            await made.start(30)
            yield made
        finally:
            await made.stop()


def started(port: int) -> Server:
    return Server(f"http://127.0.0.1:{port}", port)


# --- found ------------------------------------------------------------------------------------------------------


def test_the_configured_server_is_used_whether_it_answers_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://sky.example.org/")
    assert find_server(tmp_path) == Server("https://sky.example.org")


def test_without_any_the_stack_has_to_start_one(tmp_path: Path) -> None:
    assert find_server(tmp_path) is None


def test_one_that_runs_on_this_machine_is_used(tmp_path: Path, own_environment: int) -> None:
    with answering(Answer, own_environment):
        assert find_server(tmp_path) == Server(f"http://127.0.0.1:{own_environment}")


def test_another_program_on_that_port_is_not_taken_for_one(tmp_path: Path, own_environment: int) -> None:
    with answering(NotSkyPilot, own_environment):
        assert find_server(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the listener's user is read from /proc")
def test_another_person_s_server_is_left_alone(
    tmp_path: Path, own_environment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    with answering(Answer, own_environment):
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
        assert find_server(tmp_path) is None, "it launches with its owner's credentials"


def test_a_server_that_somebody_logged_in_to_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("api_server:\n  endpoint: https://sky.example.org\n")
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(config))
    assert find_server(tmp_path) == Server("https://sky.example.org")


def test_a_configuration_without_a_server_leads_to_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("aws:\n  use_internal_ips: false\n")
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(config))
    assert find_server(tmp_path) is None


def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.touch()
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(config))
    monkeypatch.setattr(skypilot, "_ASK_CLIENT", "raise SystemExit('line 3: no such key')")
    with pytest.raises(SkyPilotUnusable, match=r"cannot read its configuration:\nline 3: no such key"):
        find_server(tmp_path)


def test_a_port_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", "http")
    with pytest.raises(SkyPilotUnusable, match="SKYPILOT_API_SERVER_LOCAL_PORT='http' is no port"):
        find_server(tmp_path)


def test_without_the_extra_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SkyPilotUnusable, match=r"pip install 'skyfleet\[skypilot\]'"):
        find_server(tmp_path)


# --- started ----------------------------------------------------------------------------------------------------


def test_its_environment_is_the_person_s_without_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYFLEET_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("SKYPILOT_DISABLE_LOCAL_API_SERVER", "1")
    monkeypatch.setenv("AWS_PROFILE", "work")
    env = server_environment(1234)
    assert env["SKYPILOT_API_SERVER_LOCAL_PORT"] == "1234"
    assert env["AWS_PROFILE"] == "work"
    assert env["HOME"] == os.environ["HOME"]
    assert not {"SKYFLEET_ADMIN_TOKEN", "SKYPILOT_DISABLE_LOCAL_API_SERVER"} & set(env)


async def test_it_stops_with_its_executors(tmp_path: Path, heard: list[Notice]) -> None:
    async with supervised(tmp_path, started(free_port()), heard) as supervisor:
        pid = supervisor.pid("skypilot")
        assert pid is not None
        assert len(members(pid)) == 4  # guard, server, two executors
    assert members(pid) == []
    assert kinds(heard) == [NoticeKind.STARTED, NoticeKind.READY, NoticeKind.STOPPED]


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="leftovers of a group are recognised by /proc")
@pytest.mark.parametrize("victim", ["guard", "server"])
async def test_killed_it_comes_back_and_the_executors_of_the_first_are_gone(
    tmp_path: Path, heard: list[Notice], victim: str
) -> None:
    async with supervised(tmp_path, started(free_port()), heard) as supervisor:
        first = supervisor.pid("skypilot")
        assert first is not None
        guard, server, *_ = sorted(members(first))
        os.kill(guard if victim == "guard" else server, signal.SIGKILL)
        await eventually(lambda: NoticeKind.RECOVERED in kinds(heard))
        assert members(first) == []
        second = supervisor.pid("skypilot")
        assert second is not None
        assert len(members(second)) == 4
    assert members(second) == []


@pytest.mark.chaos
async def test_the_guard_ends_all_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    """The kernel then sends the guard SIGTERM (`Service.death_signal`)."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *server_command(port), env=server_environment(port), cwd=tmp_path, start_new_session=True
    )
    await listens(port)
    process.terminate()
    await asyncio.wait_for(process.wait(), 20)
    await eventually(lambda: members(process.pid) == [])


async def test_a_server_that_ends_by_itself_leaves_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skypilot, "_CLI", "raise SystemExit(3)")
    process = await asyncio.create_subprocess_exec(*server_command(1), start_new_session=True, cwd=tmp_path)
    assert await asyncio.wait_for(process.wait(), 20) == 3


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="leftovers of a group are recognised by /proc")
async def test_what_a_killed_run_left_of_it_is_ended_by_the_next(tmp_path: Path) -> None:
    folder, port = DataFolder(tmp_path / "data"), free_port()
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'cd /; sleep 600 & cd "$0"; exec "$@"', str(folder.path), *server_command(port)),
        env=server_environment(port),
        start_new_session=True,
    )
    await listens(port)
    folder.remember_children({"skypilot": process.pid})
    process.kill()
    await process.wait()
    left = members(process.pid)
    assert len(left) == 4
    try:
        assert await asyncio.to_thread(folder.end_stale_children) == ["skypilot"]
        stranger = members(process.pid)
        assert len(stranger) == 1, "what does not work in the folder is not ours"
    finally:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def listens(port: int) -> None:
    """Wait for the stub, whose executors are up by then."""
    async with httpx.AsyncClient(trust_env=False) as http:

        async def answers() -> bool:
            return await skypilot.why_silent(http, f"http://127.0.0.1:{port}") is None

        await eventually(answers)


# --- only watched -----------------------------------------------------------------------------------------------


async def test_a_server_of_others_is_waited_for_and_watched_but_never_ended(
    tmp_path: Path, heard: list[Notice]
) -> None:
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}")
    async with httpx.AsyncClient() as http:
        assert isinstance(skypilot_unit(server, http), External)
        assert isinstance(skypilot_unit(started(port), http), Service)
    with contextlib.ExitStack() as stack:

        async def appear() -> None:
            await asyncio.sleep(0)
            stack.enter_context(answering(Answer, port))

        appearing = asyncio.create_task(appear())
        async with supervised(tmp_path, server, heard, hung_after_s=0.2) as supervisor:
            await appearing
            assert supervisor.services == []
            stack.close()
            await eventually(lambda: NoticeKind.AWAY in kinds(heard))
            assert "does not listen" in heard[-1].text
            with answering(Answer, port):
                await eventually(lambda: NoticeKind.RECOVERED in kinds(heard))
        assert kinds(heard) == [NoticeKind.READY, NoticeKind.AWAY, NoticeKind.RECOVERED]
