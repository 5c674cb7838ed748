"""The typed HTTP client of the control plane: `SkyfleetClient`, and `AsyncSkyfleetClient` with the same methods.

Each method is described once, as a `Call` (what to send, how to read the answer), and both clients are made of the
same calls. Answers are the models of `skyfleet.domain.views`; a refusal is an `ApiError`, no answer an
`ApiUnreachable`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from skyfleet.domain.cost import CostKey, CostOutcome
from skyfleet.domain.doctor import DoctorReport
from skyfleet.domain.sizing import VramEstimate
from skyfleet.domain.states import LaunchStatus, NodeStatus, Role
from skyfleet.domain.views import (
    ApiKeyCreated,
    ApiKeyList,
    AuditList,
    BudgetList,
    BudgetView,
    ChannelList,
    ChannelTested,
    ChannelView,
    CommandAccepted,
    CostBreakdown,
    CostIntervalList,
    CostSummary,
    Health,
    Identity,
    LaunchAccepted,
    LaunchEvent,
    LaunchList,
    LaunchStatusView,
    ModelBucketView,
    ModelList,
    ModelRefreshAccepted,
    ModelView,
    NodeEventList,
    NodeInfo,
    NodeList,
    NotificationList,
    OfferList,
    Problem,
    ProviderList,
    ProviderRefreshAccepted,
)

DEFAULT_API: Final = "http://127.0.0.1:8080"
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
#: The API sends a comment line at least every 15 s on an idle stream; three missed ones mean that it is dead.
_STREAM_TIMEOUT = httpx.Timeout(45.0, connect=5.0)
#: All events that exist are sent at once: a stream that is silent for this long has told what there is.
_QUIET_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=1.0)
_TRIES = 5
_BUSY = frozenset({502, 503, 504})

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


# --- where the API is -----------------------------------------------------------------------------------------


class Endpoints(BaseModel):
    """`endpoints.json`, which `skyfleet up` keeps in its data folder while it runs."""

    api: str
    dashboard: str | None = None
    temporal_ui: str | None = None
    local_cloud: str | None = None
    skypilot: str | None = None
    model_bucket: str | None = None
    admin_token: str
    temporal: str | None = None
    data: str | None = None
    pids: dict[str, int] = {}


def data_folder() -> Path:
    """The data folder of the embedded stack: `SKYFLEET_DATA`, else `skyfleet` in the XDG data home."""
    if named := os.environ.get("SKYFLEET_DATA"):
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "skyfleet"


def find_endpoints(data: Path | None = None) -> Endpoints | None:
    """The addresses of the stack that runs on this data folder; None when none does, or its file is not for us."""
    try:
        return Endpoints.model_validate_json(((data or data_folder()) / "endpoints.json").read_bytes())
    except (OSError, ValidationError):
        return None


@dataclass(frozen=True)
class Target:
    """An API and the credentials for it. `token` is an API key, `admin_token` the control plane's own token."""

    url: str
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The credentials as the contract wants them; an API key goes before the admin token."""
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        return {"X-Admin-Token": self.admin_token} if self.admin_token else {}


def resolve(api: str | None = None, token: str | None = None, data: Path | None = None) -> Target:
    """Where to send requests, and as whom: arguments, then the environment, then the stack on this machine.

    Environment: `SKYFLEET_API`, `SKYFLEET_TOKEN`, `SKYFLEET_ADMIN_TOKEN`. The token of the embedded stack is used for
    that stack alone, never sent to another address. Raises `ApiUnreachable` for what is no URL.
    """
    url = api or os.environ.get("SKYFLEET_API")
    token = token or os.environ.get("SKYFLEET_TOKEN")
    admin_token = os.environ.get("SKYFLEET_ADMIN_TOKEN")
    if url is None or not (token or admin_token):
        local = find_endpoints(data)
        if local is not None and (url is None or url.rstrip("/") == local.api.rstrip("/")):
            url = local.api
            admin_token = admin_token or local.admin_token
    target = Target((url or DEFAULT_API).rstrip("/"), token, admin_token)
    try:
        httpx.URL(target.url)
    except httpx.InvalidURL as error:
        raise ApiUnreachable(target.url, _why(error)) from error
    return target


# --- what can go wrong ------------------------------------------------------------------------------------------


class ApiError(Exception):
    """The API refused. `str()` says why, which fields are wrong, and what they accept."""

    def __init__(self, status: int, problem: Problem) -> None:
        self.status = status
        self.problem = problem
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.problem.detail or self.problem.title]
        for wrong in self.problem.errors:
            if wrong.message not in lines[0]:
                lines.append(f"  {wrong.field}: {wrong.message}")
            # The message may name what is accepted already; a list is worth its own line only when it does not.
            if wrong.accepted and not all(name in wrong.message for name in wrong.accepted):
                lines.append(f"  accepted for {wrong.field}: {', '.join(wrong.accepted)}")
        return "\n".join(lines)


class ApiUnreachable(Exception):
    """No answer from the API, after all retries."""

    def __init__(self, url: str, why: str) -> None:
        self.url = url
        self.why = why
        super().__init__(f"the API at {url} does not answer: {why}")


def _problem(response: httpx.Response) -> ApiError:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        # Not our API's error: a proxy in between, or something else on that port.
        reason = response.reason_phrase or "error"
        problem = Problem(
            title=reason,
            status=response.status_code,
            detail=f"{response.request.url} answered {response.status_code} {reason}".strip(),
        )
    return ApiError(response.status_code, problem)


def _why(error: Exception) -> str:
    text = str(error).strip()
    return text or type(error).__name__


# --- calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how to read its answer. A `repeatable` call may reach the API twice with the effect of one."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    also_fine: frozenset[int] = frozenset()  # statuses that carry an answer, not a problem

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request, for either client."""
        params = {name: value for name, value in self.params.items() if value not in (None, [], ())}
        return client.build_request(
            self.method,
            self.path,
            params=params,
            headers=dict(self.headers),
            json=self.body,
        )

    def answer(self, response: httpx.Response) -> T:
        """What the response says; `ApiError` when it is a refusal or not an answer of this API."""
        if not response.is_success and response.status_code not in self.also_fine:
            raise _problem(response)
        try:
            return self.read(response.content)
        except ValidationError as error:
            detail = (
                f"{response.request.url} did not answer as this version of Skyfleet expects "
                f"({error.error_count()} fields differ): is it another program, or another version?"
            )
            raise ApiError(
                response.status_code, Problem(title="Unexpected answer", status=response.status_code, detail=detail)
            ) from error


def _reads(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _segment(name: str) -> str:
    return quote(name, safe="")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A body without what was not given; money as a decimal string."""
    given = {name: value for name, value in values.items() if value is not None}
    return json.loads(json.dumps(given, default=_json_value))  # type: ignore[no-any-return]


def _json_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


class _Calls:
    """The calls themselves. Their names, arguments and docstrings are those of the clients' methods."""

    @staticmethod
    def health() -> Call[Health]:
        """`GET /health`. An API that is up but not ready answers 503 with the same model; that is no error here."""
        return Call("GET", "/health", _reads(Health), repeatable=False, also_fine=frozenset({503}))

    @staticmethod
    def whoami() -> Call[Identity]:
        """Who the credentials stand for."""
        return Call("GET", "/admin/whoami", _reads(Identity))

    @staticmethod
    def doctor() -> Call[DoctorReport]:
        """What is configured, what is missing, and how to mend it, from where the API stands. Tried once."""
        return Call("GET", "/admin/doctor", _reads(DoctorReport), repeatable=False)

    @staticmethod
    def models() -> Call[list[ModelView]]:
        """The model catalog."""
        return Call("GET", "/admin/models/r2", lambda content: ModelList.model_validate_json(content).models)

    @staticmethod
    def register_model(body: Mapping[str, Any] | BaseModel) -> Call[ModelView]:
        """Put a model into the catalog, or change the one of that name."""
        return Call("POST", "/admin/models", _reads(ModelView), body=_body(body))

    @staticmethod
    def delete_model(model_id: str) -> Call[None]:
        """Take a model out of the catalog."""
        return Call("DELETE", f"/admin/models/{quote(model_id)}", lambda _: None)

    @staticmethod
    def model_estimate(
        model_name: str, *, context_tokens: int | None = None, sequences: int | None = None
    ) -> Call[VramEstimate]:
        """The GPU memory that a model takes, term by term, for that much use."""
        asked = {"model_name": model_name, "context_tokens": context_tokens, "sequences": sequences}
        return Call("GET", "/admin/models/estimate", _reads(VramEstimate), params=asked)

    @staticmethod
    def model_bucket() -> Call[ModelBucketView]:
        """The bucket that models are read from, and how its last reading went."""
        return Call("GET", "/admin/models/bucket", _reads(ModelBucketView))

    @staticmethod
    def refresh_models() -> Call[ModelRefreshAccepted]:
        """Have the model bucket read now. It is done once its `attempted_at` is not before `requested_at`."""
        return Call("POST", "/admin/models/refresh", _reads(ModelRefreshAccepted))

    @staticmethod
    def offers(
        *,
        model_name: str | None = None,
        fits: bool | None = None,
        provider: str | None = None,
        region: str | None = None,
        gpu: str | None = None,
        instance_type: str | None = None,
        market: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[OfferList]:
        """A page of what the clouds sell, cheapest first; with `model_name`, whether each fits it and why not.

        With `fits` as well, only those that fit it, or only those that do not.
        """
        asked = {
            "model_name": model_name,
            "fits": None if fits is None else str(fits).lower(),
            "provider": provider,
            "region": region,
            "gpu": gpu,
            "instance_type": instance_type,
            "market": market,
            "cursor": cursor,
            "limit": limit,
        }
        return Call("GET", "/admin/offers", _reads(OfferList), params=asked)

    @staticmethod
    def providers() -> Call[ProviderList]:
        """The clouds, why some are not enabled, and what the others sell by region."""
        return Call("GET", "/admin/providers", _reads(ProviderList))

    @staticmethod
    def refresh_providers() -> Call[ProviderRefreshAccepted]:
        """Have the clouds checked now. It is done once `checked_at` of each is not before `requested_at`."""
        return Call("POST", "/admin/providers/refresh", _reads(ProviderRefreshAccepted))

    @staticmethod
    def launch(body: Mapping[str, Any] | BaseModel, idempotency_key: str | None = None) -> Call[LaunchAccepted]:
        """Ask for a node. Without a key of your own one is made, so that a retried request is one launch."""
        key = idempotency_key or uuid.uuid4().hex
        return Call(
            "POST",
            "/admin/instances/launch",
            _reads(LaunchAccepted),
            body=_body(body),
            headers={"Idempotency-Key": key},
        )

    @staticmethod
    def status(job_id: str, live: bool = False) -> Call[LaunchStatusView]:
        """Where a launch stands; with `live`, also what its workflow itself answers."""
        return Call(
            "GET",
            "/admin/instances/status",
            _reads(LaunchStatusView),
            params={"job_id": job_id, "live": "true" if live else None},
        )

    @staticmethod
    def launches(
        *,
        status: Sequence[LaunchStatus | str] = (),
        model_name: str | None = None,
        provider: str | None = None,
        deployment: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[LaunchList]:
        """A page of the launch history, newest first."""
        asked = {
            "status": [str(one) for one in status],
            "model_name": model_name,
            "provider": provider,
            "deployment": deployment,
            "cursor": cursor,
            "limit": limit,
        }
        return Call("GET", "/admin/instances/launches", _reads(LaunchList), params=asked)

    @staticmethod
    def cancel(job_id: str) -> Call[CommandAccepted]:
        """Cancel a launch. It ends `cancelled` once the cloud confirms that nothing is left."""
        return Call("DELETE", f"/admin/instances/launch/{_segment(job_id)}", _reads(CommandAccepted))

    @staticmethod
    def nodes(
        *,
        status: Sequence[NodeStatus | str] = (),
        model_name: str | None = None,
        provider: str | None = None,
        deployment: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[NodeList]:
        """A page of the nodes, newest first."""
        asked = {
            "status": [str(one) for one in status],
            "model_name": model_name,
            "provider": provider,
            "deployment": deployment,
            "cursor": cursor,
            "limit": limit,
        }
        return Call("GET", "/admin/nodes", _reads(NodeList), params=asked)

    @staticmethod
    def node(name: str) -> Call[NodeInfo]:
        """One node, by its cluster name or node id."""
        return Call("GET", f"/admin/nodes/{_segment(name)}/status", _reads(NodeInfo))

    @staticmethod
    def terminate(name: str, reason: str = "") -> Call[CommandAccepted]:
        """End a node and its machine. It is `terminated` once the cloud confirms that the machine is gone."""
        body = {"reason": reason} if reason else None
        return Call("POST", f"/admin/nodes/{_segment(name)}/terminate", _reads(CommandAccepted), body=body)

    @staticmethod
    def drain(name: str, *, reason: str = "", seconds: float | None = None) -> Call[CommandAccepted]:
        """Take a node out of rotation; it ends once its requests are through, or after so many seconds."""
        body = {"reason": reason or None, "seconds": seconds}
        given = {key: value for key, value in body.items() if value is not None}
        return Call("POST", f"/admin/nodes/{_segment(name)}/drain", _reads(CommandAccepted), body=given or None)

    @staticmethod
    def replace(name: str, reason: str = "") -> Call[CommandAccepted]:
        """Ask for another node like this one, which serves until the other is READY, and ends then."""
        body = {"reason": reason} if reason else None
        return Call("POST", f"/admin/nodes/{_segment(name)}/replace", _reads(CommandAccepted), body=body)

    @staticmethod
    def node_events(name: str, *, after: int = 0, limit: int | None = None) -> Call[NodeEventList]:
        """A node's history in order, behind the event of that id."""
        query = {"after": after or None, "limit": limit}
        return Call("GET", f"/admin/nodes/{_segment(name)}/events", _reads(NodeEventList), params=query)

    @staticmethod
    def api_keys() -> Call[ApiKeyList]:
        """The API keys, without their secrets."""
        return Call("GET", "/admin/api-keys", _reads(ApiKeyList))

    @staticmethod
    def create_api_key(
        name: str, role: Role | str, *, tenant: str | None = None, expires_at: datetime | None = None
    ) -> Call[ApiKeyCreated]:
        """Make an API key. Its secret is in the answer and nowhere else."""
        body = {"name": name, "role": str(role), "tenant": tenant, "expires_at": expires_at}
        return Call("POST", "/admin/api-keys", _reads(ApiKeyCreated), body=_plain(body), repeatable=False)

    @staticmethod
    def revoke_api_key(key_id: str) -> Call[None]:
        """Make an API key useless, for good."""
        return Call("DELETE", f"/admin/api-keys/{_segment(key_id)}", lambda _: None)

    @staticmethod
    def costs(tenant: str | None = None) -> Call[CostSummary]:
        """What this UTC month cost so far, its forecast, and what is spent an hour now."""
        return Call("GET", "/admin/costs", _reads(CostSummary), params={"tenant": tenant})

    @staticmethod
    def cost_breakdown(
        by: CostKey | str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        provider: str | None = None,
        model_name: str | None = None,
        deployment: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
        limit: int | None = None,
    ) -> Call[CostBreakdown]:
        """Costs told apart by one thing, from `start` to before `end`: this month so far, if not given."""
        asked = {
            "by": str(by),
            "from": start.isoformat() if start else None,
            "to": end.isoformat() if end else None,
            "provider": provider,
            "model_name": model_name,
            "deployment": deployment,
            "user": user,
            "tenant": tenant,
            "limit": limit,
        }
        return Call("GET", "/admin/costs/breakdown", _reads(CostBreakdown), params=asked)

    @staticmethod
    def cost_intervals(
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        billed: bool | None = None,
        outcome: CostOutcome | str | None = None,
        provider: str | None = None,
        region: str | None = None,
        instance_type: str | None = None,
        market: str | None = None,
        model_name: str | None = None,
        deployment: str | None = None,
        experiment: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
        launch_id: str | None = None,
        node_id: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[CostIntervalList]:
        """A page of the cost ledger, newest first: one line a machine, failed attempts among them."""
        asked = {
            "from": start.isoformat() if start else None,
            "to": end.isoformat() if end else None,
            "billed": None if billed is None else str(billed).lower(),
            "outcome": None if outcome is None else str(outcome),
            "provider": provider,
            "region": region,
            "instance_type": instance_type,
            "market": market,
            "model_name": model_name,
            "deployment": deployment,
            "experiment": experiment,
            "user": user,
            "tenant": tenant,
            "launch_id": launch_id,
            "node_id": node_id,
            "cursor": cursor,
            "limit": limit,
        }
        return Call("GET", "/admin/costs/intervals", _reads(CostIntervalList), params=asked)

    @staticmethod
    def budgets() -> Call[BudgetList]:
        """The budgets, with what is spent of each this month."""
        return Call("GET", "/admin/budgets", _reads(BudgetList))

    @staticmethod
    def budget(name: str) -> Call[BudgetView]:
        """One budget."""
        return Call("GET", f"/admin/budgets/{_segment(name)}", _reads(BudgetView))

    @staticmethod
    def set_budget(name: str, body: Mapping[str, Any] | BaseModel) -> Call[BudgetView]:
        """Make a budget, or make the one of that name what the body says."""
        return Call("PUT", f"/admin/budgets/{_segment(name)}", _reads(BudgetView), body=_body(body))

    @staticmethod
    def delete_budget(name: str) -> Call[None]:
        """Delete a budget."""
        return Call("DELETE", f"/admin/budgets/{_segment(name)}", lambda _: None)

    @staticmethod
    def audit(
        *,
        principal: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[AuditList]:
        """A page of the audit log, newest first."""
        asked = {"principal": principal, "action": action, "subject": subject, "cursor": cursor, "limit": limit}
        return Call("GET", "/admin/audit", _reads(AuditList), params=asked)

    @staticmethod
    def notifications(
        *,
        kind: str | None = None,
        subject: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Call[NotificationList]:
        """A page of what people were told, newest first, with what became of it at each channel."""
        asked = {"kind": kind, "subject": subject, "cursor": cursor, "limit": limit}
        return Call("GET", "/admin/notifications", _reads(NotificationList), params=asked)

    @staticmethod
    def channels() -> Call[ChannelList]:
        """The notification channels, without their addresses."""
        return Call("GET", "/admin/notification-channels", _reads(ChannelList))

    @staticmethod
    def create_channel(body: Mapping[str, Any] | BaseModel) -> Call[ChannelView]:
        """Make a notification channel; `name` and `url` are needed."""
        return Call("POST", "/admin/notification-channels", _reads(ChannelView), body=_body(body), repeatable=False)

    @staticmethod
    def change_channel(channel: str, body: Mapping[str, Any] | BaseModel) -> Call[ChannelView]:
        """Change a notification channel, by id or name; what is left out stays as it is."""
        path = f"/admin/notification-channels/{_segment(channel)}"
        return Call("PATCH", path, _reads(ChannelView), body=_body(body))

    @staticmethod
    def remove_channel(channel: str) -> Call[CommandAccepted]:
        """Remove a notification channel, by id or name."""
        return Call("DELETE", f"/admin/notification-channels/{_segment(channel)}", _reads(CommandAccepted))

    @staticmethod
    def test_channel(channel: str) -> Call[ChannelTested]:
        """Send a test message to a channel now; what its receiver said. Sent once."""
        path = f"/admin/notification-channels/{_segment(channel)}/test"
        return Call("POST", path, _reads(ChannelTested), repeatable=False)


def _body(body: Mapping[str, Any] | BaseModel) -> dict[str, Any]:
    return _plain(body.model_dump(exclude_unset=True) if isinstance(body, BaseModel) else body)


# --- trying again -----------------------------------------------------------------------------------------------


class _Tries:
    """How often and how late one call is tried again, and what it raises in the end."""

    def __init__(self, base_url: str, repeatable: bool) -> None:
        self.base_url = base_url
        self.repeatable = repeatable
        self.made = 0

    def after_error(self, error: httpx.TransportError) -> float:
        """Seconds to wait before the next try, or raise `ApiUnreachable`."""
        self.made += 1
        # A connection that was never made has had no effect, whatever the call.
        safe = self.repeatable or isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        safe = safe and not isinstance(error, httpx.UnsupportedProtocol)
        if not safe or self.made >= _TRIES:
            raise ApiUnreachable(self.base_url, _why(error)) from error
        return self._pause()

    def after_response(self, response: httpx.Response) -> float | None:
        """Seconds to wait before the next try; None when the response counts."""
        self.made += 1
        if response.status_code not in _BUSY or not self.repeatable or self.made >= _TRIES:
            return None
        asked = response.headers.get("Retry-After", "")
        return min(float(asked), 5.0) if asked.isdigit() else self._pause()

    def _pause(self) -> float:
        return min(0.1 * 2.0**self.made, 2.0) * random.uniform(0.7, 1.3)  # noqa: S311  (jitter)


# --- following a launch -----------------------------------------------------------------------------------------


class _Follow:
    """Follows one launch over server-sent events, through any number of connections. Does no I/O itself.

    The stream is over after an event of a terminal stage. A server that closes without one is asked where the launch
    stands: only when it ended, and the rest of its events was read, is the stream over as well.
    """

    def __init__(
        self, base_url: str, job_id: str, after: int, live: bool, patience_s: float, lost: Callable[[str], None]
    ) -> None:
        self.base_url = base_url
        self.timeout = _STREAM_TIMEOUT if live else _QUIET_TIMEOUT
        self._live = live
        self._lost = lost
        self._open = False
        self.path = f"/admin/instances/launch/{_segment(job_id)}/events"
        self.last = after
        self.done = False
        self._patience_s = patience_s
        self._silent_since: float | None = None
        self._failures = 0
        self._ended = False
        self._data: list[str] = []

    @property
    def headers(self) -> dict[str, str]:
        """Asks for what follows the last event that was seen."""
        resume = {"Last-Event-ID": str(self.last)} if self.last else {}
        return {"Accept": "text/event-stream", "Cache-Control": "no-store", **resume}

    def opened(self) -> None:
        """A connection was made and accepted."""
        self._open = True
        self._silent_since = None
        self._failures = 0
        self._data.clear()

    def line(self, line: str) -> LaunchEvent | None:
        """Take one line of the stream; the event that it completes, unless it was seen before.

        The field rules are those of the HTML standard, "Interpreting an event stream"; the sequence number that the
        event carries is its id.
        """
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return None
        if not self._data:
            return None
        event = LaunchEvent.model_validate_json("\n".join(self._data))
        self._data.clear()
        if event.seq <= self.last:
            return None
        self.last = event.seq
        self.done = event.stage.terminal
        return event

    def closed(self, ended: bool) -> None:
        """The server closed the stream; `ended` is whether it says, asked afterwards, that the launch ended."""
        self.done = self._ended
        self._ended = ended

    def told_all(self, error: Exception) -> bool:
        """Whether the stream fell silent because, for one who does not want to wait, there is no more."""
        return self._open and not self._live and isinstance(error, httpx.ReadTimeout)

    def failed(self, error: Exception) -> float:
        """Seconds to wait before connecting again; raises `ApiUnreachable` after `patience_s` without any answer."""
        self._open = False
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            self._lost(_why(error))
        if now - self._silent_since > self._patience_s:
            raise ApiUnreachable(self.base_url, _why(error)) from error
        self._failures += 1
        return min(0.1 * 2.0**self._failures, 5.0) * random.uniform(0.7, 1.3)  # noqa: S311  (jitter)


# --- the clients ------------------------------------------------------------------------------------------------


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[SkyfleetClient, P], T]:
    @functools.wraps(build)
    def method(self: SkyfleetClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(build(*args, **kwargs))

    return method


def _awaitable(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncSkyfleetClient, P], Awaitable[T]]:
    @functools.wraps(build)
    async def method(self: AsyncSkyfleetClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(build(*args, **kwargs))

    return method


class SkyfleetClient:
    """Blocking client. `api` and `token` default as `resolve` says; `transport` is for tests.

    Every method raises `ApiError` when the API refuses and `ApiUnreachable` when it does not answer. Calls that may
    safely reach the API twice are tried again on connection errors and while it is busy (502, 503, 504).
    """

    def __init__(
        self,
        api: str | None = None,
        token: str | None = None,
        *,
        data: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.target = resolve(api, token, data)
        self._http = httpx.Client(
            base_url=self.target.url, headers=self.target.headers, timeout=_TIMEOUT, transport=transport
        )

    health = _blocking(_Calls.health)
    whoami = _blocking(_Calls.whoami)
    doctor = _blocking(_Calls.doctor)
    models = _blocking(_Calls.models)
    register_model = _blocking(_Calls.register_model)
    delete_model = _blocking(_Calls.delete_model)
    model_estimate = _blocking(_Calls.model_estimate)
    model_bucket = _blocking(_Calls.model_bucket)
    refresh_models = _blocking(_Calls.refresh_models)
    offers = _blocking(_Calls.offers)
    providers = _blocking(_Calls.providers)
    refresh_providers = _blocking(_Calls.refresh_providers)
    launch = _blocking(_Calls.launch)
    status = _blocking(_Calls.status)
    launches = _blocking(_Calls.launches)
    cancel = _blocking(_Calls.cancel)
    nodes = _blocking(_Calls.nodes)
    node = _blocking(_Calls.node)
    terminate = _blocking(_Calls.terminate)
    drain = _blocking(_Calls.drain)
    replace = _blocking(_Calls.replace)
    node_events = _blocking(_Calls.node_events)
    api_keys = _blocking(_Calls.api_keys)
    create_api_key = _blocking(_Calls.create_api_key)
    revoke_api_key = _blocking(_Calls.revoke_api_key)
    costs = _blocking(_Calls.costs)
    cost_breakdown = _blocking(_Calls.cost_breakdown)
    cost_intervals = _blocking(_Calls.cost_intervals)
    budgets = _blocking(_Calls.budgets)
    budget = _blocking(_Calls.budget)
    set_budget = _blocking(_Calls.set_budget)
    delete_budget = _blocking(_Calls.delete_budget)
    audit = _blocking(_Calls.audit)
    notifications = _blocking(_Calls.notifications)
    channels = _blocking(_Calls.channels)
    create_channel = _blocking(_Calls.create_channel)
    change_channel = _blocking(_Calls.change_channel)
    remove_channel = _blocking(_Calls.remove_channel)
    test_channel = _blocking(_Calls.test_channel)

    def events(
        self,
        job_id: str,
        after: int = 0,
        *,
        live: bool = True,
        patience_s: float = 120.0,
        lost: Callable[[str], None] = lambda why: None,
    ) -> Iterator[LaunchEvent]:
        """Every event of a launch with a `seq` above `after`, as it happens, until the launch has ended.

        A lost connection is made again where it broke off, for up to `patience_s` seconds without an answer; `lost` is
        told why, once each time. Without `live`, only the events that there are by now.
        """
        follow = _Follow(self.target.url, job_id, after, live, patience_s, lost)
        while not follow.done:
            try:
                with self._http.stream("GET", follow.path, headers=follow.headers, timeout=follow.timeout) as response:
                    if not response.is_success:
                        response.read()
                        raise _problem(response)
                    follow.opened()
                    for line in response.iter_lines():
                        if (event := follow.line(line)) is not None:
                            yield event
                            if follow.done:
                                return
                follow.closed(self.status(job_id).stage.terminal)
            except (httpx.TransportError, ApiUnreachable) as error:
                if follow.told_all(error):
                    return
                time.sleep(follow.failed(error))
            except ApiError as error:
                if error.status not in _BUSY:
                    raise
                time.sleep(follow.failed(error))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        tries = _Tries(self.target.url, call.repeatable)
        while True:
            try:
                response = self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                time.sleep(tries.after_error(error))
                continue
            pause = tries.after_response(response)
            if pause is None:
                return call.answer(response)
            time.sleep(pause)


class AsyncSkyfleetClient:
    """The same client for asyncio."""

    def __init__(
        self,
        api: str | None = None,
        token: str | None = None,
        *,
        data: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.target = resolve(api, token, data)
        self._http = httpx.AsyncClient(
            base_url=self.target.url, headers=self.target.headers, timeout=_TIMEOUT, transport=transport
        )

    health = _awaitable(_Calls.health)
    whoami = _awaitable(_Calls.whoami)
    doctor = _awaitable(_Calls.doctor)
    models = _awaitable(_Calls.models)
    register_model = _awaitable(_Calls.register_model)
    delete_model = _awaitable(_Calls.delete_model)
    model_estimate = _awaitable(_Calls.model_estimate)
    model_bucket = _awaitable(_Calls.model_bucket)
    refresh_models = _awaitable(_Calls.refresh_models)
    offers = _awaitable(_Calls.offers)
    providers = _awaitable(_Calls.providers)
    refresh_providers = _awaitable(_Calls.refresh_providers)
    launch = _awaitable(_Calls.launch)
    status = _awaitable(_Calls.status)
    launches = _awaitable(_Calls.launches)
    cancel = _awaitable(_Calls.cancel)
    nodes = _awaitable(_Calls.nodes)
    node = _awaitable(_Calls.node)
    terminate = _awaitable(_Calls.terminate)
    drain = _awaitable(_Calls.drain)
    replace = _awaitable(_Calls.replace)
    node_events = _awaitable(_Calls.node_events)
    api_keys = _awaitable(_Calls.api_keys)
    create_api_key = _awaitable(_Calls.create_api_key)
    revoke_api_key = _awaitable(_Calls.revoke_api_key)
    costs = _awaitable(_Calls.costs)
    cost_breakdown = _awaitable(_Calls.cost_breakdown)
    cost_intervals = _awaitable(_Calls.cost_intervals)
    budgets = _awaitable(_Calls.budgets)
    budget = _awaitable(_Calls.budget)
    set_budget = _awaitable(_Calls.set_budget)
    delete_budget = _awaitable(_Calls.delete_budget)
    audit = _awaitable(_Calls.audit)
    notifications = _awaitable(_Calls.notifications)
    channels = _awaitable(_Calls.channels)
    create_channel = _awaitable(_Calls.create_channel)
    change_channel = _awaitable(_Calls.change_channel)
    remove_channel = _awaitable(_Calls.remove_channel)
    test_channel = _awaitable(_Calls.test_channel)

    async def events(
        self,
        job_id: str,
        after: int = 0,
        *,
        live: bool = True,
        patience_s: float = 120.0,
        lost: Callable[[str], None] = lambda why: None,
    ) -> AsyncIterator[LaunchEvent]:
        """Every event of a launch with a `seq` above `after`, as it happens, until the launch has ended.

        A lost connection is made again where it broke off, for up to `patience_s` seconds without an answer; `lost` is
        told why, once each time. Without `live`, only the events that there are by now.
        """
        follow = _Follow(self.target.url, job_id, after, live, patience_s, lost)
        while not follow.done:
            try:
                async with self._http.stream(
                    "GET", follow.path, headers=follow.headers, timeout=follow.timeout
                ) as response:
                    if not response.is_success:
                        await response.aread()
                        raise _problem(response)
                    follow.opened()
                    async for line in response.aiter_lines():
                        if (event := follow.line(line)) is not None:
                            yield event
                            if follow.done:
                                return
                follow.closed((await self.status(job_id)).stage.terminal)
            except (httpx.TransportError, ApiUnreachable) as error:
                if follow.told_all(error):
                    return
                await asyncio.sleep(follow.failed(error))
            except ApiError as error:
                if error.status not in _BUSY:
                    raise
                await asyncio.sleep(follow.failed(error))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, call: Call[T]) -> T:
        tries = _Tries(self.target.url, call.repeatable)
        while True:
            try:
                response = await self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                await asyncio.sleep(tries.after_error(error))
                continue
            pause = tries.after_response(response)
            if pause is None:
                return call.answer(response)
            await asyncio.sleep(pause)
