"""A small API that speaks the contract, with faults on demand, on a real socket or in process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NOW = "2026-11-22T06:00:00Z"
BEFORE = "2026-01-01T00:00:00Z"
JOB = "launch-0123456789ab"

ERROR: dict[str, Any] = {
    "kind": "capacity",
    "scope": "zone",
    "retryable": True,
    "code": "InsufficientInstanceCapacity",
    "cloud": "aws",
    "message": "No spot capacity for g5.xlarge in us-east-1a.",
    "next_steps": ["try another region", "buy on-demand"],
    "raw": "An error occurred (InsufficientInstanceCapacity) when calling RunInstances",
}

ATTEMPT = {
    "number": 1,
    "state": "closed",
    "provider": "aws",
    "region": "us-east-1",
    "zone": "us-east-1a",
    "instance_type": "g5.xlarge",
    "market": "spot",
    "hourly_price": "0.402400",
    "cluster_name": "sf-0123456789ab-1",
    "opened_at": NOW,
    "error": ERROR,
}

MODEL: dict[str, Any] = {
    "id": "org/model",
    "name": "model",
    "family": "org",
    "size": "1B",
    "vram_required_gb": 2.4,
    "dtype": "bfloat16",
    "weights_gb": 1.9,
    "context_length": 4096,
    "origin": "bucket",
    "source": "s3://weights/org/model/",
    "vram_estimate": {
        "total_gb": 2.4,
        "weights_gb": 1.863,
        "kv_cache_gb": 0.2,
        "overhead_gb": 0.1,
        "gpu_memory_utilization": 0.9,
        "context_tokens": 4096,
        "sequences": 2,
        "kv_cache": {"bytes_per_token": 26214, "windowed_bytes_per_token": 100, "window_tokens": 512},
        "formula": "by and large",
        "sources": ["somebody said so"],
    },
}

NODE: dict[str, Any] = {
    "node_id": "node-0123456789ab-1",
    "cluster_name": "sf-0123456789ab-1",
    "launch_id": JOB,
    "status": "ready",
    "status_message": "serving",
    "health_score": 1.0,
    "last_heartbeat_at": NOW,
    "endpoint_url": "http://127.0.0.1:9000",
    "model_name": "org/model",
    "provider": "aws",
    "region": "us-east-1",
    "zone": "us-east-1a",
    "instance_type": "g5.xlarge",
    "gpu_type": "A10G",
    "market": "spot",
    "cost_per_hour": "0.402400",
    "cost": "0.01",
    "registered_at": NOW,
    "tenant": "default",
    "sandbox": True,
}


def event(seq: int, stage: str, message: str, **more: Any) -> dict[str, Any]:
    """An event as the API sends it."""
    return {"seq": seq, "at": NOW, "kind": "stage", "stage": stage, "message": message, "data": {}, **more}


STORY = {
    "READY": [
        event(1, "QUEUED", "accepted"),
        event(2, "VALIDATING", "validating configuration"),
        event(3, "PROVISIONING", "provisioning instance", attempt=1),
        event(4, "TEARING_DOWN", f"attempt 1 given up: {ERROR['message']}", attempt=1, data={"error": ERROR}),
        event(5, "REGISTERING", "registering node", attempt=2),
        event(6, "READY", "ready", attempt=2),
    ],
    "FAILED": [event(1, "QUEUED", "accepted"), event(2, "FAILED", ERROR["message"], data={"error": ERROR})],
    "CANCELLED": [event(1, "QUEUED", "accepted"), event(2, "CANCELLED", "cancelled; nothing is left")],
    "PROVISIONING": [event(1, "QUEUED", "accepted"), event(2, "PROVISIONING", "provisioning instance", attempt=1)],
}
STATUS = {"READY": "completed", "FAILED": "failed", "CANCELLED": "cancelled"}


@dataclass
class FakeApi:
    """What it does, and what it was asked."""

    end: str = "READY"  # stage that the launch reaches
    status: str | None = None  # overrides the status that belongs to it
    drop_after: list[int] = field(default_factory=list)  # events to send before each connection breaks off
    close_cleanly_after: int | None = None  # events to send before the stream ends as if it were complete, once
    answers: list[Response] = field(default_factory=list)  # answered, one a request, before anything else
    healthy: bool = True
    node_polls: int | None = None  # how often the node may be asked about before it is gone; None: it stays
    bucket: dict[str, Any] = field(default_factory=lambda: {"url": "s3://weights", "models": 3, "synced_at": NOW})
    bucket_polls: int = 0  # how often the bucket may be asked about before it is read
    provider_polls: int = 0  # how often the clouds may be asked about before they are checked
    taken: bool = True  # test messages, by the receiver of a channel
    on_sale: int = 1  # offers that there are
    offers_asked: list[dict[str, str]] = field(default_factory=list)  # the questions for them
    questions: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # each path with its query
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    def seen(self, method: str, path: str) -> list[dict[str, str]]:
        """Headers of the requests of that kind."""
        return [headers for verb, where, headers, _ in self.requests if (verb, where) == (method, path)]

    def app(self) -> Starlette:
        """The ASGI application."""
        handlers: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/admin/whoami"): lambda: {"principal": "admin-token", "role": "admin", "tenant": "default"},
            ("GET", "/admin/models/r2"): lambda: {"models": [MODEL]},
            ("POST", "/admin/models"): lambda: MODEL,
            ("GET", "/admin/models/estimate"): lambda: {**MODEL["vram_estimate"], "sequences": 64, "kv_cache_gb": 6.4},
            ("GET", "/admin/models/bucket"): self._bucket,
            ("POST", "/admin/models/refresh"): lambda: {"url": "s3://weights", "requested_at": NOW},
            ("DELETE", "/admin/models/org/model"): lambda: {"status": "deleted", "subject": "org/model"},
            ("GET", "/admin/offers"): self._offers,
            ("GET", "/admin/providers"): self._providers,
            ("POST", "/admin/providers/refresh"): lambda: {"requested_at": NOW},
            ("POST", "/admin/instances/launch"): lambda: {
                "job_id": JOB,
                "estimated_time": "about 90 s",
                "sandbox": True,
            },
            ("GET", "/admin/instances/status"): self._status,
            ("GET", "/admin/instances/launches"): lambda: {"launches": [self._status()], "next": "c2"},
            ("DELETE", f"/admin/instances/launch/{JOB}"): lambda: {"status": "cancelling", "subject": JOB},
            ("GET", "/admin/nodes"): lambda: {"nodes": [NODE]},
            ("GET", f"/admin/nodes/{NODE['node_id']}/status"): self._node,
            ("POST", f"/admin/nodes/{NODE['node_id']}/terminate"): lambda: {
                "status": "terminating",
                "subject": NODE["node_id"],
            },
            ("GET", "/admin/costs"): lambda: COSTS,
            ("GET", "/admin/costs/breakdown"): lambda: BREAKDOWN,
            ("GET", "/admin/costs/intervals"): lambda: {"intervals": [INTERVAL], "next": "c2"},
            ("GET", "/admin/budgets"): lambda: {"budgets": [BUDGET]},
            ("GET", "/admin/budgets/team"): lambda: BUDGET,
            ("PUT", "/admin/budgets/team"): lambda: BUDGET,
            ("DELETE", "/admin/budgets/team"): lambda: {"status": "deleted", "subject": "team"},
            ("GET", "/admin/api-keys"): lambda: {"api_keys": [KEY]},
            ("POST", "/admin/api-keys"): lambda: {**KEY, "key": "sf_abc_secret"},
            ("DELETE", "/admin/api-keys/abc"): lambda: {"status": "revoked", "subject": "abc"},
            ("GET", "/admin/audit"): lambda: {"entries": [AUDIT]},
            ("GET", "/admin/notifications"): lambda: {"notifications": [NOTIFICATION], "next": "7"},
            ("GET", "/admin/notification-channels"): lambda: {"channels": [CHANNEL]},
            ("POST", "/admin/notification-channels"): lambda: CHANNEL,
            ("PATCH", "/admin/notification-channels/on-call"): lambda: CHANNEL,
            ("DELETE", "/admin/notification-channels/on-call"): lambda: {"status": "removed", "subject": "channel-1"},
            ("POST", "/admin/notification-channels/on-call/test"): lambda: {
                "channel": "on-call",
                "ok": self.taken,
                "detail": "" if self.taken else "error=404",
                "seconds": 0.4,
            },
        }

        async def handle(request: Request) -> Response:
            body = await request.body()
            self.requests.append(
                (request.method, request.url.path, dict(request.headers), json.loads(body) if body else None)
            )
            if self.answers:
                return self.answers.pop(0)
            if request.url.path == f"/admin/instances/launch/{JOB}/events":
                return StreamingResponse(
                    self._stream(int(request.headers.get("last-event-id", "0"))), media_type="text/event-stream"
                )
            self.questions.append((request.url.path, dict(request.query_params)))
            if request.url.path == "/admin/offers":
                self.offers_asked.append(dict(request.query_params))
            answer = handlers.get((request.method, request.url.path))
            if answer is None:
                return problem(404, f"no {request.url.path!r}")
            shown = answer()
            return JSONResponse(shown, 503 if request.url.path == "/health" and not shown["ok"] else 200)

        return Starlette(routes=[Route("/{rest:path}", handle, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])])

    def _bucket(self) -> dict[str, Any]:
        self.bucket_polls -= 1
        return {**self.bucket, "attempted_at": BEFORE if self.bucket_polls >= 0 else NOW}

    def _offers(self) -> dict[str, Any]:
        asked = self.offers_asked[-1]
        first, size = int(asked.get("cursor", 0)), int(asked.get("limit", 500))
        rest = range(first, self.on_sale)[:size]
        after = first + len(rest)
        return {
            "offers": [OFFER for _ in rest],
            "total": self.on_sale,
            "next": str(after) if after < self.on_sale else None,
        }

    def _providers(self) -> dict[str, Any]:
        self.provider_polls -= 1
        checked = BEFORE if self.provider_polls >= 0 else NOW
        return {"providers": [{**one, "checked_at": checked} for one in PROVIDERS], "backends": [BACKEND]}

    def _health(self) -> dict[str, Any]:
        parts = {"database": {"ok": True}, "temporal": {"ok": self.healthy, "detail": "" if self.healthy else "away"}}
        return {"ok": self.healthy, "version": "0.1.0", "sandbox": True, "components": parts}

    def _node(self) -> dict[str, Any]:
        if self.node_polls is not None:
            self.node_polls -= 1
            if self.node_polls < 0:
                return {**NODE, "status": "terminated", "status_message": "gone"}
        return NODE

    def _status(self) -> dict[str, Any]:
        failed = self.end == "FAILED"
        return {
            "job_id": JOB,
            "status": self.status or STATUS.get(self.end, "in_progress"),
            "stage": self.end,
            "stage_label": self.end.lower(),
            "progress": 100 if self.end == "READY" else 45,
            "stages": ["✓ validating configuration", "→ provisioning instance"],
            "attempts": [ATTEMPT],
            "attempt_count": 1,
            "cancel_requested": False,
            "requested": {},
            "model_name": "org/model",
            "provider": "aws",
            "region": "us-east-1",
            "zone": "us-east-1a",
            "instance_type": "g5.xlarge",
            "market": "spot",
            "hourly_price": "0.402400",
            "tenant": "default",
            "requested_by": "admin-token",
            "error": ERROR if failed else None,
            "error_message": ERROR["message"] if failed else None,
            "raw_error": ERROR["raw"] if failed else None,
            "node_id": NODE["node_id"] if self.end == "READY" else None,
            "endpoint_url": NODE["endpoint_url"] if self.end == "READY" else None,
            "created_at": NOW,
            "updated_at": NOW,
            "sandbox": True,
            "workflow_id": f"launch/{JOB}",
            "workflow_url": "http://127.0.0.1:8233/namespaces/default/workflows/launch",
        }

    async def _stream(self, after: int) -> AsyncIterator[bytes]:
        story = [one for one in STORY[self.end] if one["seq"] > after]
        drop = self.drop_after.pop(0) if self.drop_after else None
        close, self.close_cleanly_after = self.close_cleanly_after, None
        yield b": ping\r\n\r\n"
        for number, one in enumerate(story):
            if number == drop:
                raise ConnectionResetError("dropped on purpose")
            if number == close:
                return
            yield f"id: {one['seq']}\r\nevent: {one['kind']}\r\ndata: {json.dumps(one)}\r\n\r\n".encode()
        if self.end not in STATUS:
            await asyncio.sleep(60)  # the launch goes on


def problem(status: int, detail: str, **more: Any) -> Response:
    """An error as the API answers it."""
    return JSONResponse(
        {"title": "Error", "status": status, "detail": detail, **more},
        status,
        media_type="application/problem+json",
    )


@contextmanager
def served(api: FakeApi) -> Iterator[str]:
    """Its URL, while it listens on a free port in a thread of its own."""
    config = uvicorn.Config(
        api.app(),
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # Not `server.run`: it would make uvloop the whole run's event loop policy, which breaks asyncio's subprocesses.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


OFFER = {
    "cloud": "aws",
    "region": "us-east-1",
    "zone": "us-east-1a",
    "instance_type": "g5.xlarge",
    "market": "spot",
    "hourly_price": "0.402400",
    "spot_saving": 0.6,
    "gpu": "A10G",
    "gpu_count": 1,
    "gpu_memory_gb": 24.0,
    "vcpus": 4,
    "memory_gb": 16.0,
    "sandbox": True,
    "fits": False,
    "why_not": "too small",
}
PROVIDERS: list[dict[str, Any]] = [
    {
        "cloud": "aws",
        "backend": "skypilot",
        "enabled": True,
        "offers": 118,
        "cheapest_price": "0.402400",
        "gpus": ["A10G", "H100"],
        "regions": [{"region": "us-east-1", "offers": 118, "cheapest_price": "0.402400"}],
    },
    {"cloud": "azure", "backend": "skypilot", "enabled": False, "reason": "no token. Run:\n  $ az login"},
]
BACKEND = {"name": "skypilot", "engines": ["vllm"], "sandbox": False, "error": "SkyPilot does not answer"}
COSTS = {
    "as_of": NOW,
    "month_start": "2026-11-01T00:00:00Z",
    "month_end": "2026-12-01T00:00:00Z",
    "month_to_date": "120.500000",
    "forecast": "180.250000",
    "hourly_rate": "0.402400",
    "spot_saving": "60.00",
    "spot_saving_fraction": 0.6,
    "failed_cost": "1.250000",
    "sandbox": True,
}
_PART = {"cost": "7.500000", "spot_saving": "2.000000", "failed_cost": "0.500000", "machines": 3, "hours": 12.3456}
BREAKDOWN = {
    "by": "instance_type",
    "start": "2026-11-01T00:00:00Z",
    "end": NOW,
    "as_of": NOW,
    "total": _PART,
    "parts": [{**_PART, "key": "g5.xlarge"}, {**_PART, "key": None}],
    "truncated": True,
    "sandbox": False,
}
INTERVAL = {
    "machine": "sf-0123456789ab-1",
    "instance_id": "i-0123",
    "start": "2026-11-22T05:00:00Z",
    "end": None,
    "hours": 1.0,
    "price_per_hour": "0.402400",
    "on_demand_price": "1.006000",
    "total": "0.402400",
    "outcome": "failed",
    "provider": "aws",
    "region": "us-east-1",
    "zone": "us-east-1a",
    "instance_type": "g5.xlarge",
    "spot": True,
    "sandbox": True,
}
BUDGET = {
    "id": "budget-1",
    "name": "team",
    "scope": "tenant",
    "value": "research",
    "amount": "800.000000",
    "alert_fractions": ["0.5", "0.8", "1"],
    "hard_stop": "drain",
    "spent": "820.000000",
    "forecast": "900.000000",
    "hourly_rate": "1.000000",
    "exhausted": True,
    "alerts": [{"fraction": "0.5000", "spent": "401.00", "amount": "800.00", "at": NOW}],
    "created_by": "admin-token",
    "created_at": NOW,
    "updated_at": NOW,
}
KEY = {
    "id": "abc",
    "name": "ci",
    "role": "operator",
    "tenant": "default",
    "created_by": "admin-token",
    "created_at": NOW,
}
AUDIT = {
    "id": 1,
    "at": NOW,
    "principal": "admin-token",
    "action": "launch.create",
    "subject": JOB,
    "outcome": "accepted",
    "detail": {"model": "org/model"},
}
CHANNEL = {
    "id": "channel-1",
    "name": "on-call",
    "masked_url": "slack://****",
    "service": "Slack",
    "kinds": ["node_lost"],
    "tenants": [],
    "min_severity": "warning",
    "throttle_count": 10,
    "throttle_seconds": 300,
    "enabled": True,
    "created_by": "admin-token",
    "created_at": NOW,
    "updated_at": NOW,
}
NOTIFICATION = {
    "id": 8,
    "at": NOW,
    "kind": "launch_failed",
    "severity": "warning",
    "subject": JOB,
    "title": "Launch failed: org/model",
    "body": "No capacity.",
    "tenant": "default",
    "data": {"attempts": 1},
    "deliveries": [
        {"channel_id": "channel-1", "channel": "on-call", "state": "sent", "attempts": 1, "created_at": NOW},
        {
            "channel_id": None,
            "channel": "old",
            "state": "failed",
            "attempts": 9,
            "error": "error=500",
            "created_at": NOW,
        },
    ],
}
