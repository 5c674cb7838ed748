"""Asking for a node: what is accepted, what is refused and how, and that one request is one launch."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, text

from api.security import LaunchLimiter
from api.services import Services
from api.temporal import CommandRefused
from skyfleet.db.repositories import AuditRepository, CatalogRepository, LaunchRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, LaunchRow
from skyfleet.domain.messages import LaunchInput
from skyfleet.domain.states import LaunchStage, MarketPolicy, Role
from tests.api.conftest import BODY, LLAMA, OFFERS, FakeWorkflows, end, launched, make_key, open_attempt
from tests.waiting import eventually

LAUNCH = "/admin/instances/launch"


async def _count(database: Database) -> int:
    async with database.transaction() as session:
        return (await session.execute(select(func.count()).select_from(LaunchRow))).scalar_one()


@pytest.mark.parametrize("route", [LAUNCH, "/admin/nodes/launch"])
async def test_the_contracts_curl_is_accepted(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, route: str
) -> None:
    response = await api.post(route, json=BODY)
    assert response.status_code == 202
    answer = response.json()
    assert answer["status"] == "launching"
    assert answer["estimated_time"] == "unknown: no launch has finished here yet"
    assert answer["sandbox"] is True
    job_id = answer["job_id"]
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(job_id)
        events = await LaunchRepository(session).events(job_id)
        audit = await AuditRepository(session).page(subject=job_id)
    assert row is not None
    assert row.spec["vram_required_gb"] == 19.3
    assert (row.stage, row.status, row.principal, row.last_event_seq) == ("QUEUED", "in_progress", "admin-token", 1)
    assert [(event.seq, event.stage) for event in events] == [(1, "QUEUED")]
    assert [(entry.action, entry.outcome) for entry in audit] == [("launch.create", "accepted")]
    ((started, request),) = workflows.named("start")
    assert started == job_id
    assert isinstance(request, LaunchInput)
    assert (request.provider, request.region, request.market) == ("azure", "eastus", MarketPolicy.ON_DEMAND)

    async def marked() -> bool:
        async with database.transaction() as session:
            found = await LaunchRepository(session).get(job_id)
            return found is not None and found.workflow_started_at is not None

    await eventually(marked, what="workflow_started_at")


@pytest.mark.parametrize(
    ("asked", "market"),
    [
        ({}, MarketPolicy.ON_DEMAND),
        ({"use_spot": False, "fallback": {"on_demand": True}}, MarketPolicy.ON_DEMAND),
        ({"use_spot": True}, MarketPolicy.SPOT),
        ({"use_spot": True, "fallback": {"on_demand": True, "regions": "any"}}, MarketPolicy.SPOT_THEN_ON_DEMAND),
    ],
)
async def test_market_policy(
    api: httpx.AsyncClient, workflows: FakeWorkflows, asked: dict[str, Any], market: MarketPolicy
) -> None:
    await launched(api, **asked)
    request = workflows.named("start")[0][1]
    assert isinstance(request, LaunchInput)
    assert request.market is market


async def test_everything_optional_is_stored(api: httpx.AsyncClient, database: Database) -> None:
    job_id = await launched(
        api,
        zone="eastus-2",
        gpu="a10",
        fallback={"regions": ["westus2"], "clouds": "any", "on_demand": True},
        max_hourly_cost="3.5",
        deployment="chat",
        engine="echo",
        env={"HF_TOKEN": "secret"},
        deadlines={"provision_seconds": 60, "registration_seconds": 90},
        max_attempts=3,
        tags={"team": "research"},
    )
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(job_id)
    assert row is not None
    spec = row.spec
    assert (spec["zone"], spec["gpu"], spec["max_attempts"], spec["tags"]) == (
        "eastus-2",
        "a10",
        3,
        {"team": "research"},
    )
    assert Decimal(spec["max_hourly_cost"]) == Decimal("3.5")
    assert spec["env"] == {"HF_TOKEN": "secret"}
    shown = (await api.get("/admin/instances/status", params={"job_id": job_id})).json()
    assert shown["requested"]["env"] == ["HF_TOKEN"]
    assert "secret" not in str(shown)


async def test_nothing_but_the_model_is_needed(api: httpx.AsyncClient) -> None:
    assert (await api.post(LAUNCH, json={"model_name": "tiny"})).status_code == 202


@pytest.mark.parametrize(
    ("changes", "field", "accepted", "says"),
    [
        ({"model_name": "gpt-5"}, "model_name", LLAMA, "no model"),
        ({"provider": "oracle"}, "provider", "azure", "aws"),
        ({"region": "us-east-1"}, "region", "westus2", "azure has no region"),
        ({"zone": "eastus-9"}, "zone", "eastus-1", "eastus-2"),
        ({"instance_type": "p5.48xlarge"}, "instance_type", "Standard_NV36ads_A10_v5", "no instance type"),
        ({"instance_type": "Standard_NC6s_v3"}, "instance_type", "Standard_NV36ads_A10_v5", "it is in centralus"),
        ({"instance_type": None, "gpu": "H100"}, "gpu", "A10", "no GPU"),
        ({"gpu": "V100"}, "gpu", "A10", "Standard_NV36ads_A10_v5 has no GPU"),
        ({"fallback": {"clouds": ["gcp"]}}, "fallback.clouds", "aws", "gcp"),
        ({"fallback": {"regions": ["mars"]}}, "fallback.regions", "westus2", "mars"),
        (
            {"region": "centralus", "instance_type": "Standard_NC6s_v3"},
            "instance_type",
            "Standard_NV36ads_A10_v5",
            "needs 19.3 GB of GPU memory, Standard_NC6s_v3 has 16 GB",
        ),
        ({"model_name": "meta-llama/Llama-3.3-70B", "instance_type": None}, "model_name", None, "169.2 GB"),
        ({"max_hourly_cost": 1}, "max_hourly_cost", "3.2", "the cheapest is $3.2/h"),
        (
            {"model_name": "tiny", "region": "centralus", "instance_type": None, "use_spot": True},
            "use_spot",
            None,
            "on_demand only",
        ),
        ({"engine": "gpt4all"}, "engine", "echo", "no engine"),
        ({"engine": "vllm"}, "engine", "echo", "the sandbox has no GPU"),
        ({"engine": "llama_cpp", "engine_args": {"no-such-argument": 1}}, "engine_args", None, "allow-list"),
        ({"engine": "llama_cpp", "engine_args": ["--ctx-size", "1; rm -rf /"]}, "engine_args", None, "ctx-size"),
        ({"engine": "command"}, "engine_command", None, "needed by the engine"),
        ({"engine_command": ["python", "{port}"]}, "engine_command", None, "only for the engine"),
        ({"env": {"lower": "x"}}, "env", None, "no variable name"),
        ({"env": {"SKYFLEET_TOKEN": "x"}}, "env", None, "reserved"),
        ({"env": {"BIG": "x" * 8193}}, "env", None, "8192 bytes"),
        ({"env": {f"V{n}": "" for n in range(101)}}, "env", None, "at most 100"),
        ({"deployment": "../etc"}, "deployment", None, "pattern"),
        ({"tags": {"a b": "x"}}, "tags.a b.[key]", None, "pattern"),
        ({"max_attempts": 0}, "max_attempts", None, "greater"),
        ({"max_hourly_cost": -1}, "max_hourly_cost", None, "greater"),
        ({"deadlines": {"provision_seconds": 0}}, "deadlines.provision_seconds", None, "greater"),
        ({"colour": "red"}, "colour", None, "not permitted"),
        ({"fallback": {"planets": "any"}}, "fallback.planets", None, "not permitted"),
        ({"model_name": 5}, "model_name", None, "string"),
        ({"use_spot": "perhaps"}, "use_spot", None, "boolean"),
    ],
)
async def test_refused_fields_say_what_is_accepted(
    refusing: httpx.AsyncClient,
    changes: dict[str, Any],
    field: str,
    accepted: str | None,
    says: str,
) -> None:
    response = await refusing.post(LAUNCH, json={**BODY, **changes})
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 422
    assert field in [item["field"] for item in problem["errors"]], problem
    refused = next(item for item in problem["errors"] if item["field"] == field)
    assert says in refused["message"], refused
    if accepted is not None:
        assert accepted in refused["accepted"]


async def test_an_instance_type_of_another_region_is_fine_when_fall_back_allows_that_region(
    api: httpx.AsyncClient,
) -> None:
    changes = {"model_name": "tiny", "instance_type": "Standard_NC6s_v3", "fallback": {"regions": ["centralus"]}}
    assert (await api.post(LAUNCH, json={**BODY, **changes})).status_code == 202


async def test_a_zone_needs_its_region(refusing: httpx.AsyncClient) -> None:
    response = await refusing.post(LAUNCH, json={"model_name": LLAMA, "zone": "eastus-1"})
    assert response.status_code == 422
    assert "region" in response.text


async def test_engine_arguments_are_stored_as_a_canonical_vector(api: httpx.AsyncClient, database: Database) -> None:
    job_id = await launched(api, engine="llama_cpp", engine_args={"ctx_size": 4096})
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(job_id)
    assert row is not None
    assert row.spec["engine_args"] == ["--ctx-size", "4096"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"model_name": "a\\u0000b"}', 422),
        (b'{"model_name": "\\ud800"}', 422),
        (b'{"model_name": "tiny", "max_hourly_cost": NaN}', 422),
        (b'{"model_name": "tiny", "max_hourly_cost": 1e400}', 422),
        (b'{"model_name": "tiny", "max_attempts": ' + b"9" * 4000 + b"}", 422),
        (b'{"model_name": "tiny", "max_attempts": ' + b"9" * 5000 + b"}", 400),
        (b'{"model_name": "tiny", "deadlines": {"provision_seconds": Infinity}}', 422),
        (b'{"model_name": "tiny", "engine_args": {"a": [[[{}]]]}}', 422),
        (b"[" * 100_000, 400),
    ],
)
async def test_bodies_that_cannot_be_read(refusing: httpx.AsyncClient, content: bytes, status: int) -> None:
    response = await refusing.post(LAUNCH, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_body_over_the_limit_is_413_declared_or_not(refusing: httpx.AsyncClient) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    declared = await refusing.post(LAUNCH, content=b" " * 1_000_001, headers={"Content-Type": "application/json"})
    chunked = await refusing.post(LAUNCH, content=chunks(), headers={"Content-Type": "application/json"})
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert chunked.headers["content-type"] == "application/problem+json"


async def test_an_empty_catalog_is_503(api: httpx.AsyncClient, services: Services, database: Database) -> None:
    async with database.transaction() as session:
        await CatalogRepository(session).keep_backends(["none"])
    services.catalog.forget()
    response = await api.post(LAUNCH, json=BODY)
    assert response.status_code == 503
    assert "catalog not loaded yet" in response.json()["detail"]
    assert response.headers["retry-after"]


async def test_what_was_added_a_moment_ago_is_seen(api: httpx.AsyncClient, database: Database) -> None:
    await launched(api)  # the catalog is remembered now
    await asyncio.sleep(0.5)  # a miss has the catalog read again, but not more often than this
    new = OFFERS[0].model_copy(update={"region": "norwayeast", "zone": "norwayeast-1"})
    async with database.transaction() as session:
        await CatalogRepository(session).replace(BackendRow(name="other", engines=["echo"], sandbox=True), [new])
    assert (await api.post(LAUNCH, json={**BODY, "region": "norwayeast"})).status_code == 202


# --- idempotency ------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_is_the_same_launch(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database
) -> None:
    headers = {"Idempotency-Key": "order 66"}
    first = await api.post(LAUNCH, json=BODY, headers=headers)
    again = await api.post(LAUNCH, json=dict(reversed(BODY.items())), headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["job_id"] == again.json()["job_id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await _count(database) == 1
    assert len(workflows.named("start")) == 1


async def test_the_same_key_with_another_body_is_409(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    job_id = (await api.post(LAUNCH, json=BODY, headers=headers)).json()["job_id"]
    other = await api.post(LAUNCH, json={**BODY, "max_attempts": 1}, headers=headers)
    invalid = await api.post(LAUNCH, json={**BODY, "region": "gone"}, headers=headers)
    assert (other.status_code, invalid.status_code) == (409, 409)
    assert job_id in other.json()["detail"]


async def test_a_replay_does_not_ask_the_catalog_again(
    api: httpx.AsyncClient, services: Services, database: Database
) -> None:
    headers = {"Idempotency-Key": "k"}
    job_id = (await api.post(LAUNCH, json=BODY, headers=headers)).json()["job_id"]
    async with database.transaction() as session:
        await CatalogRepository(session).keep_backends(["none"])
    services.catalog.forget()
    assert (await api.post(LAUNCH, json=BODY, headers=headers)).json()["job_id"] == job_id


async def test_racing_requests_with_one_key_are_one_launch(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database
) -> None:
    headers = {"Idempotency-Key": "race"}
    answers = await asyncio.gather(*(api.post(LAUNCH, json=BODY, headers=headers) for _ in range(30)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await _count(database) == 1
    assert len(workflows.named("start")) == 1


async def test_requests_that_arrive_together_are_all_written(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database
) -> None:
    answers = await asyncio.gather(*(api.post(LAUNCH, json=BODY) for _ in range(60)))
    jobs = {answer.json()["job_id"] for answer in answers}
    assert len(jobs) == 60
    assert await _count(database) == 60
    assert {started for started, _ in workflows.named("start")} == jobs


async def test_keys_belong_to_their_principal(api: httpx.AsyncClient, database: Database) -> None:
    alice = await make_key(database, "alice", Role.OPERATOR)
    headers = {"Idempotency-Key": "k"}
    mine = await api.post(LAUNCH, json=BODY, headers=headers)
    hers = await api.post(LAUNCH, json=BODY, headers={**headers, **alice, "X-Admin-Token": ""})
    assert mine.json()["job_id"] != hers.json()["job_id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "caf\xe9"])
async def test_unfit_keys_are_400(refusing: httpx.AsyncClient, key: str) -> None:
    response = await refusing.post(LAUNCH, json=BODY, headers={"Idempotency-Key": key.encode("latin-1")})  # type: ignore[dict-item]
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"


async def test_without_temporal_the_launch_is_accepted_and_says_so(
    api: httpx.AsyncClient, workflows: FakeWorkflows, services: Services, database: Database
) -> None:
    workflows.away = True
    response = await api.post(LAUNCH, json=BODY)
    assert response.status_code == 202
    assert "Temporal does not answer" in response.json()["estimated_time"]
    await services.marker.flush()
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(response.json()["job_id"])
    assert row is not None
    assert row.workflow_started_at is None  # which is what the sweep looks for


async def test_estimate_is_the_median_of_what_finished(
    api: httpx.AsyncClient, services: Services, database: Database
) -> None:
    for seconds in (100, 200, 400):
        job_id = await launched(api)
        await open_attempt(database, job_id)
        await end(database, job_id, LaunchStage.READY)
        async with database.transaction() as session:
            await session.execute(
                text("UPDATE launches SET ended_at = created_at + make_interval(secs => :s) WHERE id = :id"),
                {"s": seconds, "id": job_id},
            )
    services.estimates._known.clear()
    answer = (await api.post(LAUNCH, json=BODY)).json()
    assert answer["estimated_time"] == "about 3 min (median of the last 3 launches on azure)"
    elsewhere = (await api.post(LAUNCH, json={"model_name": "tiny", "provider": "aws"})).json()
    assert elsewhere["estimated_time"].startswith("unknown")


async def test_the_rate_limit_is_per_key(api: httpx.AsyncClient, services: Services, database: Database) -> None:
    services.limiter = LaunchLimiter(3)
    alice = await make_key(database, "alice", Role.OPERATOR)
    answers = [await api.post(LAUNCH, json=BODY) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert 1 <= int(answers[3].headers["retry-after"]) <= 60
    assert (await api.post(LAUNCH, json=BODY, headers={**alice, "X-Admin-Token": ""})).status_code == 202


# --- status, list, cancel ---------------------------------------------------------------------------------------


async def test_status_tells_the_story(api: httpx.AsyncClient, database: Database, launch_id: str) -> None:
    await open_attempt(database, launch_id)
    view = (await api.get("/admin/instances/status", params={"job_id": launch_id})).json()
    assert (view["status"], view["stage"], view["progress"]) == ("in_progress", "REQUESTING", 25)
    assert view["stages"][1] == "→ requesting instance"
    assert view["stages"][2] == "  provisioning instance"
    assert [item["provider"] for item in view["attempts"]] == ["azure"]
    assert view["workflow_url"].endswith(f"/namespaces/default/workflows/launch%2F{launch_id}")
    assert view["live"] is None
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(launch_id, lock=True)
        assert row is not None
        row.error = {
            "kind": "capacity",
            "scope": "region",
            "retryable": True,
            "cloud": "azure",
            "message": "no capacity in eastus",
            "next_steps": ["try westus2"],
            "raw": "SkuNotAvailable: …",
        }
    await end(database, launch_id, LaunchStage.FAILED)
    view = (await api.get("/admin/instances/status", params={"job_id": launch_id})).json()
    assert (view["status"], view["stage_label"]) == ("failed", "failed")
    assert view["stages"][1] == "✗ requesting instance"
    assert (view["error_message"], view["raw_error"]) == ("no capacity in eastus", "SkuNotAvailable: …")
    assert view["error"]["next_steps"] == ["try westus2"]


async def test_live_status_is_the_workflows_own(
    api: httpx.AsyncClient, workflows: FakeWorkflows, launch_id: str
) -> None:
    params = {"job_id": launch_id, "live": "true"}
    assert (await api.get("/admin/instances/status", params=params)).json()["live"]["stage"] == "PLANNING"
    workflows.away = True
    live = (await api.get("/admin/instances/status", params=params)).json()["live"]
    assert live == {"unavailable": "no answer from Temporal"}


async def test_unknown_launches_are_404(refusing: httpx.AsyncClient) -> None:
    answers = [
        await refusing.get("/admin/instances/status", params={"job_id": "launch-00000000"}),
        await refusing.delete("/admin/instances/launch/launch-00000000"),
        await refusing.get("/admin/instances/launch/launch-00000000/events"),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert (await refusing.get("/admin/instances/status")).status_code == 422


async def test_history_is_filtered_and_paged(api: httpx.AsyncClient, database: Database) -> None:
    made = [await launched(api, model_name="tiny" if n % 2 else LLAMA, deployment=f"d{n}") for n in range(5)]
    await end(database, made[0], LaunchStage.CANCELLED)
    seen: list[str] = []
    cursor = None
    pages = 0
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/admin/instances/launches", params=params)).json()
        seen += [item["job_id"] for item in page["launches"]]
        cursor, pages = page["next"], pages + 1
        if cursor is None:
            break
    assert seen == made[::-1]
    assert pages == 3

    async def found(**params: Any) -> list[str]:
        answer = (await api.get("/admin/instances/launches", params=params)).json()
        return [item["job_id"] for item in answer["launches"]]

    assert await found(model_name="tiny") == [made[3], made[1]]
    assert await found(status="cancelled") == [made[0]]
    assert await found(status=["cancelled", "in_progress"]) == made[::-1]
    assert await found(deployment="d4") == [made[4]]
    assert await found(provider="aws") == []


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 501},
        {"limit": "9" * 30},
        {"status": "odd"},
        {"cursor": "x"},
        {"cursor": "////"},
        {"cursor": "MjAyNS0wMS0wMVQwMDowMDowMHxh"},  # no time zone
        {"cursor": "MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMHxh"},  # year 1
        {"cursor": "é"},
    ],
)
async def test_odd_pages_are_422(refusing: httpx.AsyncClient, params: dict[str, Any]) -> None:
    assert (await refusing.get("/admin/instances/launches", params=params)).status_code == 422


async def test_cancel_is_written_down_and_delivered(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str
) -> None:
    first = await api.delete(f"{LAUNCH}/{launch_id}")
    again = await api.delete(f"{LAUNCH}/{launch_id}")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == {"status": "cancelling", "subject": launch_id}
    assert workflows.named("cancel")[0][0] == launch_id
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(launch_id)
        audit = await AuditRepository(session).page(subject=launch_id, action="launch.cancel")
    assert row is not None
    assert row.cancel_requested_at is not None
    assert row.cancel_requested_by == "admin-token"
    assert len(audit) == 1
    await end(database, launch_id, LaunchStage.CANCELLED)
    after = await api.delete(f"{LAUNCH}/{launch_id}")
    assert (after.status_code, after.json()["status"]) == (202, "cancelled")


async def test_cancel_without_temporal_is_accepted(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str
) -> None:
    workflows.away = True
    assert (await api.delete(f"{LAUNCH}/{launch_id}")).status_code == 202
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(launch_id)
    assert row is not None
    assert row.cancel_requested_at is not None  # which the sweep delivers


async def test_cancel_of_what_has_ended_is_409_with_advice(api: httpx.AsyncClient, database: Database) -> None:
    ready, failed = await launched(api), await launched(api)
    await open_attempt(database, ready)
    await end(database, ready, LaunchStage.READY)
    await end(database, failed, LaunchStage.FAILED)
    answer = await api.delete(f"{LAUNCH}/{ready}")
    assert answer.status_code == 409
    assert "terminate" in answer.json()["detail"]
    assert (await api.delete(f"{LAUNCH}/{failed}")).status_code == 409


async def test_a_cancel_that_the_workflow_refuses_is_taken_back(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str
) -> None:
    workflows.refuse = CommandRefused("LaunchCompleted", "the node is already up: terminate it instead")
    answer = await api.delete(f"{LAUNCH}/{launch_id}")
    assert answer.status_code == 409
    assert "terminate it instead" in answer.json()["detail"]
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(launch_id)
    assert row is not None
    assert row.cancel_requested_at is None


async def test_cors_and_request_ids(app: FastAPI, api: httpx.AsyncClient) -> None:
    preflight = {
        "Origin": "https://fleet.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "idempotency-key",
    }
    allowed = await api.options(LAUNCH, headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://fleet.example"
    refused = await api.options(LAUNCH, headers={**preflight, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers
    assert (await api.get("/health/live", headers={"X-Request-ID": "abc"})).headers["x-request-id"] == "abc"
    assert len((await api.get("/health/live", headers={"X-Request-ID": "a b"})).headers["x-request-id"]) == 16
