"""A fake control plane over real HTTP, and real agent processes made from the real one-file agent."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyfleet.agent import bundle
from skyfleet.engines.http_server import ClientGone, HttpServer, Request, Response, json_response
from tests.ports import free_port

TOKEN = "one-time-registration-token"
HEARTBEAT_KEY = "the-heartbeat-key-of-this-node"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def bare_python() -> str | None:
    """An interpreter 3.10, from pyenv's folder or PATH; None when there is none."""
    found = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))
    candidates = [str(path) for path in found] + [shutil.which("python3.10")]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    return None


@dataclass
class Call:
    """One request that the fake control plane got; `at` is seconds of the monotonic clock."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


class FakeControlPlane:
    """Answers like the control plane; `on_stage`, `on_register`, `on_heartbeat` and `on_warning` may answer otherwise.

    A hook returns a status, "lost" (the request took effect, the answer is lost), or None for the usual answer.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.stages: list[Call] = []
        self.registrations: list[Call] = []
        self.heartbeats: list[Call] = []
        self.warnings: list[Call] = []
        self.directive = "continue"
        self.on_stage: Callable[[Call], int | str | None] = lambda call: None
        self.on_register: Callable[[Call], int | str | None] = lambda call: None
        self.on_heartbeat: Callable[[Call], int | str | None] = lambda call: None
        self.on_warning: Callable[[Call], int | str | None] = lambda call: None
        self._server: HttpServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stage_names(self) -> list[str]:
        return [call.body["stage"] for call in self.stages]

    async def start(self) -> None:
        self._server = HttpServer(self._handle, lambda status, message: {"detail": message})
        await self._server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _handle(self, request: Request) -> Response:
        call = Call(request.path, request.headers, json.loads(request.body))
        if request.path == "/admin/nodes/register":
            self.registrations.append(call)
            answer = {"status": "registered", "node_id": "node-1", "heartbeat_key": HEARTBEAT_KEY}
            return self._reply(self.on_register(call), answer)
        if request.path == "/admin/nodes/node-1/stages":
            self.stages.append(call)
            right = call.headers.get("authorization") == f"Bearer {TOKEN}"
            return self._reply(self.on_stage(call) if right else 401, {"status": "recorded"})
        if request.path == "/admin/nodes/node-1/heartbeat":
            self.heartbeats.append(call)
            right = call.headers.get("authorization") == f"Bearer {HEARTBEAT_KEY}"
            return self._reply(self.on_heartbeat(call) if right else 401, {"directive": self.directive})
        if request.path == "/admin/nodes/node-1/termination-warning":
            self.warnings.append(call)
            right = call.headers.get("authorization") == f"Bearer {HEARTBEAT_KEY}"
            return self._reply(self.on_warning(call) if right else 401, {"status": "recorded"})
        return json_response({"detail": f"no such path {request.path}"}, 404)

    def _reply(self, wanted: int | str | None, usual: dict[str, Any]) -> Response:
        if wanted == "lost":
            raise ClientGone  # the server closes the connection without a word
        if isinstance(wanted, int):
            return json_response({"detail": "no"}, wanted)
        return json_response(usual)


class FakeMetadata:
    """A metadata service that says what `values` has (path with query -> body), and 404 to the rest.

    `broken` is a status, bytes that are sent instead of an answer, or None; `held` makes every request wait.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.values: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.broken: int | bytes | None = None
        self.held = asyncio.Event()
        self.held.set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self.held.set()
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            path = first.split(" ")[1]
            self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
            self.asked[path] += 1
            await self.held.wait()
            if isinstance(self.broken, bytes):
                writer.write(self.broken)
            else:
                status = self.broken or (200 if path in self.values else 404)
                body = self.values.get(path, "not found").encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the agent gave the request up
        finally:
            writer.close()


@dataclass
class AgentProcess:
    """One machine: its folder, and the agent process on it."""

    folder: Path
    boot: dict[str, Any]
    python: str = sys.executable
    options: tuple[str, ...] = ()
    env: dict[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None
    runs: list[Path] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def off(self) -> Path:
        """Appears when the machine was powered off."""
        return self.folder / "powered-off"

    @property
    def port(self) -> int:
        return int(self.boot["port"])

    def start(self) -> None:
        agent = self.folder / bundle.FILE_NAME
        agent.write_bytes(bundle.build())
        boot = self.folder / "boot.json"
        boot.write_text(json.dumps(self.boot))
        self.runs.append(self.folder / f"agent-{len(self.runs)}.log")
        argv = [self.python, "-I", "-S", str(agent), "--boot", str(boot), "--state-dir", str(self.state), *self.options]
        with open(self.runs[-1], "wb") as log:
            self.process = subprocess.Popen(
                argv, stderr=log, stdout=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=self.env
            )

    @property
    def exit_status(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    @property
    def ended(self) -> bool:
        return self.exit_status is not None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in self.runs)

    def engine_processes(self) -> list[int]:
        """Ids of living processes (but for the agent) whose command line names this machine's folder."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or (self.process is not None and int(name) == self.process.pid):
                continue
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.folder).encode() in line and state != "Z":
                found.append(int(name))
        return found

    def stop(self) -> None:
        """End it, and fail if anything is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.engine_processes():
            os.kill(pid, signal.SIGKILL)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request to the engine."""
        return await asyncio.to_thread(ask, self.port, method, path, body)


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """One request to a server on loopback: (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def boot_of(control_plane_url: str, folder: Path, /, **changes: Any) -> dict[str, Any]:
    """A boot file's content; `changes` replace keys."""
    return {
        "control_plane_url": control_plane_url,
        "node_id": "node-1",
        "launch_id": "launch-1",
        "cluster_name": "sf-launch-1-a1",
        "registration_token": TOKEN,
        "agent_version": bundle.version(),
        "agent_sha256": bundle.sha256(),
        "provider": "aws",
        "region": "us-east-1",
        "zone": "us-east-1a",
        "instance_type": "g5.xlarge",
        "gpu_type": "A10G",
        "spot_instance": True,
        "model_name": MODEL,
        "engine": {"name": "echo", "args": [], "command": []},
        "env": {"HF_TOKEN": "hf_secret_value"},
        "heartbeat_interval_s": 0.2,
        "sandbox": True,
        "host": "127.0.0.1",
        "port": free_port(),
        "metadata_url": None,
        "shutdown_command": ["/bin/sh", "-c", f"echo off >> {folder}/powered-off"],
        **changes,
    }
