"""A control plane to look at: a real HTTP server whose answers a test lays out, and that notes what it is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.launches import stage_marks, status_of
from skyfleet.domain.states import STAGE_LABEL, AttemptState, LaunchStage, Market, NodeStatus, Role
from skyfleet.domain.views import (
    AttemptView,
    Identity,
    LaunchEvent,
    LaunchStatusView,
    LaunchSummary,
    ModelView,
    NodeInfo,
    OfferView,
    Problem,
)
from tests.ports import free_port

START: Final = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
ADMIN: Final = "admin-secret"
VIEWER: Final = "sf_viewer_secret"
LLAMA: Final = "meta-llama/Llama-3.1-8B-Instruct"


def model(name: str, gb: float, family: str = "llama", size: str = "8B") -> ModelView:
    """A model of the catalog."""
    return ModelView(
        id=name, name=name.rpartition("/")[2], family=family, size=size, vram_required_gb=gb, origin="manual"
    )


def offer(
    cloud: str, region: str, kind: str, price: str, market: Market = Market.ON_DEMAND, gb: float = 24
) -> OfferView:
    """Something on sale; it fits what needs 20 GB when it has them."""
    fits = gb >= 20
    return OfferView(
        cloud=cloud,
        region=region,
        zone=f"{region}a",
        instance_type=kind,
        market=market,
        hourly_price=Decimal(price),
        gpu="A10G" if fits else "T4",
        gpu_count=1,
        gpu_memory_gb=gb,
        vcpus=4,
        memory_gb=16,
        sandbox=True,
        fits=fits,
        why_not=None if fits else f"needs 20 GB of GPU memory, {kind} has {gb:g} GB",
    )


NO_SPOT: Final = ClassifiedError(
    kind=ErrorKind.CAPACITY,
    scope=ErrorScope.ZONE,
    retryable=True,
    code="InsufficientInstanceCapacity",
    cloud="aws",
    message="No spot capacity for g5.xlarge in us-east-1a.",
    next_steps=["try another region", "use on-demand"],
    raw="An error occurred (InsufficientInstanceCapacity) when calling RunInstances: <no> *capacity*",
)


def launch(
    job_id: str,
    stage: LaunchStage,
    *,
    reached: set[LaunchStage],
    attempts: list[AttemptView] | None = None,
    created_at: datetime = START,
    model_name: str = LLAMA,
    **more: Any,
) -> LaunchStatusView:
    """A launch in that stage, whose current attempt reached these."""
    marks = stage_marks(stage, reached)
    last = attempts[-1] if attempts else None
    return LaunchStatusView(
        job_id=job_id,
        status=status_of(stage),
        stage=stage,
        stage_label=STAGE_LABEL[stage],
        progress=100
        if stage is LaunchStage.READY
        else max((mark.progress for mark in marks if mark.stage in reached), default=0),
        stages=[mark.line for mark in marks],
        model_name=model_name,
        provider=last.provider if last else "aws",
        region=last.region if last else None,
        zone=last.zone if last else None,
        instance_type=last.instance_type if last else None,
        market=last.market if last else None,
        hourly_price=last.hourly_price if last else None,
        attempt_count=len(attempts or []),
        attempts=attempts or [],
        tenant="default",
        requested_by="ada",
        created_at=created_at,
        updated_at=created_at,
        ended_at=created_at + timedelta(seconds=30) if stage.terminal else None,
        sandbox=True,
        cancel_requested=False,
        requested={"model_name": model_name, "provider": "aws", "region": "us-east-1", "market": "spot", "env": []},
        workflow_id=f"launch/{job_id}",
        workflow_url=f"http://temporal.invalid/launch/{job_id}",
        **more,
    )


def attempt(number: int, region: str, state: AttemptState, error: ClassifiedError | None = None) -> AttemptView:
    """An attempt at a spot machine of AWS."""
    return AttemptView(
        number=number,
        state=state,
        provider="aws",
        region=region,
        zone=f"{region}a",
        instance_type="g5.xlarge",
        market=Market.SPOT,
        hourly_price=Decimal("0.4024"),
        cluster_name=f"sf-1-{number}",
        opened_at=START + timedelta(seconds=number),
        created_at=START + timedelta(seconds=number),
        running_at=START + timedelta(seconds=number + 1) if state is AttemptState.SUCCEEDED else None,
        closed_at=START + timedelta(seconds=number + 3) if state is AttemptState.CLOSED else None,
        cost=Decimal("0.0123") if state is AttemptState.SUCCEEDED else Decimal(0),
        error=error,
    )


def event(seq: int, stage: LaunchStage, message: str, *, kind: str = "stage", number: int | None = None) -> LaunchEvent:
    """One event, `seq` seconds after the start."""
    return LaunchEvent(
        seq=seq, at=START + timedelta(seconds=seq), kind=kind, stage=stage, attempt=number, message=message
    )


def node(name: str, status: NodeStatus = NodeStatus.READY) -> NodeInfo:
    """A node of AWS."""
    return NodeInfo(
        node_id=f"node-{name}",
        cluster_name=f"sf-{name}",
        launch_id="launch-00000001",
        status=status,
        status_message="",
        health_score=1.0,
        last_heartbeat_at=datetime.now(UTC),
        endpoint_url="http://127.0.0.1:9",
        model_name=LLAMA,
        provider="aws",
        region="us-west-2",
        zone="us-west-2a",
        instance_type="g5.xlarge",
        gpu_type="A10G",
        market=Market.SPOT,
        cost_per_hour=Decimal("0.4024"),
        cost=Decimal("0.0123"),
        registered_at=START,
        tenant="default",
        sandbox=True,
    )


@dataclass
class FakeApi:
    """What is answered, and what was asked. Change it while it runs."""

    url: str = ""
    keys: dict[str, Identity] = field(
        default_factory=lambda: {
            ADMIN: Identity(principal="admin-token", role=Role.ADMIN, tenant="default"),
            VIEWER: Identity(principal="vera", role=Role.VIEWER, tenant="default"),
        }
    )
    models: list[ModelView] = field(default_factory=list)
    offers: list[OfferView] = field(default_factory=list)
    launches: list[LaunchStatusView] = field(default_factory=list)
    events: dict[str, list[LaunchEvent]] = field(default_factory=dict)
    nodes: list[NodeInfo] = field(default_factory=list)
    away: bool = False
    refuse_launch: Problem | None = None
    lose_replies: int = 0  # so many accepted launches are answered with 500
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (Idempotency-Key, body)
    accepted: dict[str, str] = field(default_factory=dict)  # Idempotency-Key -> job_id
    cancelled: list[str] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        """The routes that the dashboard uses."""
        app = FastAPI()

        @app.middleware("http")
        async def gate(request: Request, call_next: Any) -> Response:
            if self.away:
                return _problem(503, "the database does not answer")
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if request.url.path != "/health" and token not in self.keys:
                return _problem(401, "the credentials are not known")
            self.asked.append((request.url.path, dict(request.query_params)))
            return await call_next(request)  # type: ignore[no-any-return]

        @app.get("/health")
        async def health() -> Any:
            return {"ok": True, "version": "0", "sandbox": True, "components": {}}

        @app.get("/admin/whoami")
        async def whoami(request: Request) -> Any:
            return self.keys[request.headers["authorization"].removeprefix("Bearer ")]

        @app.get("/admin/models/r2")
        async def models() -> Any:
            return {"models": self.models}

        @app.get("/admin/offers")
        async def offers() -> Any:
            return {"offers": self.offers, "total": len(self.offers)}

        @app.get("/admin/instances/launches")
        async def launches(request: Request, limit: int = 50, cursor: str | None = None) -> Any:
            wanted = request.query_params.getlist("status")
            name = request.query_params.get("model_name")
            found = [
                item
                for item in self.launches
                if (not wanted or item.status in wanted) and name in (None, item.model_name)
            ]
            start = int(cursor or 0)
            more = str(start + limit) if len(found) > start + limit else None
            page = [LaunchSummary.model_validate(item.model_dump()) for item in found[start : start + limit]]
            return {"launches": page, "next": more}

        @app.get("/admin/instances/status")
        async def status(job_id: str) -> Any:
            found = next((item for item in self.launches if item.job_id == job_id), None)
            return found or _problem(404, f"no launch {job_id!r}")

        @app.get("/admin/instances/launch/{job_id}/events")
        async def events(job_id: str) -> Any:
            async def stream() -> Any:
                sent = 0
                while True:
                    for item in self.events.get(job_id, [])[sent:]:
                        sent += 1
                        yield ServerSentEvent(data=item.model_dump_json(), id=str(item.seq), event=item.kind)
                        if item.stage.terminal:
                            return
                    await asyncio.sleep(0.02)

            return EventSourceResponse(stream())

        @app.post("/admin/instances/launch")
        async def post_launch(request: Request) -> Any:
            key = request.headers["idempotency-key"]
            self.posts.append((key, await request.json()))
            if self.refuse_launch is not None:
                return JSONResponse(self.refuse_launch.model_dump(), self.refuse_launch.status)
            job_id = self.accepted.setdefault(key, f"launch-{len(self.accepted) + 1:08x}")
            if all(item.job_id != job_id for item in self.launches):
                self.launches.insert(0, launch(job_id, LaunchStage.QUEUED, reached=set()))
                self.events[job_id] = [event(1, LaunchStage.QUEUED, "accepted")]
            if self.lose_replies:
                self.lose_replies -= 1
                return _problem(500, "the answer got lost")
            return JSONResponse({"status": "launching", "job_id": job_id, "estimated_time": "unknown"}, 202)

        @app.delete("/admin/instances/launch/{job_id}")
        async def cancel(job_id: str) -> Any:
            self.cancelled.append(job_id)
            found = next(item for item in self.launches if item.job_id == job_id)
            found.cancel_requested = True
            return JSONResponse({"status": "cancelling", "subject": job_id}, 202)

        @app.get("/admin/nodes")
        async def nodes(request: Request) -> Any:
            wanted = request.query_params.getlist("status")
            return {"nodes": [item for item in self.nodes if not wanted or item.status in wanted]}

        @app.post("/admin/nodes/{name}/terminate")
        async def terminate(name: str) -> Any:
            self.terminated.append(name)
            return JSONResponse({"status": "terminating", "subject": name}, 202)

        return app


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse(Problem(title="Refused", status=status, detail=detail).model_dump(), status)


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve on a free port of loopback, from a thread: the script under test runs, and waits, in this one."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    started = threading.Event()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        started.wait(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
