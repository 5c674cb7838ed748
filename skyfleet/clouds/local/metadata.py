"""Instance metadata, on the paths and with the rules of the real services, under `/metadata/{instance id}/`.

- AWS, IMDSv2: `PUT latest/api/token`, then `latest/meta-data/…` with the token. The notice of a preemption is at
  `spot/instance-action` (404 until there is one), the rebalance recommendation at `events/recommendations/rebalance`.
- GCP: `computeMetadata/v1/instance/…` with `Metadata-Flavor: Google`; `?wait_for_change=true` holds the request until
  the value changes (`timeout_sec`, `last_etag` as there). A preempted machine's `preempted` turns TRUE.
- Azure: `metadata/scheduledevents` and `metadata/instance/compute` with `Metadata: true` and an `api-version`; a
  preemption is a `Preempt` event.

A machine of another cloud has none of these paths, and no cloud answers on another's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from skyfleet.clouds.local.ledger import Machine
from skyfleet.domain.states import Market

_TTL = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "x-aws-ec2-metadata-token"  # noqa: S105 - a header's name
_MAX_TTL_S = 21_600
_PROJECT = "projects/000000000000"
_MAX_WAIT_S = 60.0

#: Waits until something about the machine changed, at most that many seconds.
Changed = Callable[[Machine, float], Awaitable[None]]


async def answer(request: Request, machine: Machine, path: str, secret: str, changed: Changed) -> Response:
    """What the machine's cloud answers to a request for `path`."""
    if machine.cloud == "aws":
        return _aws(request, machine, path, secret)
    if machine.cloud == "gcp":
        return await _gcp(request, machine, path, changed)
    if machine.cloud == "azure":
        return _azure(request, machine, path)
    return PlainTextResponse("Not Found", 404)


def _aws(request: Request, machine: Machine, path: str, secret: str) -> Response:
    if path == "latest/api/token":
        if request.method != "PUT":
            return PlainTextResponse("Method Not Allowed", 405)
        ttl = request.headers.get(_TTL, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= _MAX_TTL_S:
            return PlainTextResponse("Bad Request", 400)
        until = int(time.time()) + int(ttl)
        return PlainTextResponse(_token(machine, until, secret), headers={_TTL: ttl})
    if not path.startswith("latest/meta-data"):
        return PlainTextResponse("Not Found", 404)
    token = request.headers.get(_TOKEN, "")
    until_text = token.partition(".")[0]
    valid = until_text.isdigit() and int(until_text) >= time.time()
    if not valid or not hmac.compare_digest(token.encode(), _token(machine, int(until_text), secret).encode()):
        return PlainTextResponse("Unauthorized", 401)
    values = {
        "instance-id": machine.id,
        "instance-type": machine.instance_type,
        "instance-life-cycle": "spot" if machine.market is Market.SPOT else "on-demand",
        "placement/availability-zone": machine.zone or "",
        "placement/region": machine.region,
    }
    if machine.notice_at is not None and machine.preempt_at is not None:
        end = _seconds(machine.preempt_at)
        values["spot/instance-action"] = json.dumps({"action": "terminate", "time": end})
        values["spot/termination-time"] = end
        values["events/recommendations/rebalance"] = json.dumps({"noticeTime": _seconds(machine.notice_at)})
    value = values.get(path.removeprefix("latest/meta-data").strip("/"))
    return PlainTextResponse("Not Found", 404) if value is None else PlainTextResponse(value)


def _token(machine: Machine, until: int, secret: str) -> str:
    mac = hmac.new(secret.encode(), f"{machine.id}/{until}".encode(), hashlib.sha256).hexdigest()
    return f"{until}.{mac}"


async def _gcp(request: Request, machine: Machine, path: str, changed: Changed) -> Response:
    prefix = "computeMetadata/v1/instance/"
    if not path.startswith(prefix):
        return PlainTextResponse("Not Found", 404)
    if request.headers.get("metadata-flavor") != "Google":
        return PlainTextResponse("Missing Metadata-Flavor:Google header.", 403)
    name = path.removeprefix(prefix)
    value = _gcp_value(machine, name)
    if value is None:
        return PlainTextResponse("Not Found", 404)
    query = request.query_params
    if query.get("wait_for_change", "").lower() == "true":
        known = query.get("last_etag", _etag(value))
        limit = query.get("timeout_sec", "")
        deadline = time.monotonic() + (min(float(limit), _MAX_WAIT_S) if limit.isdigit() else _MAX_WAIT_S)
        while _etag(value) == known and not machine.ended and (left := deadline - time.monotonic()) > 0:
            await changed(machine, left)
            if await request.is_disconnected():
                break
            value = _gcp_value(machine, name) or ""
    return PlainTextResponse(value, headers={"Metadata-Flavor": "Google", "ETag": _etag(value)})


def _gcp_value(machine: Machine, name: str) -> str | None:
    preempted = machine.notice_at is not None
    return {
        "preempted": "TRUE" if preempted else "FALSE",
        "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE" if preempted else "NONE",
        "id": machine.id,
        "name": machine.name,
        "zone": f"{_PROJECT}/zones/{machine.zone}",
        "machine-type": f"{_PROJECT}/machineTypes/{machine.instance_type}",
        "scheduling/preemptible": "TRUE" if machine.market is Market.SPOT else "FALSE",
    }.get(name)


def _etag(value: str) -> str:
    return f"{zlib.crc32(value.encode()):016x}"


def _azure(request: Request, machine: Machine, path: str) -> Response:
    documents: dict[str, Callable[[Machine], dict[str, object]]] = {
        "metadata/scheduledevents": _azure_events,
        "metadata/instance": lambda one: {"compute": _azure_compute(one)},
        "metadata/instance/compute": _azure_compute,
    }
    document = documents.get(path)
    if document is None:
        return JSONResponse({"error": "Not found"}, 404)
    if request.headers.get("metadata", "").lower() != "true":
        return JSONResponse({"error": "Bad request. Required metadata header not specified"}, 400)
    if not request.query_params.get("api-version"):
        return JSONResponse({"error": "Bad request. api-version was not specified in the request"}, 400)
    return JSONResponse(document(machine))


def _azure_events(machine: Machine) -> dict[str, object]:
    if machine.notice_at is None or machine.preempt_at is None:
        return {"DocumentIncarnation": 1, "Events": []}
    event = {
        "EventId": hashlib.md5(machine.id.encode(), usedforsecurity=False).hexdigest().upper(),
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": [machine.name],
        "EventStatus": "Scheduled",
        "NotBefore": format_datetime(machine.preempt_at, usegmt=True),
        "Description": "The virtual machine is about to be evicted.",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return {"DocumentIncarnation": 2, "Events": [event]}


def _azure_compute(machine: Machine) -> dict[str, object]:
    return {
        "vmId": machine.id,
        "name": machine.name,
        "location": machine.region,
        "zone": machine.zone or "",
        "vmSize": machine.instance_type,
        "priority": "Spot" if machine.market is Market.SPOT else "Regular",
        "azEnvironment": "AzurePublicCloud",
    }


def _seconds(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
