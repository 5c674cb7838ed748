"""What goes to the process that sends notifications, and what comes back."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field


class Outgoing(BaseModel):
    """One message to one address. The address is a secret."""

    id: int
    channel_id: str
    url: str = Field(repr=False)
    title: str
    body: str
    severity: str


class SentState(StrEnum):
    """How it went."""

    SENT = "sent"
    FAILED = "failed"
    NOT_TRIED = "not_tried"  # there was no time, or an earlier message to the same address had just failed


class Outcome(BaseModel):
    """How sending one message went. `error` may hold parts of the address: show it `scrubbed` only."""

    state: SentState
    error: str = ""


class Address(BaseModel):
    """What apprise makes of an address: the service by name, or why it is refused."""

    service: str | None = None
    error: str = ""
