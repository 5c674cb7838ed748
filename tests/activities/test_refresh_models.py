"""`refresh_models` on a real database, with a bucket that a test scripts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.models import ModelActivities
from skyfleet.db.repositories import ModelBucketRepository, ModelRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import ModelBucketRow, ModelRow
from skyfleet.domain import messages as m
from skyfleet.domain.model_bucket import BucketError, BucketModel, BucketReading, SkippedPath
from skyfleet.domain.sizing import estimate_vram


def model(model_id: str, fingerprint: str = "1", size: int = 10) -> BucketModel:
    return BucketModel(
        id=model_id,
        name=model_id,
        family="llama",
        size="8B",
        parameters=8,
        context_length=8192,
        dtype="bfloat16",
        weights_gb=size,
        vram_estimate=estimate_vram(size * 2**30),
        source=f"s3://weights/{model_id}/",
        fingerprint=fingerprint,
    )


class ScriptedBucket:
    """Answers with `reading`, or fails with `error`."""

    def __init__(self, url: str = "s3://weights") -> None:
        self.url = url
        self.reading = BucketReading()
        self.error: BucketError | None = None
        self.known: dict[str, str] = {}

    async def read(self, known: Mapping[str, str]) -> BucketReading:
        self.known = dict(known)
        if self.error is not None:
            raise self.error
        return self.reading


@pytest.fixture
def bucket() -> ScriptedBucket:
    return ScriptedBucket()


async def refresh(database: Database, bucket: ScriptedBucket | None) -> m.RefreshModelsResult:
    activities = ModelActivities(database, bucket)
    return await ActivityEnvironment().run(activities.refresh_models, m.RefreshModelsInput())


async def rows(database: Database) -> dict[str, ModelRow]:
    async with database.transaction() as session:
        return {row.id: row for row in await ModelRepository(session).all()}


async def state(database: Database) -> ModelBucketRow:
    async with database.transaction() as session:
        row = await ModelBucketRepository(session).get()
    assert row is not None
    return row


async def test_models_come_change_and_go_with_the_bucket(database: Database, bucket: ScriptedBucket) -> None:
    bucket.reading = BucketReading(
        models=[model("a"), model("b"), model("c")], skipped=[SkippedPath(path="d", reason="no weights")]
    )
    result = await refresh(database, bucket)
    assert result == m.RefreshModelsResult(models=3, read=3, removed=0, skipped=1)
    first = (await rows(database))["a"]
    assert (first.origin, first.source, first.vram_required_gb) == ("bucket", "s3://weights/a/", 12.0)
    assert first.vram_estimate is not None
    assert first.vram_estimate["weights_gb"] == 10.0

    bucket.reading = BucketReading(models=[model("b", "2", size=20)], unchanged=["a"])
    result = await refresh(database, bucket)
    assert bucket.known == {"a": "1", "b": "1", "c": "1"}
    assert result == m.RefreshModelsResult(models=2, read=1, removed=1, skipped=0)
    now = await rows(database)
    assert {key: row.fingerprint for key, row in now.items()} == {"a": "1", "b": "2"}
    assert now["b"].vram_required_gb == 24.0
    assert now["a"].updated_at == first.updated_at, "what has not changed is not written"


async def test_a_model_by_hand_wins_and_is_told(database: Database, bucket: ScriptedBucket) -> None:
    by_hand = ModelRow(id="a", name="mine", family="f", size="1B", vram_required_gb=1)
    async with database.transaction() as session:
        await ModelRepository(session).put(by_hand)
    bucket.reading = BucketReading(models=[model("a"), model("b")])
    assert (await refresh(database, bucket)).models == 1
    now = await rows(database)
    assert (now["a"].name, now["a"].origin) == ("mine", "manual")
    assert (await state(database)).skipped == [{"path": "a", "reason": "a model of this id was registered by hand"}]
    bucket.reading = BucketReading()
    await refresh(database, bucket)
    assert list(await rows(database)) == ["a"], "it never came from the bucket, and does not go with it"


async def test_what_could_not_be_read_this_time_stays(database: Database, bucket: ScriptedBucket) -> None:
    bucket.reading = BucketReading(models=[model("a")])
    await refresh(database, bucket)
    bucket.reading = BucketReading(unread=["a"], skipped=[SkippedPath(path="a", reason="503")])
    assert (await refresh(database, bucket)).removed == 0
    assert list(await rows(database)) == ["a"]


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_bucket_that_cannot_be_listed_changes_nothing_and_says_so(
    database: Database, bucket: ScriptedBucket, retryable: bool
) -> None:
    bucket.reading = BucketReading(models=[model("a")], skipped=[SkippedPath(path="d", reason="no weights")])
    await refresh(database, bucket)
    before = await state(database)
    bucket.error = BucketError("AccessDenied", retryable=retryable)
    with pytest.raises(ApplicationError, match="AccessDenied") as failure:
        await refresh(database, bucket)
    assert failure.value.non_retryable is not retryable
    assert failure.value.__cause__ is None
    after = await state(database)
    assert (after.error, after.models, after.synced_at) == ("AccessDenied", 1, before.synced_at)
    assert after.skipped == before.skipped
    assert after.attempted_at is not None
    assert before.attempted_at is not None
    assert after.attempted_at > before.attempted_at
    assert list(await rows(database)) == ["a"]
    bucket.error = None
    await refresh(database, bucket)
    assert (await state(database)).error is None


async def test_a_bucket_that_never_answered_has_its_error_too(database: Database, bucket: ScriptedBucket) -> None:
    bucket.error = BucketError("NoSuchBucket", retryable=False)
    with pytest.raises(ApplicationError):
        await refresh(database, bucket)
    row = await state(database)
    assert (row.url, row.error, row.synced_at) == ("s3://weights", "NoSuchBucket", None)


async def test_another_bucket_takes_the_place_of_the_first(database: Database, bucket: ScriptedBucket) -> None:
    bucket.reading = BucketReading(models=[model("a")])
    await refresh(database, bucket)
    other = ScriptedBucket("s3://others")
    other.reading = BucketReading(models=[model("b")])
    await refresh(database, other)
    assert list(await rows(database)) == ["b"]
    assert (await state(database)).url == "s3://others"
    async with database.transaction() as session:
        await ModelBucketRepository(session).configure(None)
        assert await ModelBucketRepository(session).get() is None


async def test_a_worker_without_a_bucket_does_not_try_again(database: Database) -> None:
    with pytest.raises(ApplicationError) as failure:
        await refresh(database, None)
    assert failure.value.non_retryable
