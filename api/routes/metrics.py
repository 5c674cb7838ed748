"""What Prometheus reads of the API."""

from __future__ import annotations

import hashlib
from typing import Final

from fastapi import APIRouter, Request, Response

from api.problems import ProblemError
from api.security import Requires, bearer, remote, same, sha256
from api.services import Services, Svc
from skyfleet.domain.states import Role
from skyfleet.telemetry import metrics

router = APIRouter(tags=["health"])

_LOOPBACK: Final = ("127.0.0.1", "::1")
#: What proxies add: a request with one of these came from elsewhere.
_PROXIED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_as_admin = Requires(Role.ADMIN)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Of this process and of the fleet: Prometheus's text format, or OpenMetrics if asked for.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'skyfleet_open_launches{stage="PLANNING"} 2\n',
                }
            },
        }
    },
)
async def tell(request: Request, services: Svc) -> Response:
    """Every API process tells the same of the fleet, as the database has it: take the maximum, not the sum.

    With the metrics token as `Authorization: Bearer`, or an admin's credentials; without any from the API's own
    machine, if no metrics token is set. While the database is away, `skyfleet_database_up` is 0 and the fleet is left
    out.
    """
    await _may_read(request, services)
    figures = await services.fleet.figures()
    body, media_type = metrics.exposition(
        request.headers.get("accept", ""),
        metrics.API,
        metrics.fleet_families(figures, services.settings.heartbeat_interval_seconds),
    )
    return Response(body, headers={"Content-Type": media_type})


async def _may_read(request: Request, services: Services) -> None:
    token = services.settings.metrics_token
    presented = bearer(request)
    if token is not None:
        expected = hashlib.sha256(token.get_secret_value().encode()).hexdigest()
        if presented is not None and same(sha256(presented), expected):
            return
    elif remote(request) in _LOOPBACK and not any(name in request.headers for name in _PROXIED):
        return
    if presented is None and "x-admin-token" not in request.headers:
        raise ProblemError(
            401,
            "no credentials: give Authorization: Bearer with the metrics token, or X-Admin-Token",
            headers={"WWW-Authenticate": 'Bearer realm="skyfleet"'},
        )
    await _as_admin(request)
