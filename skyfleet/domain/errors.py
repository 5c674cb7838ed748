"""What can go wrong in a cloud, as data.

A cloud raises `CloudError` with the raw text; `skyfleet.domain.classifier.classify` turns that text into a
`ClassifiedError`, once, at the activity's edge.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class ErrorKind(StrEnum):
    """What sort of thing went wrong."""

    CAPACITY = "capacity"
    QUOTA = "quota"
    AUTH = "auth"
    CONFIG = "config"
    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    ENGINE = "engine"  # the machine is fine, the inference server on it is not
    UNKNOWN = "unknown"


class ErrorScope(StrEnum):
    """How far the error reaches: what else would fail the same way."""

    ZONE = "zone"
    REGION = "region"
    CLOUD = "cloud"
    ACCOUNT = "account"  # everything this control plane could try


class ClassifiedError(BaseModel):
    """One error, as a machine decides on it and as a person reads it.

    `retryable` says whether the same request at the same place may succeed later. `raw` is what the cloud said,
    word for word; `message` what it means; `next_steps` what a person can try, best first.
    """

    model_config = ConfigDict(frozen=True)

    kind: ErrorKind
    scope: ErrorScope
    retryable: bool
    code: str | None = None
    cloud: str
    message: str
    next_steps: list[str] = []
    raw: str


class CloudError(Exception):
    """A cloud refused, or answered with an error of its own. The raw text is kept word for word."""

    def __init__(self, cloud: str, raw: str, *, code: str | None = None, request_id: str | None = None) -> None:
        super().__init__(raw)
        self.cloud = cloud
        self.raw = raw
        self.code = code
        self.request_id = request_id


class CloudUnreachable(Exception):
    """No answer from the cloud's API: nothing is known about whether the request took effect."""
