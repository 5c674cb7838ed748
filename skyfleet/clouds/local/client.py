"""The local cloud's clients: `LocalCloud` rents machines, `LocalCloudBench` reads the ledger and makes trouble."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError

from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudAccess, CloudInstance, CreateRequest, InstanceProgress, InstanceState, Offer

_OFFERS = TypeAdapter(list[Offer])
_INSTANCES = TypeAdapter(list[CloudInstance])
_LONG_POLL_S = 25.0
T = TypeVar("T")
_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    etag: str | None
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _Client:
    # aiohttp: every launch goes through here several times, and httpx takes several times the CPU for a request.
    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close connections."""
        if self._http is not None:
            await self._http.close()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Reply:
        """The reply, once it is a good one; `body` is JSON, or bytes of it. Raises `CloudError`, `CloudUnreachable`."""
        if self._http is None:  # a session belongs to the loop that runs when it is made
            # One long poll for each machine that comes up holds a connection of its own: no limit.
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_TIMEOUT,
                headers={"content-type": "application/json"},
            )
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            async with self._http.request(
                method, self._base_url + path, data=data, params=params, headers=headers
            ) as answer:
                reply = _Reply(answer.status, answer.headers.get("etag"), await answer.read())
                request_id = answer.headers.get("x-request-id")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CloudUnreachable(f"{method} {path}: {error or type(error).__name__}") from error
        if reply.status < 400:
            return reply
        try:
            said = reply.json()["error"]
            refusal = CloudError(said["cloud"], said["raw"], code=said["code"] or None, request_id=request_id)
        except (ValueError, KeyError, TypeError):
            refusal = None
        if refusal is not None:
            raise refusal
        if reply.status >= 500:
            raise CloudUnreachable(f"{method} {path}: HTTP {reply.status}")
        text = reply.body.decode(errors="replace")
        raise CloudError("local", text, code=f"HTTP{reply.status}", request_id=request_id)


class LocalCloud(_Client):
    """`skyfleet.clouds.base.Cloud` on a local cloud."""

    backend = "local"
    engines: tuple[str, ...] = ("echo", "llama_cpp", "command")

    def __init__(self, base_url: str) -> None:
        """`base_url`: where `python -m skyfleet.clouds.local` listens. Connects when first used."""
        super().__init__(base_url)
        self._offers: list[Offer] = []
        self._etag: str | None = None

    async def offers(self) -> list[Offer]:
        """Everything on sale; the list is fetched again only when it changed."""
        reply = await self._send("GET", "/v1/offers", headers={"if-none-match": self._etag} if self._etag else {})
        if reply.status != 304:
            self._offers = _parsed(_OFFERS, reply)
            self._etag = reply.etag
        return list(self._offers)

    async def access(self) -> list[CloudAccess]:
        """Every cloud that it plays; all are enabled."""
        clouds = {offer.cloud for offer in await self.offers()}
        return [CloudAccess(cloud=cloud, enabled=True) for cloud in sorted(clouds)]

    async def create(self, request: CreateRequest) -> CloudInstance:
        """Ask for a machine; the same name again returns the same machine."""
        reply = await self._send(
            "PUT",
            f"/v1/instances/{request.name}",
            body=request.model_dump_json().encode(),
        )
        return _parsed(_INSTANCE, reply)

    async def progress(self, name: str) -> AsyncIterator[InstanceProgress]:
        """Each state as it is reached, until the machine runs; `CloudError` if it never will."""
        machine = await self._look(name)
        if machine.state is InstanceState.PENDING:
            where = machine.zone or machine.region
            yield InstanceProgress(
                at=machine.created_at, state=machine.state, message=f"{machine.instance_type} accepted in {where}"
            )
        while machine.state is InstanceState.PENDING:
            machine = await self._look(name, wait_s=_LONG_POLL_S)
        if machine.state is not InstanceState.RUNNING or machine.running_at is None:
            code = machine.termination_reason or machine.state.value
            raise CloudError(machine.cloud, machine.message or f"{name} was terminated ({code})", code=code)
        yield InstanceProgress(at=machine.running_at, state=machine.state, message=f"{machine.id} runs")

    async def get(self, name: str) -> CloudInstance | None:
        """The machine of that name; None if the cloud knows none."""
        try:
            return _parsed(_INSTANCE, await self._send("GET", f"/v1/instances/{name}"))
        except CloudError as error:
            if error.code == "InstanceNotFound":
                return None
            raise

    async def list(self, owner: str) -> list[CloudInstance]:
        """All machines of that owner that are not terminated."""
        return _parsed(_INSTANCES, await self._send("GET", "/v1/instances", params={"owner": owner}))

    async def terminate(self, name: str) -> None:
        """Ask for the machine's end, and retire its name."""
        await self._send("DELETE", f"/v1/instances/{name}")

    async def _look(self, name: str, wait_s: float = 0.0) -> _Described:
        path, query = f"/v1/instances/{name}", {}
        if wait_s:
            path, query = f"{path}/wait", {"state": "running", "timeout": str(wait_s)}
        return _parsed(_DESCRIBED, await self._send("GET", path, params=query))


class LocalCloudBench(_Client):
    """The parts of a local cloud that no real cloud has: its judge's ledger, its capacity and its faults."""

    async def ledger(self, **filters: str) -> list[dict[str, Any]]:
        """Every machine ever; filters `owner`, `name`, `state`."""
        return list((await self._send("GET", "/v1/ledger", params=filters)).json())

    async def summary(self, **filters: str) -> dict[str, Any]:
        """Counts by state, names of the living, and the total cost; filter `owner`."""
        return dict((await self._send("GET", "/v1/ledger/summary", params=filters)).json())

    async def capacity(self, **filters: str) -> list[dict[str, Any]]:
        """Pools with `capacity`, `used` and `free`; filters `cloud`, `region`, `zone`, `instance_type`, `market`."""
        return list((await self._send("GET", "/v1/capacity", params=filters)).json())

    async def set_capacity(self, capacity: int | None, *, reclaim: bool = False, **where: str) -> None:
        """Set the capacity of all pools in that place; None: as configured. `reclaim` preempts what is above it."""
        await self._send("PUT", "/v1/capacity", body={**where, "capacity": capacity, "reclaim": reclaim})

    async def add_fault(self, then: dict[str, Any], *, times: int | None = 1, **rule: Any) -> int:
        """Put a fault rule in force (`skyfleet.clouds.local.faults.FaultRule`); returns its id."""
        reply = await self._send("POST", "/v1/faults", body={**rule, "times": times, "then": then})
        return int(reply.json()["id"])

    async def faults(self) -> list[dict[str, Any]]:
        """The rules in force, with their `hits`."""
        return list((await self._send("GET", "/v1/faults")).json())

    async def clear_faults(self) -> None:
        """Take all rules out of force."""
        await self._send("DELETE", "/v1/faults")

    async def preempt(self, name: str, notice_s: float | None = None) -> None:
        """Announce a spot machine's preemption; None: as long before as its cloud does."""
        await self._send("POST", f"/v1/instances/{name}/preempt", body={"notice_s": notice_s})

    async def kill_agent(self, name: str) -> None:
        """Kill a machine's main process; the machine runs on."""
        await self._send("POST", f"/v1/instances/{name}/kill-agent")


class _Described(CloudInstance):
    message: str | None = None


_INSTANCE = TypeAdapter(CloudInstance)
_DESCRIBED = TypeAdapter(_Described)


def _parsed(shape: TypeAdapter[T], reply: _Reply) -> T:
    try:
        return shape.validate_json(reply.body)
    except ValidationError as error:
        raise CloudUnreachable(f"not an answer of a local cloud: {error.error_count()} faults") from error
