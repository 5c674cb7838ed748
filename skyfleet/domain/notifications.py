"""What people are told without having asked: the kinds of event, and the rules by which a channel hears of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from skyfleet.domain.notification_kinds import DeliveryState, NotificationKind, Severity

__all__ = [
    "GIVE_UP_AFTER",
    "SUMMARY_TITLES",
    "DeliveryState",
    "Notification",
    "NotificationKind",
    "Severity",
    "Verdict",
    "breaker_open",
    "budget_alert",
    "launch_failed",
    "masked",
    "node_lost",
    "node_preempted",
    "orphan_found",
    "retry_after",
    "scheme_of",
    "scrubbed",
    "summary",
    "throttle",
    "wants",
]


class Notification(BaseModel):
    """One event to be told. `dedupe` names the fact: written twice, it is told once. `tenant` None: the whole fleet's.

    `data` is for programs that read the history, and holds what JSON can; no secret may be in any field.
    """

    kind: NotificationKind
    subject: str  # id of the launch, node, machine or budget
    title: str
    body: str = ""
    tenant: str | None = None
    data: dict[str, Any] = {}
    dedupe: str


def launch_failed(
    launch_id: str, *, tenant: str, model_name: str, attempts: int, message: str, next_steps: Sequence[str] = ()
) -> Notification:
    """A launch ended FAILED; `message` is its readable error."""
    steps = "\n- ".join(["\nTo try:", *next_steps]) if next_steps else ""
    return Notification(
        kind=NotificationKind.LAUNCH_FAILED,
        subject=launch_id,
        title=f"Launch failed: {model_name}",
        body=f"{launch_id}, after {_count(attempts, 'attempt')}: {message}{steps}",
        tenant=tenant,
        data={"model_name": model_name, "attempts": attempts, "error": message},
        dedupe=f"{NotificationKind.LAUNCH_FAILED}:{launch_id}",
    )


def node_lost(node_id: str, *, tenant: str, where: str, model_name: str, reason: str) -> Notification:
    """A node is gone though nobody asked for its end. `where` is the cloud and the region."""
    return Notification(
        kind=NotificationKind.NODE_LOST,
        subject=node_id,
        title=f"Node lost: {node_id}",
        body=f"{node_id} ({model_name} on {where}): {reason}",
        tenant=tenant,
        data={"model_name": model_name, "where": where, "reason": reason},
        dedupe=f"{NotificationKind.NODE_LOST}:{node_id}",
    )


def node_preempted(
    node_id: str, *, tenant: str, where: str, model_name: str, source: str, deadline: datetime | None
) -> Notification:
    """A cloud gave notice that it takes a machine away. `source` is what said so; told once a node and source."""
    when = f" at {deadline:%Y-%m-%d %H:%M:%S} UTC" if deadline else ""
    return Notification(
        kind=NotificationKind.NODE_PREEMPTED,
        subject=node_id,
        title=f"Node preempted: {node_id}",
        body=f"{node_id} ({model_name} on {where}) will be taken away{when} ({source})",
        tenant=tenant,
        data={
            "model_name": model_name,
            "where": where,
            "source": source,
            "deadline": deadline.isoformat() if deadline else None,
        },
        dedupe=f"{NotificationKind.NODE_PREEMPTED}:{node_id}:{source}",
    )


def orphan_found(name: str, *, backend: str, reason: str, machine: str, tenant: str | None = None) -> Notification:
    """A machine is in the cloud that nobody claims, and is being ended. `machine` is the cloud's own id of it."""
    return Notification(
        kind=NotificationKind.ORPHAN_FOUND,
        subject=name,
        title=f"Orphan found: {name}",
        body=f"{name} ({machine}) on {backend}: {reason}. It is being ended.",
        tenant=tenant,
        data={"backend": backend, "reason": reason, "machine": machine},
        dedupe=f"{NotificationKind.ORPHAN_FOUND}:{backend}:{name}:{machine}",
    )


def budget_alert(
    budget_id: str, *, name: str, tenant: str | None, period: str, spent: Decimal, limit: Decimal, fraction: Decimal
) -> Notification:
    """A budget reached a fraction (0.8: four fifths) of its limit, US dollars; told once a period and fraction.

    `period` names the period, like `2027-01`.
    """
    share = f"{fraction * 100:.0f} %"
    return Notification(
        kind=NotificationKind.BUDGET_ALERT,
        subject=budget_id,
        title=f"Budget {name}: {share} spent",
        body=f"${spent:.2f} of ${limit:.2f} are spent in {period}.",
        tenant=tenant,
        data={"name": name, "period": period, "spent": str(spent), "limit": str(limit), "fraction": str(fraction)},
        dedupe=f"{NotificationKind.BUDGET_ALERT}:{budget_id}:{period}:{fraction.normalize():f}",
    )


def breaker_open(scope: str, *, sick: int, nodes: int, opened_at: datetime) -> Notification:
    """The fleet breaker stopped repair because too many nodes turned sick at once; told once an opening."""
    return Notification(
        kind=NotificationKind.BREAKER_OPEN,
        subject=scope,
        title=f"Breaker open: {sick} of {_count(nodes, 'node')} sick at once",
        body=(
            f"{sick} of {_count(nodes, 'node')} ({scope}) turned sick in one window. "
            "That is more likely our network than their machines: nothing is replaced until a person has looked, "
            "or they are well again."
        ),
        data={"sick": sick, "nodes": nodes, "opened_at": opened_at.isoformat()},
        dedupe=f"{NotificationKind.BREAKER_OPEN}:{scope}:{opened_at.isoformat()}",
    )


# --- what a channel hears --------------------------------------------------------------------------------------------


def wants(
    notification_kind: NotificationKind,
    tenant: str | None,
    *,
    kinds: Collection[str],
    tenants: Collection[str],
    min_severity: Severity,
) -> bool:
    """Whether a channel with these rules is told. No kinds: all. No tenants: all, and what is the whole fleet's."""
    return (
        (not kinds or notification_kind in kinds)
        and (not tenants or tenant in tenants)
        and notification_kind.severity.reaches(min_severity)
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the messages of one kind that wait for one channel.

    `summarise`: those held back so far go out as one summary. `release`: so many of the fresh ones, oldest first, go
    out by themselves. `hold`: the others are held back.
    """

    summarise: bool
    release: int
    hold: int


def throttle(limit: int, *, used: int, held: int, fresh: int) -> Verdict:
    """At most `limit` messages a period; what is over goes into one summary as soon as there is room again.

    `used` is how many were sent in the period that ends now, and how many are let through and not sent yet; `held` how
    many were held back before, `fresh` how many came since. A summary counts as one message, and goes before what is
    fresh, so that things are told in order. A single one that was held back needs no summary: it is released as it is,
    which is for the caller to see (`held == 1`).
    """
    room = max(0, limit - used)
    summarise = held > 0 and room > 0
    room -= summarise
    # While earlier ones wait, later ones do not overtake them.
    release = 0 if held and not summarise else min(fresh, room)
    return Verdict(summarise=summarise, release=release, hold=fresh - release)


#: Titles that a summary names; of the others it tells the number.
SUMMARY_TITLES: Final = 10


def summary(
    kind: NotificationKind, titles: Sequence[str], count: int, since: datetime, until: datetime
) -> tuple[str, str]:
    """Title and body that stand for `count` messages of one kind, of which `titles` are the first."""
    lines = [f"- {title}" for title in titles[:SUMMARY_TITLES]]
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    span = f"{since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"
    return f"{count} more: {kind.label}", f"Held back by the channel's throttle, {span}:\n" + "\n".join(lines)


#: A message that no receiver took for so long is given up.
GIVE_UP_AFTER: Final = timedelta(hours=24)
_FIRST_RETRY: Final = timedelta(seconds=10)
_LONGEST_RETRY: Final = timedelta(minutes=30)


def retry_after(attempts: int) -> timedelta:
    """How long to wait after that many failed attempts (1 or more): doubling from 10 s to half an hour."""
    doublings: int = min(attempts - 1, 20)  # enough for any limit, and no overflow
    return min(_FIRST_RETRY * (1 << doublings), _LONGEST_RETRY)


# --- the address of a channel is a secret ----------------------------------------------------------------------------

#: Schemes whose URL has a host where one expects it; with the others (slack://TOKEN/…) it is part of the secret.
_WITH_HOST: Final = frozenset(
    f"{scheme}{secure}"
    for scheme in ("apprise", "form", "gotify", "http", "json", "mailto", "matrix", "mmost", "ntfy", "rocket", "xml")
    for secure in ("", "s")
)
_MASK: Final = "****"
_SHORTEST_SECRET: Final = 3


def scheme_of(url: str) -> str:
    """The part before `://` in small letters; empty if there is none."""
    found = re.match(r"\s*([A-Za-z0-9+.-]{1,32})://", url)
    return found[1].lower() if found else ""


def masked(url: str) -> str:
    """What may be shown of a channel's address: the scheme, and the host where the scheme is known to have one.

    Users, passwords, paths, queries and tokens are all left out: any of them may be what lets one send.
    """
    scheme = scheme_of(url)
    if not scheme:
        return _MASK
    if scheme not in _WITH_HOST:
        return f"{scheme}://{_MASK}"
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{scheme}://{_MASK}"
    # `ntfy://topic` and `mailto://?to=…` have no host; what stands in its place need not be one.
    topic = scheme.startswith("ntfy") and not parts.path.strip("/")
    # A password with a `/` or `#` in it: what looks like the host is part of the user and password.
    torn = "@" in parts.path + parts.fragment or ("@" in parts.query and "@" not in parts.netloc)
    if not host or topic or torn:
        return f"{scheme}://{_MASK}"
    host = f"[{host}]" if ":" in host else host
    user = f"{_MASK}@" if parts.username is not None or parts.password is not None else ""
    path = f"/{_MASK}" if parts.path.strip("/") or parts.query else ""
    return f"{scheme}://{user}{host}{f':{port}' if port else ''}{path}"


def scrubbed(text: str, url: str, limit: int = 500) -> str:
    """`text` without anything that only the channel's address could have told it, and not over `limit` characters.

    Each part of the address but its scheme and shown host is replaced; more than need be, rather than less.
    """
    scheme = scheme_of(url)
    shown = masked(url)
    pieces = {url.strip()}
    for piece in re.split(r"[/?&=:@#,;\s]+", url.strip()[len(scheme) :]):
        pieces |= {piece, unquote(piece)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) >= _SHORTEST_SECRET and piece not in shown:
            text = re.sub(re.escape(piece), _MASK, text, flags=re.IGNORECASE)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
