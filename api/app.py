"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from api import openapi
from api.middleware import Guard, refuse_unstorable_text
from api.problems import ProblemError, on_http_exception, on_invalid_request, on_problem
from api.routes import (
    access,
    agents,
    catalog,
    costs,
    doctor,
    downloads,
    health,
    launches,
    metrics,
    models,
    nodes,
    notifications,
    providers,
)
from api.services import Services
from api.temporal import TemporalWorkflows, Workflows
from skyfleet import __version__
from skyfleet.settings import Settings
from skyfleet.telemetry import traces


async def _storable_body(connection: HTTPConnection) -> None:
    """For each request; a WebSocket has no body."""
    if isinstance(connection, Request) and connection.method in ("POST", "PUT", "PATCH"):
        refuse_unstorable_text(await connection.body())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.start()
    try:
        yield
    finally:
        await services.stop()


def create_app(settings: Settings, workflows: Workflows | None = None) -> FastAPI:
    """The API. `workflows` is for tests; the real one talks to the Temporal server of the settings."""
    app = FastAPI(
        title="Skyfleet",
        summary="A durable control plane for GPU fleets.",
        description=openapi.DESCRIPTION,
        version=__version__,
        lifespan=_lifespan,
        redoc_url=None,
        exception_handlers={
            ProblemError: on_problem,
            RequestValidationError: on_invalid_request,
            HTTPException: on_http_exception,
        },
    )
    app.state.services = Services(settings, workflows or TemporalWorkflows(settings))
    # Agents before nodes: `/admin/nodes/register` is not a node's name.
    for routes in (launches, agents, nodes, models, catalog, providers, costs, notifications, access, doctor):
        app.include_router(routes.router, dependencies=[Depends(_storable_body)])
    app.include_router(downloads.router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Admin-Token"],
            expose_headers=["Idempotency-Replayed", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes)
    traces.instrument(app)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app
