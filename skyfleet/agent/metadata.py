"""Instance metadata services of the clouds, as far as they announce that a machine is taken away or worked on.

- AWS, IMDSv2 (Amazon EC2 User Guide, "Spot Instance interruption notices", "rebalance recommendations" and "scheduled
  events"): two minutes' notice, a token first, 404 while there is nothing to say.
- GCP (Compute Engine documentation, "Spot VMs" and "Query metadata server for maintenance event notices"): `preempted`
  turns TRUE about 30 s before the end.
- Azure, Scheduled Events (Azure documentation, "Scheduled Events for Linux VMs"): at least 30 s for `Preempt`. The
  events of other machines of the same set are delivered as well, so a machine has to know its own name.

What a service says is checked before it is believed: anything else raises `NoMetadata`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from skyfleet.agent.http import Answer, Unreachable, request

LINK_LOCAL = "http://169.254.169.254"

PREEMPTION = "preemption"
REBALANCE = "rebalance"
MAINTENANCE = "maintenance"

_TIMEOUT_S = 3.0
_SPOT_EVERY_S = 1.0
_OTHER_EVERY_S = 10.0
_SELDOM_EVERY_S = 60.0
_TOKEN_TTL_S = 21_600
_GCP_NOTICE = timedelta(seconds=30)
_MAX_DETAIL_CHARS = 300


class NoMetadata(Exception):
    """No answer, or none that such a service gives; the text says what there was instead."""


@dataclass(frozen=True)
class Notice:
    """One announcement. `deadline` is ISO 8601 in UTC, None if the cloud names none; `key` tells it from others."""

    kind: str
    source: str
    detail: str
    deadline: str | None
    key: str


@dataclass(frozen=True)
class Look:
    """One place to look at, every `every_s` seconds. `read` answers the notices that stand; raises `NoMetadata`."""

    what: str
    every_s: float
    read: Callable[[], Awaitable[list[Notice]]]


class Metadata:
    """One cloud's service at `base` (an address without a trailing slash)."""

    def __init__(self, base: str) -> None:
        self._base = base

    async def present(self) -> bool:
        """Whether this cloud's service answers there."""
        raise NotImplementedError

    def looks(self, spot: bool) -> list[Look]:
        """Where to look. Preemptions are of spot machines alone; maintenance is looked for less often on others."""
        raise NotImplementedError

    async def _ask(self, path: str, headers: dict[str, str], method: str = "GET") -> Answer:
        try:
            return await request(method, self._base + path, headers=headers, timeout_s=_TIMEOUT_S)
        except Unreachable as error:
            raise NoMetadata(str(error)) from None

    async def _text(self, path: str, headers: dict[str, str]) -> str:
        answer = await self._ask(path, headers)
        if answer.status != 200:
            raise NoMetadata(f"status {answer.status}")
        return _text(answer)

    async def _answers(self, reading: Awaitable[object]) -> bool:
        try:
            await reading
        except NoMetadata:
            return False
        return True


class Aws(Metadata):
    """IMDSv2."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self._token: str | None = None
        self._renew_at = 0.0
        self._one_token = asyncio.Lock()

    async def present(self) -> bool:
        """Only AWS gives out tokens."""
        return await self._answers(self._session())

    def looks(self, spot: bool) -> list[Look]:
        """The notice, the recommendation, and what is scheduled for the machine or its host."""
        scheduled = Look("events/maintenance/scheduled", _SELDOM_EVERY_S, self._scheduled)
        if not spot:
            return [scheduled]
        return [
            Look("spot/instance-action", _SPOT_EVERY_S, self._instance_action),
            Look("events/recommendations/rebalance", _SPOT_EVERY_S, self._rebalance),
            scheduled,
        ]

    async def _instance_action(self) -> list[Notice]:
        text = await self._value("spot/instance-action")
        if text is None:
            return []
        said = _object(text)
        action, when = said.get("action"), said.get("time")
        if action not in ("terminate", "stop", "hibernate"):
            raise NoMetadata("an action that is none")
        detail = f"spot instance action: {action}"
        return [Notice(PREEMPTION, "aws-spot-instance-action", detail, _iso(when), f"{action} {when}")]

    async def _rebalance(self) -> list[Notice]:
        text = await self._value("events/recommendations/rebalance")
        if text is None:
            return []
        when = _object(text).get("noticeTime")
        if not isinstance(when, str):
            raise NoMetadata("a recommendation without its time")
        detail = "a raised risk of interruption"
        return [Notice(REBALANCE, "aws-rebalance-recommendation", detail, None, when[:100])]

    async def _scheduled(self) -> list[Notice]:
        text = await self._value("events/maintenance/scheduled")
        events = [] if text is None else _list(text)
        return [
            Notice(
                MAINTENANCE,
                "aws-scheduled-event",
                _short(f"{event.get('Code')}: {event.get('Description')}"),
                _iso(event.get("NotBefore")),
                f"{event.get('EventId')} {event.get('NotBefore')}",
            )
            for event in events
            if event.get("State") == "active"
        ]

    async def _value(self, name: str) -> str | None:
        """A value; None when there is none now."""
        token = await self._session()
        answer = await self._ask(f"/latest/meta-data/{name}", {"X-aws-ec2-metadata-token": token})
        if answer.status == 404:
            return None
        if answer.status == 401:
            self._token = None
        if answer.status != 200:
            raise NoMetadata(f"status {answer.status}")
        return _text(answer)

    async def _session(self) -> str:
        now = asyncio.get_running_loop().time()
        async with self._one_token:
            if self._token is None or now >= self._renew_at:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
                answer = await self._ask("/latest/api/token", ttl, "PUT")
                token = _text(answer).strip()
                # It goes into a header, so it has to be fit for one.
                if answer.status != 200 or not re.fullmatch(r"[!-~]{1,1024}", token):
                    raise NoMetadata(f"no token, status {answer.status}")
                self._token, self._renew_at = token, now + _TOKEN_TTL_S / 2
            return self._token


class Gcp(Metadata):
    """Compute Engine's metadata server (`metadata.google.internal` is the same address)."""

    _HEADERS = {"Metadata-Flavor": "Google"}  # noqa: RUF012 - never changed

    async def present(self) -> bool:
        """It knows the machine's number."""
        return await self._answers(self._value("id"))

    def looks(self, spot: bool) -> list[Look]:
        """The two values."""
        every_s = _SPOT_EVERY_S if spot else _OTHER_EVERY_S
        maintenance = Look("maintenance-event", every_s, self._maintenance)
        return [Look("preempted", every_s, self._preempted), maintenance] if spot else [maintenance]

    async def _preempted(self) -> list[Notice]:
        value = await self._value("preempted")
        if value not in ("TRUE", "FALSE"):
            raise NoMetadata("`preempted` is neither TRUE nor FALSE")
        if value == "FALSE":
            return []
        # The service names no time: a machine has about 30 s from the notice.
        deadline = (datetime.now(timezone.utc) + _GCP_NOTICE).isoformat(timespec="seconds")
        return [Notice(PREEMPTION, "gcp-preempted", "the instance is being preempted", deadline, value)]

    async def _maintenance(self) -> list[Notice]:
        value = await self._value("maintenance-event")
        if not re.fullmatch(r"[A-Z_]{1,64}", value):
            raise NoMetadata("`maintenance-event` is no event's name")
        return [] if value == "NONE" else [Notice(MAINTENANCE, "gcp-maintenance-event", value, None, value)]

    async def _value(self, name: str) -> str:
        return (await self._text(f"/computeMetadata/v1/instance/{name}", self._HEADERS)).strip()


class Azure(Metadata):
    """Scheduled Events."""

    _HEADERS = {"Metadata": "true"}  # noqa: RUF012 - never changed
    _KINDS = {  # noqa: RUF012 - never changed
        "Preempt": PREEMPTION,
        "Terminate": PREEMPTION,  # the machine goes, whoever wants it so
        "Reboot": MAINTENANCE,
        "Redeploy": MAINTENANCE,
        "Freeze": MAINTENANCE,
    }

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self._own_name: str | None = None

    async def present(self) -> bool:
        """It knows the machine's name."""
        return await self._answers(self._name())

    def looks(self, spot: bool) -> list[Look]:
        """One document holds all events."""
        return [Look("scheduledevents", _SPOT_EVERY_S if spot else _OTHER_EVERY_S, self._events)]

    async def _events(self) -> list[Notice]:
        name = (await self._name()).lower()
        document = _object(await self._text("/metadata/scheduledevents?api-version=2020-07-01", self._HEADERS))
        return [
            Notice(
                self._KINDS[event["EventType"]],
                f"azure-{event['EventType'].lower()}",
                _short(f"{event['EventType']}: {event.get('Description') or 'no description'}"),
                _iso(event.get("NotBefore")),
                str(event.get("EventId")),
            )
            for event in _dicts(document.get("Events"))
            if event.get("EventType") in self._KINDS and name in _lower(event.get("Resources"))
        ]

    async def _name(self) -> str:
        if self._own_name is None:
            compute = _object(await self._text("/metadata/instance/compute?api-version=2021-02-01", self._HEADERS))
            name = compute.get("name")
            if not isinstance(name, str) or not name:
                raise NoMetadata("the machine has no name")
            self._own_name = name
        return self._own_name


SERVICES: dict[str, type[Metadata]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "replace")


def _object(text: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise NoMetadata("no JSON object")
    return value


def _list(text: str) -> list[dict[str, Any]]:
    return _dicts(_json(text))


def _dicts(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise NoMetadata("no list of events")
    return [item for item in value if isinstance(item, dict)]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NoMetadata("no JSON") from None


def _lower(names: object) -> list[str]:
    return [name.lower() for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _short(text: str) -> str:
    return text[:_MAX_DETAIL_CHARS]


def _iso(value: object) -> str | None:
    """A time as AWS (ISO 8601) or Azure (RFC 1123) writes it, as ISO 8601 in UTC; None when it is neither."""
    if not isinstance(value, str):
        return None
    for read in (lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")), parsedate_to_datetime):
        try:
            moment = read(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
