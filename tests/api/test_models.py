"""The model catalog and its bucket over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from api.temporal import NoSuchWorkflow
from skyfleet.db.repositories import AuditRepository, ModelBucketRepository, ModelRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import ModelBucketRow, ModelRow
from skyfleet.domain.states import Role
from tests.api.conftest import FakeWorkflows, make_key

URL = "s3://weights/production"
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
ROCKET = {"id": "acme/Rocket-8B", "parameters": 8_030_261_248, "config": LLAMA_CONFIG}


async def configure(database: Database, **values: Any) -> None:
    async with database.transaction() as session:
        await ModelBucketRepository(session).put(ModelBucketRow(url=URL, **values))


async def test_a_model_with_its_configuration_is_estimated_from_its_shape(api: httpx.AsyncClient) -> None:
    made = (await api.post("/admin/models", json=ROCKET)).json()
    assert (made["family"], made["dtype"], made["context_length"]) == ("llama", "bfloat16", 131_072)
    assert (made["weights_gb"], made["vram_required_gb"]) == (14.96, 20.4)
    terms = made["vram_estimate"]
    assert terms["kv_cache"]["bytes_per_token"] == 131_072
    assert (terms["weights_gb"], terms["kv_cache_gb"], terms["overhead_gb"]) == (14.958, 2.0, 1.401)
    assert terms["total_gb"] == 20.4
    listed = {item["id"]: item for item in (await api.get("/admin/models/r2")).json()["models"]}
    assert listed[made["id"]] == made


@pytest.mark.parametrize(
    ("given", "weights_gb", "needed_gb"),
    [
        ({"parameters": 8_000_000_000, "dtype": "int4"}, 3.725, 4.5),
        ({"parameters": 8_000_000_000, "dtype": "int4", "weights_gb": 5.3}, 5.3, 6.4),
        ({"weights_gb": 10}, 10.0, 12.0),
        ({"vram_required_gb": 7.5}, None, 7.5),
        ({"parameters": 8_000_000_000, "vram_required_gb": 99}, 14.9, 99.0),
    ],
)
async def test_what_is_given_goes_before_what_is_estimated(
    api: httpx.AsyncClient, given: dict[str, Any], weights_gb: float | None, needed_gb: float
) -> None:
    made = (await api.post("/admin/models", json={"id": "m", **given})).json()
    assert (made["weights_gb"], made["vram_required_gb"]) == (weights_gb, needed_gb)
    assert (made["vram_estimate"] is None) == ("vram_required_gb" in given)


async def test_a_configuration_that_is_none_is_refused_by_name(refusing: httpx.AsyncClient) -> None:
    answer = await refusing.post(
        "/admin/models", json={**ROCKET, "config": {**LLAMA_CONFIG, "n_head": 1, "hidden_size": 0}}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "config"
    assert "hidden_size is 0" in answer.json()["detail"]


async def test_the_estimate_for_another_use(api: httpx.AsyncClient) -> None:
    await api.post("/admin/models", json={**ROCKET, "context_length": 32_768})

    async def asked(**params: Any) -> httpx.Response:
        return await api.get("/admin/models/estimate", params={"model_name": ROCKET["id"], **params})

    assert (await asked()).json()["total_gb"] == 20.4
    more = (await asked(context_tokens=16_384, sequences=8)).json()
    assert (more["kv_cache_gb"], more["total_gb"]) == (16.0, 36.0)
    longest = (await asked(context_tokens=1_000_000, sequences=1)).json()
    assert (longest["context_tokens"], longest["kv_cache_gb"]) == (32_768, 4.0)
    assert (await asked(context_tokens=0)).status_code == 422
    await api.post("/admin/models", json={"id": "shapeless", "parameters": 10})
    refused = await asked(model_name="shapeless", sequences=2)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "sequences")
    assert (await asked(model_name="shapeless")).status_code == 200
    by_hand = await asked(model_name="tiny")
    assert by_hand.status_code == 404
    assert "given by hand" in by_hand.json()["detail"]
    assert (await asked(model_name="nobody's")).status_code == 404


async def test_without_a_bucket_it_says_so(api: httpx.AsyncClient, workflows: FakeWorkflows) -> None:
    state = (await api.get("/admin/models/bucket")).json()
    assert state == {"url": None, "attempted_at": None, "synced_at": None, "error": None, "models": 0, "skipped": []}
    refused = await api.post("/admin/models/refresh")
    assert refused.status_code == 409
    assert "SKYFLEET_MODEL_BUCKET_URL" in refused.json()["detail"]
    assert not workflows.named("refresh_models")


async def test_the_bucket_is_read_when_asked(
    api: httpx.AsyncClient, database: Database, workflows: FakeWorkflows
) -> None:
    before = datetime.now(UTC)
    await configure(database, attempted_at=before, error="it was away", skipped=[{"path": "a", "reason": "b"}])
    state = (await api.get("/admin/models/bucket")).json()
    assert (state["url"], state["error"], state["skipped"]) == (URL, "it was away", [{"path": "a", "reason": "b"}])
    accepted = await api.post("/admin/models/refresh")
    assert accepted.status_code == 202
    assert accepted.json()["url"] == URL
    assert datetime.fromisoformat(accepted.json()["requested_at"]) >= before
    assert len(workflows.named("refresh_models")) == 1
    async with database.transaction() as session:
        entries = await AuditRepository(session).page(action="models.refresh", limit=5)
    assert [entry.subject for entry in entries] == [URL]


async def test_a_bucket_that_no_worker_reads_any_more_is_none(
    api: httpx.AsyncClient, database: Database, workflows: FakeWorkflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_schedule(*, timeout_s: float) -> None:
        raise NoSuchWorkflow("workflow not found")

    await configure(database)
    monkeypatch.setattr(workflows, "refresh_models", no_schedule)
    assert (await api.post("/admin/models/refresh")).status_code == 409


async def test_without_temporal_it_is_not_accepted(
    api: httpx.AsyncClient, database: Database, workflows: FakeWorkflows
) -> None:
    await configure(database)
    workflows.away = True
    assert (await api.post("/admin/models/refresh")).status_code == 503


async def test_an_operator_may_refresh_and_a_viewer_may_look(api: httpx.AsyncClient, database: Database) -> None:
    await configure(database)
    viewer = await make_key(database, "looks", Role.VIEWER)
    operator = await make_key(database, "uploads", Role.OPERATOR)
    api.headers.pop("X-Admin-Token")
    assert (await api.get("/admin/models/bucket")).status_code == 401
    assert (await api.get("/admin/models/bucket", headers=viewer)).status_code == 200
    assert (await api.post("/admin/models/refresh", headers=viewer)).status_code == 403
    assert (await api.post("/admin/models/refresh", headers=operator)).status_code == 202


async def test_a_model_by_hand_takes_the_place_of_the_buckets(api: httpx.AsyncClient, database: Database) -> None:
    theirs = ModelRow(
        id="acme/rocket", name="rocket", family="llama", size="8B", vram_required_gb=9, origin="bucket", fingerprint="f"
    )
    async with database.transaction() as session:
        assert await ModelRepository(session).put_from_bucket(theirs)
    replaced = await api.post("/admin/models", json={"id": "acme/rocket", "vram_required_gb": 5})
    assert (replaced.status_code, replaced.json()["origin"]) == (200, "manual")
    async with database.transaction() as session:
        models = ModelRepository(session)
        assert not await models.put_from_bucket(ModelRow(**theirs.model_dump()))
        assert await models.keep_from_bucket([]) == []
        kept = await models.get("acme/rocket")
        assert kept is not None
        assert (kept.vram_required_gb, kept.fingerprint) == (5, None)
