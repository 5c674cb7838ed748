"""The model catalog from a bucket."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.heartbeat import heartbeating
from activities.signatures import ModelSteps
from skyfleet.db.repositories import ModelBucketRepository, ModelRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import ModelBucketRow, ModelRow
from skyfleet.domain import messages as m
from skyfleet.domain.model_bucket import BucketError, BucketReading, SkippedPath

_log = logging.getLogger(__name__)


class Bucket(Protocol):
    """What is asked of the model bucket: `skyfleet.models.bucket.ModelBucket`."""

    url: str

    async def read(self, known: Mapping[str, str]) -> BucketReading:
        """The models as they are now, but those whose fingerprint is known. Raises `BucketError`."""
        ...


class ModelActivities(ModelSteps):
    """Reads the bucket of this worker's settings, if there is one."""

    def __init__(self, database: Database, bucket: Bucket | None) -> None:
        self._database = database
        self._bucket = bucket

    @activity.defn
    async def refresh_models(self, request: m.RefreshModelsInput) -> m.RefreshModelsResult:
        """Read the bucket into the catalog.

        A model that was registered by hand stays as it is. One that left the bucket leaves the catalog; nothing does
        while the bucket cannot be listed.
        """
        if self._bucket is None:
            raise ApplicationError("this worker has no model bucket", type="no_bucket", non_retryable=True)
        async with self._database.transaction() as session:
            began = await ModelBucketRepository(session).now()
            known = await ModelRepository(session).bucket_fingerprints()
        try:
            async with heartbeating({}):
                reading = await self._bucket.read(known)
        except BucketError as failure:
            await self._failed(began, str(failure))
            raise ApplicationError(str(failure), type="bucket", non_retryable=not failure.retryable) from None
        return await self._write(began, reading)

    async def _failed(self, began: datetime, error: str) -> None:
        """Keep what is known of the bucket, with the error beside it."""
        assert self._bucket is not None
        async with self._database.transaction() as session:
            buckets = ModelBucketRepository(session)
            await buckets.configure(self._bucket.url)
            row = await buckets.get()
            assert row is not None
            row.attempted_at, row.error = began, error

    async def _write(self, began: datetime, reading: BucketReading) -> m.RefreshModelsResult:
        assert self._bucket is not None
        skipped = list(reading.skipped)
        written = 0
        async with self._database.transaction() as session:
            models = ModelRepository(session)
            for model in sorted(reading.models, key=lambda one: one.id):
                values = model.model_dump()
                row = ModelRow(**values, vram_required_gb=model.vram_estimate.total_gb, origin="bucket")
                if await models.put_from_bucket(row):
                    written += 1
                else:
                    skipped.append(SkippedPath(path=model.id, reason="a model of this id was registered by hand"))
            there = [*reading.unchanged, *reading.unread, *(model.id for model in reading.models)]
            removed = await models.keep_from_bucket(there)
            count = len(await models.bucket_fingerprints())
            await ModelBucketRepository(session).put(
                ModelBucketRow(
                    url=self._bucket.url,
                    attempted_at=began,
                    synced_at=began,
                    models=count,
                    skipped=[item.model_dump() for item in skipped],
                )
            )
        if removed:
            _log.info("no longer in %s: %s", self._bucket.url, ", ".join(removed))
        return m.RefreshModelsResult(models=count, read=written, removed=len(removed), skipped=len(skipped))
