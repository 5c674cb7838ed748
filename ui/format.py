"""How figures, times and names are written, and which symbol, word and colour stand for a state."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, Literal
from zoneinfo import ZoneInfo

import streamlit as st

from skyfleet.domain.errors import ErrorKind
from skyfleet.domain.states import AttemptState, LaunchStatus, Market, NodeStatus
from skyfleet.domain.views import AttemptView

Colour = Literal["red", "orange", "blue", "green", "gray"]

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>$:~=^])")


def plain(text: str) -> str:
    """Text of others (names, messages of clouds) so that Markdown shows it as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def price(amount: Decimal) -> str:
    """US dollars an hour: at least two places, at most four, not rounded to nothing."""
    return f"${_money(amount)}/h"


def cost(amount: Decimal) -> str:
    """US dollars. What is over nothing never reads as nothing."""
    if 0 < amount < Decimal("0.0001"):
        return "< $0.0001"
    return f"${_money(amount)}"


def _money(amount: Decimal) -> str:
    places = "0.01" if amount >= 100 or amount == 0 else "0.0001"
    whole, _, fraction = f"{amount.quantize(Decimal(places), ROUND_HALF_UP):,f}".partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"


def percent(fraction: Decimal) -> str:
    """A fraction as whole percent."""
    return f"{(fraction * 100).quantize(Decimal(1), ROUND_HALF_UP)} %"


def gigabytes(amount: float) -> str:
    """Memory, GB."""
    return f"{amount:,.1f}".removesuffix(".0") + " GB"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def ago(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: what a list has room for."""
    seconds = (now - then).total_seconds()
    if seconds < 5:
        return "just now"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return f"{int(seconds)} s ago"


def now() -> datetime:
    """The present, UTC."""
    return datetime.now(UTC)


def zone() -> tzinfo:
    """The time zone of the person's browser; UTC when it does not say."""
    name = st.context.timezone
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, ValueError):
        return UTC


def zone_name() -> str:
    """What the times on a page are in."""
    return getattr(zone(), "key", None) or "UTC"


def clock(at: datetime) -> str:
    """Time of day, to the second."""
    return at.astimezone(zone()).strftime("%H:%M:%S")


def moment(at: datetime) -> str:
    """Date and time of day."""
    return at.astimezone(zone()).strftime("%d %b %Y, %H:%M:%S")


def market(value: Market) -> str:
    """How a machine is bought, in words."""
    return value.value.replace("_", "-")


def place(provider: str | None, region: str | None, zone: str | None = None) -> str:
    """Where something is. A zone's name mostly holds its region's, and is then enough."""
    if provider is None:
        return "any provider"
    if region is None:
        return f"{provider} · any region"
    return " · ".join((provider, zone if zone and region in zone else f"{region} / {zone}" if zone else region))


# --- states: a symbol and a word, and a colour on top ------------------------------------------------------------

LAUNCH: Final[dict[LaunchStatus, tuple[str, str, Colour]]] = {
    LaunchStatus.IN_PROGRESS: ("→", "in progress", "blue"),
    LaunchStatus.COMPLETED: ("✓", "ready", "green"),
    LaunchStatus.FAILED: ("✗", "failed", "red"),
    LaunchStatus.TIMEOUT: ("✗", "timed out", "orange"),
    LaunchStatus.CANCELLED: ("■", "cancelled", "gray"),
}

NODE: Final[dict[NodeStatus, tuple[str, str, Colour]]] = {
    NodeStatus.READY: ("✓", "ready", "green"),
    NodeStatus.DRAINING: ("→", "draining", "orange"),
    NodeStatus.TERMINATING: ("→", "terminating", "orange"),
    NodeStatus.TERMINATED: ("■", "terminated", "gray"),
}

_REFUSED: Final[dict[ErrorKind, str]] = {
    ErrorKind.CAPACITY: "no capacity",
    ErrorKind.QUOTA: "quota exceeded",
    ErrorKind.AUTH: "credentials refused",
    ErrorKind.CONFIG: "configuration refused",
    ErrorKind.TRANSIENT: "passing trouble",
    ErrorKind.TIMEOUT: "timed out",
    ErrorKind.PREEMPTED: "taken back by the cloud",
    ErrorKind.ENGINE: "engine failed",
    ErrorKind.UNKNOWN: "failed",
}


def badge(symbol: str, word: str, colour: Colour) -> str:
    """A state as Markdown: never a colour alone."""
    return f":{colour}-badge[{symbol} {word}]"


def launch_badge(status: LaunchStatus) -> str:
    """The state of a launch."""
    return badge(*LAUNCH[status])


def node_badge(status: NodeStatus) -> str:
    """The state of a node."""
    return badge(*NODE[status])


def sandbox_badge() -> str:
    """Marks what is no machine of a real cloud."""
    return ":violet-badge[◆ sandbox]"


def attempt_badge(attempt: AttemptView) -> str:
    """What became of an attempt."""
    if attempt.state is AttemptState.SUCCEEDED:
        return badge("✓", "node registered", "green")
    if attempt.state is AttemptState.OPEN:
        return badge("→", "asking for a machine", "blue")
    if attempt.state is AttemptState.CREATED:
        return badge("→", "machine is up" if attempt.running_at else "machine is coming up", "blue")
    word = _REFUSED[attempt.error.kind] if attempt.error else "given up"
    return badge("✗", word, "red" if attempt.error else "gray")
