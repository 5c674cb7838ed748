"""The kinds of event that people are told, and how much each matters. Apart, so that the CLI loads quickly."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How much it matters, from the least."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    def reaches(self, minimum: Severity) -> bool:
        """Whether it is at least `minimum`."""
        order = list(Severity)
        return order.index(self) >= order.index(minimum)


class NotificationKind(StrEnum):
    """What can be told."""

    LAUNCH_FAILED = "launch_failed"
    NODE_LOST = "node_lost"
    NODE_PREEMPTED = "node_preempted"
    BUDGET_ALERT = "budget_alert"
    ORPHAN_FOUND = "orphan_found"
    BREAKER_OPEN = "breaker_open"

    @property
    def severity(self) -> Severity:
        """How much an event of this kind matters."""
        return _SEVERITY[self]

    @property
    def label(self) -> str:
        """The kind in words."""
        return self.value.replace("_", " ")


_SEVERITY: Final = {
    NotificationKind.LAUNCH_FAILED: Severity.WARNING,
    NotificationKind.NODE_LOST: Severity.CRITICAL,
    NotificationKind.NODE_PREEMPTED: Severity.INFO,  # spot machines are bought with that in mind
    NotificationKind.BUDGET_ALERT: Severity.WARNING,
    NotificationKind.ORPHAN_FOUND: Severity.WARNING,
    NotificationKind.BREAKER_OPEN: Severity.CRITICAL,
}


class DeliveryState(StrEnum):
    """Where one notification stands with one channel."""

    PENDING = "pending"  # not sent yet: on its way, held back by the throttle, or to be tried again
    SENT = "sent"  # the receiver took it
    FAILED = "failed"  # given up
    SUPPRESSED = "suppressed"  # not sent by itself: part of a summary, or its channel was turned off
