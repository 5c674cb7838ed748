"""The local cloud's HTTP API. JSON throughout; times ISO 8601 in UTC, money a decimal string in US dollars.

Renting (`Cloud` in `skyfleet.clouds.base` says what each promises):

    GET    /v1/health                          {"status": "ok", …}
    GET    /v1/offers                          [Offer]; with an ETag
    PUT    /v1/instances/{name}                CreateRequest -> CloudInstance; 201 the first time, 200 again.
                                               Tag `skyfleet/virtual` = "true"/"false" chooses how it runs.
    GET    /v1/instances/{name}                CloudInstance, terminated ones too; 404 `InstanceNotFound`
    GET    /v1/instances?owner=&state=         [CloudInstance]; without `state` all that are not terminated
    DELETE /v1/instances/{name}                202: accepted, and the name retired, known or not
    GET    /v1/instances/{name}/wait?state=running&timeout=25
                                               CloudInstance once it is in that state or past it, or at the timeout

A `CloudInstance` here has two more keys: `mode` (process or virtual) and `message` (why it ended, for people).
`address` is the URL of the machine's engine once it runs.

Errors: `{"error": {"cloud", "code", "raw"}}` with the raw text of the real cloud (`wording`), and `x-request-id`.
Codes of our own: `NameRetired` and `IdempotentParameterMismatch` (409), `InstanceNotFound` (404), `InvalidRequest`
(422), `NotSpot` and `NotRunning` (409).

The judge (`ledger` has the billing rule):

    GET    /v1/ledger?owner=&name=&state=      every machine ever: times, reason, billed_seconds, cost, mode
    GET    /v1/ledger/summary?owner=           {"instances", "by_state", "running", "living": [names], "billed_seconds",
                                               "cost"}

The bench:

    GET    /v1/capacity?cloud=&region=&zone=&instance_type=&market=
    PUT    /v1/capacity                        the same keys in the body (null fits all) and "capacity" (null: as the
                                               file or the trace says); "reclaim": true preempts what is above it
    POST   /v1/faults                          FaultRule (`faults`) -> {"id"}; rules outlive a restart
    GET    /v1/faults                          rules with "hits"
    DELETE /v1/faults, /v1/faults/{id}
    POST   /v1/instances/{name}/preempt        {"notice_s": null}: spot only; null: as long as its cloud gives
    POST   /v1/instances/{name}/kill-agent     -9 to the main process; the machine runs on, and is billed

`…/wait` counts as a `get` for fault rules, and what machines ask under `/metadata` as `metadata`. The API has no
authentication: it listens on loopback and sells nothing.

Machines:

    *      /metadata/{instance id}/…           the instance metadata service of its cloud (`metadata`)
    GET    /virtual/{name}/health              200 while that virtual machine runs, as its heartbeats say
    *      /virtual/{name}/…                   503: a virtual machine serves no engine

A machine is PENDING for its provisioning delay, then RUNNING: only then its boot script fetches
`{control_plane_url}/downloads/node-agent/{agent_version}` (again and again, until it gets the file with the right
SHA-256) and starts it. An agent that crashes does not end the machine; one that exits after its `shutdown_command`
does (reason `shutdown`). Ends are STOPPING until no process of the machine is left.

When the cloud's process dies its machines go on, and are adopted by the next one. A clean stop (SIGTERM, SIGINT)
stops the machines' processes but ends no machine: in the ledger they stay RUNNING, and are *billed* through, until
the next start boots them again in the same folder, on the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from decimal import Decimal
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from skyfleet.clouds.local import metadata
from skyfleet.clouds.local.faults import Effect, FaultRule, Operation
from skyfleet.clouds.local.ledger import Machine, now
from skyfleet.clouds.local.service import LocalCloudService
from skyfleet.clouds.local.wording import Place, Refusal
from skyfleet.domain.offers import CreateRequest, InstanceState
from skyfleet.domain.states import Market

log = logging.getLogger("skyfleet.clouds.local")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_WAIT_S = 60.0
_ABORT = "skyfleet.abort"
#: Clients drop idle connections before this, so that none is closed under a request.
_KEEP_ALIVE_S = 75

Handler = Callable[[Request], Awaitable[Response]]


class SetCapacity(BaseModel):
    """Body of `PUT /v1/capacity`."""

    model_config = ConfigDict(extra="forbid")

    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    market: Market | None = None
    capacity: int | None = Field(ge=0)
    reclaim: bool = False


class Preempt(BaseModel):
    """Body of `POST /v1/instances/{name}/preempt`."""

    model_config = ConfigDict(extra="forbid")

    notice_s: float | None = Field(default=None, ge=0)


class NoReply(Response):
    """Closes the connection instead of answering, as a lost reply looks from outside."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_ABORT]()
        while (await receive())["type"] != "http.disconnect":
            pass


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a way for the application to close the connection without an answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: MutableMapping[str, Any] = self.scope  # type: ignore[assignment]
        scope[_ABORT] = self.transport.abort


class Api:
    """The routes over one cloud."""

    def __init__(self, service: LocalCloudService) -> None:
        self._service = service

    def app(self) -> Starlette:
        """The ASGI application."""

        def route(method: str, path: str, handler: Handler) -> Route:
            return Route(path, handler, methods=[method])

        return Starlette(
            routes=[
                route("PUT", "/v1/instances/{name}", self.create),
                route("GET", "/v1/instances/{name}", self.get),
                route("GET", "/v1/instances/{name}/wait", self.wait),
                route("DELETE", "/v1/instances/{name}", self.terminate),
                route("GET", "/v1/instances", self.list),
                route("GET", "/v1/offers", self.offers),
                Route(
                    "/metadata/{machine_id}/{path:path}",
                    self.metadata,
                    methods=["GET", "PUT", "POST", "DELETE", "PATCH"],
                ),
                route("GET", "/virtual/{name}/health", self.virtual_health),
                Route("/virtual/{rest:path}", self.virtual, methods=["GET", "PUT", "POST", "DELETE", "PATCH"]),
                route("GET", "/v1/health", self.health),
                route("GET", "/v1/ledger", self.ledger),
                route("GET", "/v1/ledger/summary", self.summary),
                route("GET", "/v1/capacity", self.capacity),
                route("PUT", "/v1/capacity", self.set_capacity),
                route("GET", "/v1/faults", self.faults),
                route("POST", "/v1/faults", self.add_fault),
                route("DELETE", "/v1/faults", self.remove_faults),
                route("DELETE", "/v1/faults/{fault_id:int}", self.remove_faults),
                route("POST", "/v1/instances/{name}/preempt", self.preempt),
                route("POST", "/v1/instances/{name}/kill-agent", self.kill_agent),
            ],
            exception_handlers={Refusal: _refused, ValidationError: _invalid},
        )

    # --- renting --------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        wanted = CreateRequest.model_validate_json(await request.body())
        name = request.path_params["name"]
        if wanted.name != name or _NAME.fullmatch(name) is None:
            raise _our(422, "InvalidRequest", f"not a name, or not the body's: {name!r}")
        effect = await self._before("create", name, self._service.place(wanted.offer))
        machine, new = self._service.create(wanted, effect.boot_faults())
        return await self._after(effect, self._view(machine, 201 if new else 200))

    async def get(self, request: Request) -> Response:
        name = request.path_params["name"]
        effect = await self._before("get", name, self._place_of(name))
        return await self._after(effect, self._view(self._known(name)))

    async def wait(self, request: Request) -> Response:
        name = request.path_params["name"]
        state = InstanceState(_choice(request, "state", [one.value for one in InstanceState], "running"))
        timeout_s = min(_MAX_WAIT_S, _number(request, "timeout", 25.0))
        effect = await self._before("get", name, self._place_of(name))
        self._known(name)
        machine = await self._service.wait(name, state, timeout_s)
        return await self._after(effect, self._view(machine or self._known(name)))

    async def list(self, request: Request) -> Response:
        owner, state = request.query_params.get("owner"), request.query_params.get("state")
        effect = await self._before("list")
        if state == InstanceState.TERMINATED:
            machines = list(self._service.ledger.machines(owner=owner, state=state))
        else:
            machines = [one for one in self._service.living(owner) if state is None or one.state == state]
        views = [machine.view(self._service.address(machine)) for machine in machines]
        return await self._after(effect, JSONResponse(views))

    async def terminate(self, request: Request) -> Response:
        name = request.path_params["name"]
        effect = await self._before("terminate", name, self._place_of(name))
        machine = self._service.terminate(name)
        state = None if machine is None else machine.state.value
        return await self._after(effect, JSONResponse({"name": name, "state": state, "sandbox": True}, 202))

    async def offers(self, request: Request) -> Response:
        effect = await self._before("offers")
        etag = self._service.offers_etag
        if request.headers.get("if-none-match") == etag:
            return await self._after(effect, Response(status_code=304, headers={"etag": etag}))
        reply = Response(self._service.offers_json, media_type="application/json", headers={"etag": etag})
        return await self._after(effect, reply)

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "sandbox": True, "living": sum(1 for _ in self._service.living(None))})

    # --- the judge ------------------------------------------------------------------------------------------

    async def ledger(self, request: Request) -> Response:
        query, at = request.query_params, now()
        machines = self._service.ledger.machines(
            owner=query.get("owner"), name=query.get("name"), state=query.get("state")
        )
        return JSONResponse([machine.entry(at) for machine in machines])

    async def summary(self, request: Request) -> Response:
        at = now()
        entries = [one.entry(at) for one in self._service.ledger.machines(owner=request.query_params.get("owner"))]
        by_state = Counter(entry["state"] for entry in entries)
        return JSONResponse(
            {
                "instances": len(entries),
                "by_state": {state.value: by_state[state.value] for state in InstanceState},
                "running": by_state[InstanceState.RUNNING.value],
                "living": [entry["name"] for entry in entries if entry["state"] != InstanceState.TERMINATED.value],
                "billed_seconds": sum(entry["billed_seconds"] for entry in entries),
                "cost": str(sum((Decimal(entry["cost"]) for entry in entries), Decimal(0))),
                "sandbox": True,
            }
        )

    # --- the bench ------------------------------------------------------------------------------------------

    async def capacity(self, request: Request) -> Response:
        fields = ("cloud", "region", "zone", "instance_type", "market")
        pools = self._service.pools(**{field: request.query_params.get(field) for field in fields})
        return JSONResponse([pool.view() for pool in pools])

    async def set_capacity(self, request: Request) -> Response:
        wanted = SetCapacity.model_validate_json(await request.body())
        pools = self._service.pools(**wanted.model_dump(exclude={"capacity", "reclaim"}))
        if not pools:
            raise _our(422, "InvalidRequest", "nothing is sold in such a place")
        self._service.set_capacity(pools, wanted.capacity, reclaim=wanted.reclaim)
        return JSONResponse([pool.view() for pool in pools])

    async def faults(self, _request: Request) -> Response:
        return JSONResponse(self._service.faults.view())

    async def add_fault(self, request: Request) -> Response:
        rule = FaultRule.model_validate_json(await request.body())
        return JSONResponse({"id": self._service.faults.add(rule)}, 201)

    async def remove_faults(self, request: Request) -> Response:
        return JSONResponse({"removed": self._service.faults.remove(request.path_params.get("fault_id"))})

    async def preempt(self, request: Request) -> Response:
        body = await request.body()
        wanted = Preempt.model_validate_json(body) if body else Preempt()
        machine = self._known(request.path_params["name"])
        if machine.market is not Market.SPOT:
            raise _our(409, "NotSpot", f"{machine.name} is not a spot machine")
        if machine.state not in (InstanceState.PENDING, InstanceState.RUNNING):
            raise _our(409, "NotRunning", f"{machine.name} is {machine.state}")
        self._service.preempt(machine, wanted.notice_s)
        return self._view(machine, 202)

    async def kill_agent(self, request: Request) -> Response:
        machine = self._known(request.path_params["name"])
        if not self._service.kill_agent(machine):
            raise _our(409, "NotRunning", f"{machine.name} has no running agent")
        return self._view(machine)

    # --- machines -------------------------------------------------------------------------------------------

    async def metadata(self, request: Request) -> Response:
        machine = self._service.find_id(request.path_params["machine_id"])
        if machine is None:
            return PlainTextResponse("Not Found", 404)
        path = request.path_params["path"]
        strike = self._service.faults.strike("metadata", machine.name, self._place_of(machine.name))
        await strike.hold_up()
        refusal = strike.effect.refusal(self._place_of(machine.name))
        if refusal is not None:
            return PlainTextResponse(refusal.raw, refusal.status)
        answer = await metadata.answer(request, machine, path, self._service.secret, self._service.changed)
        return await self._after(strike.effect, answer)

    async def virtual_health(self, request: Request) -> Response:
        machine = self._service.find(request.path_params["name"])
        if machine is None or machine.mode != "virtual" or machine.state is not InstanceState.RUNNING:
            return PlainTextResponse("Not Found", 404)
        return JSONResponse({"virtual": True})

    async def virtual(self, _request: Request) -> Response:
        message = "a virtual machine of the local cloud serves no engine"
        return JSONResponse({"error": {"cloud": "local", "code": "VirtualMachine", "raw": message}}, 503)

    # --- helpers --------------------------------------------------------------------------------------------

    async def _before(self, operation: Operation, name: str = "", place: Place | None = None) -> Effect:
        strike = self._service.faults.strike(operation, name, place)
        await strike.hold_up()
        refusal = strike.effect.refusal(place)
        if refusal is not None:
            raise refusal
        return strike.effect

    async def _after(self, effect: Effect, reply: Response) -> Response:
        if effect.delay_after_s:
            await asyncio.sleep(effect.delay_after_s)
        return NoReply() if effect.drop_reply else reply

    def _view(self, machine: Machine, status: int = 200) -> Response:
        return JSONResponse(machine.view(self._service.address(machine)), status)

    def _known(self, name: str) -> Machine:
        machine = self._service.find(name)
        if machine is None:
            raise _our(404, "InstanceNotFound", f"no instance is named {name}")
        return machine

    def _place_of(self, name: str) -> Place | None:
        machine = self._service.find(name)
        return None if machine is None else self._service.place(machine)


class Server(uvicorn.Server):
    """uvicorn, with a stop that waits for nobody's long poll and ends the process with status 0."""

    def __init__(self, service: LocalCloudService) -> None:
        super().__init__(
            uvicorn.Config(
                Api(service).app(),
                http=_Protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=2,
            )
        )
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True
        self._service.begin_stop()


async def serve(service: LocalCloudService, listening: socket.socket) -> None:
    """Run the cloud until SIGTERM or SIGINT, then suspend its machines."""
    service.start()
    try:
        await Server(service).serve(sockets=[listening])
    finally:
        service.begin_stop()
        await service.suspend()


def _our(status: int, code: str, raw: str) -> Refusal:
    return Refusal("local", code, raw, status)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {"x-request-id": str(uuid.uuid4())}
    if not error.raw:
        return Response(status_code=error.status, headers=headers)
    body = {"error": {"cloud": error.cloud, "code": error.code, "raw": error.raw}}
    return JSONResponse(body, error.status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    # Without the input: it may hold secrets.
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    text = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
    return await _refused(request, _our(422, "InvalidRequest", text))


def _choice(request: Request, key: str, allowed: list[str], default: str) -> str:
    value = request.query_params.get(key, default)
    if value not in allowed:
        raise _our(422, "InvalidRequest", f"{key}: one of {', '.join(allowed)}")
    return value


def _number(request: Request, key: str, default: float) -> float:
    try:
        value = float(request.query_params.get(key, default))
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise _our(422, "InvalidRequest", f"{key}: seconds")
    return value
