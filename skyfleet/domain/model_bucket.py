"""What a model bucket holds, as one reading of it found out."""

from __future__ import annotations

from pydantic import BaseModel

from skyfleet.domain.sizing import VramEstimate


class BucketModel(BaseModel):
    """A model of a bucket. `source` is where its weights are, `fingerprint` changes when any of its files does."""

    id: str
    name: str
    family: str
    size: str
    parameters: int | None
    context_length: int | None
    dtype: str | None
    weights_gb: float
    vram_estimate: VramEstimate
    source: str
    fingerprint: str


class SkippedPath(BaseModel):
    """Something in the bucket that is not in the catalog, and why."""

    path: str
    reason: str


class BucketReading(BaseModel):
    """One reading, of a listing that was complete.

    `models` were read, `unchanged` (ids) have the fingerprint that they had, `unread` (ids) are there but could not be
    read this time.
    """

    models: list[BucketModel] = []
    unchanged: list[str] = []
    unread: list[str] = []
    skipped: list[SkippedPath] = []


class BucketError(Exception):
    """The bucket could not be listed, so that nothing is known of it. `retryable`: it may be different in a moment."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable
