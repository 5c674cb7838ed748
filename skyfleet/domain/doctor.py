"""What `skyfleet doctor` says: its checks, and the judgements that need no look at anything."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel


class CheckStatus(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"  # worth knowing; nothing is wrong
    WARNING = "warning"  # works, but maybe not as meant
    FAILED = "failed"


class Check(BaseModel):
    """One thing that was looked at. `mend` says what to do, where there is something to do."""

    name: str
    status: CheckStatus
    detail: str
    mend: str = ""


class DoctorReport(BaseModel):
    """All that was looked at, and whether none of it failed."""

    ok: bool
    checks: list[Check]

    @classmethod
    def of(cls, checks: Sequence[Check]) -> DoctorReport:
        """The report on these checks."""
        return cls(ok=all(check.status is not CheckStatus.FAILED for check in checks), checks=list(checks))


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name=name, status=CheckStatus.OK, detail=detail)


def note(name: str, detail: str, mend: str = "") -> Check:
    """Nothing is wrong."""
    return Check(name=name, status=CheckStatus.NOTE, detail=detail, mend=mend)


def warning(name: str, detail: str, mend: str) -> Check:
    """It may not be as meant."""
    return Check(name=name, status=CheckStatus.WARNING, detail=detail, mend=mend)


def failed(name: str, detail: str, mend: str) -> Check:
    """It does not work."""
    return Check(name=name, status=CheckStatus.FAILED, detail=detail, mend=mend)


# --- where nodes reach the API ----------------------------------------------------------------------------------


class Reach(StrEnum):
    """From where an address can be reached."""

    PUBLIC = "public"
    PRIVATE = "private"  # from the same network alone
    HERE = "here"  # from the same machine alone


#: What to do about an address that machines of real clouds cannot reach.
GIVE_PUBLIC_URL: Final = (
    "Give an address that the machines reach: `skyfleet up --public-url URL` (with Compose: SKYFLEET_PUBLIC_URL). "
    "docs/clouds.md shows how to get one: an open port, a tunnel, or a private network."
)


def reach(url: str, addresses: Sequence[str] = ()) -> Reach:
    """From where the host of `url` can be reached, by its name, or by the IP addresses that the name stands for."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return Reach.HERE
    found = [one for text in (host, *addresses) if (one := _ip(text)) is not None]
    if not found:
        return Reach.PRIVATE if "." not in host or host.endswith((".local", ".internal", ".lan")) else Reach.PUBLIC
    if all(one.is_loopback or one.is_unspecified for one in found):
        return Reach.HERE
    return Reach.PUBLIC if any(one.is_global for one in found) else Reach.PRIVATE


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# --- workers ----------------------------------------------------------------------------------------------------

#: A worker asks for work again at least this often: Temporal ends an empty poll after a minute
#: (`matching.longPollExpirationInterval`), and remembers who polled for five.
POLL_INTERVAL: Final = timedelta(seconds=75)


def judge_pollers(queue: str, polled_at: Sequence[datetime], now: datetime) -> Check:
    """Whether anybody works on a task queue, by when each poller last asked for work."""
    name = f"workers on {queue}"
    mend = "Start a worker (`skyfleet up` restarts its own; with Compose: `docker compose up -d`), and read its log."
    if not polled_at:
        return failed(name, "nobody polls this queue", mend)
    silent = now - max(polled_at)
    if silent > POLL_INTERVAL:
        return failed(name, f"the last worker asked for work {int(silent.total_seconds())} s ago", mend)
    working = sum(now - moment <= POLL_INTERVAL for moment in polled_at)
    return ok(name, f"{working} polling")


# --- quotas -----------------------------------------------------------------------------------------------------

#: Where a person sees the GPU quotas of a cloud account, and what they are called there.
QUOTA_HINTS: Final = {
    "aws": (
        "GPU quotas count vCPUs, for each region, and are often 0 in a new account. Service Quotas → Amazon EC2: "
        "“Running On-Demand G and VT instances”, “All G and VT Spot Instance Requests”; for A100 and H100 the same "
        "two with P."
    ),
    "gcp": (
        "IAM & Admin → Quotas, service Compute Engine API: “GPUs (all regions)”, and for each region the GPU's own, "
        "spot (preemptible) apart."
    ),
    "azure": (
        "Quotas → Compute: vCPUs of the VM family, for each region; spot counts against “Total Regional Low-priority "
        "vCPUs” instead."
    ),
    "oci": "Governance → Limits, Quotas and Usage, service Compute: GPUs, for each shape.",
}
