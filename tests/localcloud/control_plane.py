"""A control plane for machines of the local cloud: serves an agent, takes registrations and heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import socket
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

#: Stands in for the node agent: notes each start, keeps a child in a session of its own as an engine would be and for
#: a while one that bears no mark either, and powers its machine off on SIGUSR1.
_STAND_IN = """
import json, os, pathlib, signal, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
boot = json.loads(pathlib.Path(options["--boot"]).read_text())
state = pathlib.Path(options["--state-dir"])
def power_off(*_):
    subprocess.run(boot["shutdown_command"], check=True)
    sys.exit(0)
signal.signal(signal.SIGUSR1, power_off)
bare = {"PATH": os.environ["PATH"]}
engine = subprocess.Popen(["sleep", "600"], start_new_session=True, cwd="/")
helper = subprocess.Popen(["sleep", "20"], start_new_session=True, env=bare, cwd="/")
with (state / "starts").open("a") as starts:
    starts.write(f"{os.getpid()} {engine.pid} {helper.pid}\\n")
(state / "environment.json").write_text(json.dumps(dict(os.environ)))
(state / "ready").write_text(str(os.getpid()))
while True:
    signal.pause()
"""


def stand_in_agent() -> bytes:
    """The stand-in as a zip application."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", _STAND_IN)
    return packed.getvalue()


@dataclass
class ControlPlane:
    """What it saw, and how it answers."""

    url: str = ""
    agent: bytes = field(default_factory=stand_in_agent)
    downloads: int = 0
    download_status: int = 200
    register_status: int = 200
    directive: str = "continue"
    heartbeat_status: int = 200
    registrations: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)  # node id -> idempotency key
    heartbeats: Counter[str] = field(default_factory=Counter)
    last_heartbeat: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    away: bool = False  # nothing but 503

    @property
    def agent_sha256(self) -> str:
        """What a boot must say."""
        return hashlib.sha256(self.agent).hexdigest()

    async def download(self, _request: Request) -> Response:
        self.downloads += 1
        return Response(self.agent, self.download_status)

    async def register(self, request: Request) -> Response:
        body = await request.json()
        self.registrations.append(body | {"node_id": request.query_params["node_id"]})
        if self.register_status != 200:
            return JSONResponse({}, self.register_status)
        node_id = request.query_params["node_id"]
        assert self.keys.setdefault(node_id, request.headers["idempotency-key"]) == request.headers["idempotency-key"]
        return JSONResponse({"status": "registered", "node_id": node_id, "heartbeat_key": f"key-{node_id}"})

    async def heartbeat(self, request: Request) -> Response:
        if self.away:
            return JSONResponse({}, 503)
        node_id = request.path_params["node_id"]
        assert request.headers["authorization"] == f"Bearer key-{node_id}"
        self.last_heartbeat = await request.json()
        self.heartbeats[node_id] += 1
        return JSONResponse({"directive": self.directive}, self.heartbeat_status)

    async def warning(self, request: Request) -> Response:
        if self.away:
            return JSONResponse({}, 503)
        node_id = request.path_params["node_id"]
        assert request.headers["authorization"] == f"Bearer key-{node_id}"
        self.warnings.append(await request.json() | {"node_id": node_id, "heard_at": time.monotonic()})
        return JSONResponse({"status": "recorded"})

    async def stage(self, request: Request) -> Response:
        self.stages.append((await request.json())["stage"])
        return JSONResponse({"status": "recorded"})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # pytest's own handlers stay


@asynccontextmanager
async def running_control_plane() -> AsyncIterator[ControlPlane]:
    """One on a free port."""
    plane = ControlPlane()
    app = Starlette(
        routes=[
            Route("/downloads/node-agent/{version}", plane.download),
            Route("/admin/nodes/register", plane.register, methods=["POST"]),
            Route("/admin/nodes/{node_id}/heartbeat", plane.heartbeat, methods=["POST"]),
            Route("/admin/nodes/{node_id}/stages", plane.stage, methods=["POST"]),
            Route("/admin/nodes/{node_id}/termination-warning", plane.warning, methods=["POST"]),
        ]
    )
    listening = socket.create_server(("127.0.0.1", 0))
    plane.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield plane
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
