"""The sandbox's bucket: its models are in the catalog, follow what is put there, and can be launched."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
from temporalio.api.history.v1 import History
from temporalio.client import WorkflowExecution

from skyfleet.domain import ids
from skyfleet.domain.views import ModelBucketView
from tests.models.store import as_bytes, model, writer_of
from tests.stack import RunningStack
from tests.waiting import eventually

LLAMA = "sandbox/tiny-llama-random"


async def refreshed(stack: RunningStack) -> ModelBucketView:
    """The bucket once it was read after this moment."""
    asked = (await stack.client.refresh_models()).requested_at

    async def read() -> ModelBucketView | None:
        state = await stack.client.model_bucket()
        return state if state.attempted_at is not None and state.attempted_at >= asked else None

    state = await eventually(read, what="a reading of the bucket")
    assert state is not None
    return state


async def test_the_catalog_follows_the_bucket(stack: RunningStack) -> None:
    state = await refreshed(stack)
    assert (state.url, state.error, state.models) == ("s3://models", None, 2)
    models = {one.id: one for one in await stack.client.models()}
    assert models[LLAMA].origin == "bucket"
    assert models[LLAMA].vram_estimate is not None
    assert len([one for one in models.values() if one.origin == "manual"]) == 6, "the well-known ones are there too"

    assert stack.endpoints.model_bucket is not None
    bucket = writer_of(stack.endpoints.model_bucket, "models")
    files = model("acme/new") | {"acme/broken/config.json": "{", "acme/broken/model.safetensors": "1234"}
    for key, content in files.items():
        await bucket.put_async(key, as_bytes(content))
    state = await refreshed(stack)
    assert state.models == 3
    assert [item.path for item in state.skipped] == ["acme/broken"]
    assert "acme/new" in {one.id for one in await stack.client.models()}

    await bucket.delete_async(list(files))
    assert (await refreshed(stack)).models == 2
    assert "acme/new" not in {one.id for one in await stack.client.models()}


async def test_a_model_of_the_bucket_is_launched_with_its_source(stack: RunningStack) -> None:
    await refreshed(stack)
    job_id = await stack.launch(stack.kind().aws, model_name=LLAMA)
    view = await stack.ready(job_id)
    async with httpx.AsyncClient(trust_env=False) as http:
        said = await http.get(f"{view.endpoint_url}/v1/models")
    assert said.json()["data"][0]["id"] == LLAMA
    (entry,) = [one for one in await stack.bench.ledger() if one["name"] == view.attempts[-1].cluster_name]
    folder = stack.machine_folder(entry)
    manifests = [json.loads(path.read_text()) for path in folder.rglob("model.json")]
    assert [one["model_source"] for one in manifests] == [f"s3://models/{LLAMA}/"]
    assert view.node_id is not None
    await stack.client.terminate(view.node_id)


async def test_the_bucket_comes_back_as_it_was(stack: RunningStack) -> None:
    await refreshed(stack)
    before = {one.id: one for one in await stack.client.models() if one.origin == "bucket"}
    pid = stack.pids()["model-bucket"]
    stack.kill("model-bucket")
    await eventually(lambda: stack.pids().get("model-bucket", pid) != pid, what="another process")

    async def read_again() -> bool:
        return (await refreshed(stack)).error is None

    await eventually(read_again, what="a reading of the bucket that is back")
    assert {one.id: one for one in await stack.client.models() if one.origin == "bucket"} == before


async def test_no_history_holds_a_key(stack: RunningStack) -> None:
    await refreshed(stack)
    client = await stack.temporal()

    async def runs() -> list[WorkflowExecution]:
        return [one async for one in client.list_workflows("WorkflowType = 'ModelRefreshWorkflow'")]

    for run in await eventually(runs, what="its runs in Temporal's list"):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        history = History(events=[event async for event in handle.fetch_history_events()])
        content = history.SerializeToString()
        assert b"refresh_models" in content
        assert b"sandbox" not in content  # both key and secret of the sandbox's bucket


async def test_a_schedule_reads_it_too(stack: RunningStack) -> None:
    client = await stack.temporal()
    described = await client.get_schedule_handle(ids.MODELS_SCHEDULE_ID).describe()
    assert [interval.every for interval in described.schedule.spec.intervals] == [timedelta(hours=1)]
