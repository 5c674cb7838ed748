"""Who may do what, the audit log, the catalog routes, health, downloads and the OpenAPI document."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text

from api.app import create_app
from api.services import Services
from skyfleet.db.repositories import AgentBundleRepository, ApiKeyRepository, AuditRepository, CatalogRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, BackendRow, utcnow
from skyfleet.domain.states import Role
from skyfleet.settings import Settings
from tests.api.conftest import ADMIN_TOKEN, BODY, LLAMA, FakeWorkflows, client_of, make_key, open_attempt, registration
from tests.ports import free_port
from tests.waiting import eventually

ANONYMOUS = {"X-Admin-Token": ""}


# --- credentials and roles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Admin-Token": "wrong"},
        {"X-Admin-Token": "tökén"},
        {"Authorization": f"Basic {ADMIN_TOKEN}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer sf_unknown_secret"},
        {"Authorization": "Bearer sf_"},
        {"Authorization": "Bearer sf_a'b_secret"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
async def test_wrong_credentials_are_401(refusing: httpx.AsyncClient, headers: dict[str, str]) -> None:
    raw = {name: value.encode() for name, value in {**ANONYMOUS, **headers}.items()}
    response = await refusing.get("/admin/whoami", headers=raw)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_admin_token_works_either_way(refusing: httpx.AsyncClient) -> None:
    bearer = await refusing.get("/admin/whoami", headers={**ANONYMOUS, "Authorization": f"Bearer {ADMIN_TOKEN}"})
    header = await refusing.get("/admin/whoami")
    assert bearer.json() == header.json() == {"principal": "admin-token", "role": "admin", "tenant": "default"}


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/admin/models/r2", Role.VIEWER),
        ("GET", "/admin/offers", Role.VIEWER),
        ("GET", "/admin/providers", Role.VIEWER),
        ("POST", "/admin/providers/refresh", Role.OPERATOR),
        ("GET", "/admin/instances/launches", Role.VIEWER),
        ("GET", "/admin/nodes", Role.VIEWER),
        ("POST", "/admin/instances/launch", Role.OPERATOR),
        ("POST", "/admin/nodes/launch", Role.OPERATOR),
        ("DELETE", "/admin/instances/launch/launch-0", Role.OPERATOR),
        ("POST", "/admin/nodes/n/terminate", Role.OPERATOR),
        ("GET", "/admin/costs", Role.VIEWER),
        ("GET", "/admin/costs/breakdown?by=day", Role.VIEWER),
        ("GET", "/admin/costs/intervals", Role.VIEWER),
        ("GET", "/admin/budgets", Role.VIEWER),
        ("PUT", "/admin/budgets/b", Role.ADMIN),
        ("DELETE", "/admin/budgets/b", Role.ADMIN),
        ("POST", "/admin/models", Role.ADMIN),
        ("DELETE", "/admin/models/m", Role.ADMIN),
        ("GET", "/admin/api-keys", Role.ADMIN),
        ("POST", "/admin/api-keys", Role.ADMIN),
        ("DELETE", "/admin/api-keys/k", Role.ADMIN),
        ("GET", "/admin/audit", Role.ADMIN),
    ],
)
async def test_roles(api: httpx.AsyncClient, database: Database, method: str, path: str, needed: Role) -> None:
    for role in Role:
        key = await make_key(database, f"key-{role}", role)
        response = await api.request(method, path, headers={**ANONYMOUS, **key})
        if role.includes(needed):
            assert response.status_code not in (401, 403), response.text
        else:
            assert response.status_code == 403
            assert f"`{needed.value}`" in response.json()["detail"]
    async with database.transaction() as session:
        forbidden = await AuditRepository(session).page(action="forbidden")
    expected = 0 if method == "GET" else sum(not role.includes(needed) for role in Role)
    assert len(forbidden) == expected


async def test_keys_are_made_used_and_revoked(api: httpx.AsyncClient, database: Database, services: Services) -> None:
    made = await api.post("/admin/api-keys", json={"name": "ci", "role": "operator", "tenant": "research"})
    assert made.status_code == 201
    key = made.json()["key"]
    headers = {**ANONYMOUS, "Authorization": f"Bearer {key}"}
    me = (await api.get("/admin/whoami", headers=headers)).json()
    assert me == {"principal": "ci", "role": "operator", "tenant": "research"}
    await services.marker.flush()
    listed = (await api.get("/admin/api-keys")).json()["api_keys"]
    assert [item["name"] for item in listed] == ["ci"]
    assert listed[0]["last_used_at"] is not None
    assert key.rpartition("_")[2] not in str(listed)
    async with database.transaction() as session:
        row = await ApiKeyRepository(session).by_name("ci")
    assert row is not None
    assert row.secret_hash == hashlib.sha256(key.split("_", 2)[2].encode()).hexdigest()
    assert (await api.post("/admin/api-keys", json={"name": "ci", "role": "viewer"})).status_code == 409
    revoked = await api.delete(f"/admin/api-keys/{row.id}")
    assert revoked.json() == {"status": "revoked", "subject": row.id}
    assert (await api.get("/admin/whoami", headers=headers)).status_code == 401
    assert (await api.delete(f"/admin/api-keys/{row.id}")).status_code == 200
    assert (await api.delete("/admin/api-keys/none")).status_code == 404
    entries = (await api.get("/admin/audit", params={"subject": row.id})).json()["entries"]
    assert [entry["action"] for entry in entries] == ["api_key.revoke", "api_key.create"]


async def test_a_key_revoked_elsewhere_stops_working_within_seconds(api: httpx.AsyncClient, database: Database) -> None:
    key = await make_key(database, "k", Role.VIEWER)
    headers = {**ANONYMOUS, **key}
    assert (await api.get("/admin/whoami", headers=headers)).status_code == 200
    async with database.transaction() as session:
        row = await ApiKeyRepository(session).by_name("k")
        assert row is not None
        row.revoked_at = utcnow()

    async def refused() -> bool:
        return (await api.get("/admin/whoami", headers=headers)).status_code == 401

    await eventually(refused, timeout_s=5, what="the revocation")


async def test_expired_keys(api: httpx.AsyncClient, database: Database) -> None:
    old = await make_key(database, "old", Role.VIEWER, expires_at=utcnow() - timedelta(seconds=1))
    assert (await api.get("/admin/whoami", headers={**ANONYMOUS, **old})).status_code == 401
    past = await api.post("/admin/api-keys", json={"name": "p", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"})
    assert past.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {"name": "admin-token", "role": "viewer"},
        {"name": "a b", "role": "viewer"},
        {"name": "", "role": "viewer"},
        {"name": "x", "role": "root"},
        {"name": "x"},
        {"name": "x", "role": "viewer", "extra": 1},
        {"name": "x", "role": "viewer", "expires_at": "2030-01-01T00:00:00"},
    ],
)
async def test_unfit_keys_are_422(refusing: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await refusing.post("/admin/api-keys", json=body)).status_code == 422


async def test_tenants_see_and_touch_only_their_own(api: httpx.AsyncClient, database: Database) -> None:
    red = {**ANONYMOUS, **await make_key(database, "red", Role.OPERATOR, "red")}
    blue = {**ANONYMOUS, **await make_key(database, "blue", Role.OPERATOR, "blue")}
    job_id = (await api.post("/admin/instances/launch", json=BODY, headers=red)).json()["job_id"]
    attempt: AttemptRow = await open_attempt(database, job_id)
    await api.post("/admin/nodes/register", params={"node_id": attempt.node_id}, json=registration())

    async def statuses(headers: dict[str, str]) -> list[int]:
        requests = [
            api.get("/admin/instances/status", params={"job_id": job_id}, headers=headers),
            api.get(f"/admin/nodes/{attempt.node_id}/status", headers=headers),
            api.post(f"/admin/nodes/{attempt.node_id}/terminate", headers=headers),
            api.delete(f"/admin/instances/launch/{job_id}", headers=headers),
        ]
        return [(await request).status_code for request in requests]

    async def listed(headers: dict[str, str]) -> tuple[int, int]:
        launches = (await api.get("/admin/instances/launches", headers=headers)).json()["launches"]
        nodes = (await api.get("/admin/nodes", headers=headers)).json()["nodes"]
        return len(launches), len(nodes)

    assert await statuses(blue) == [404, 404, 404, 404]
    assert (await api.get(f"/admin/instances/launch/{job_id}/events", headers=blue)).status_code == 404
    assert await listed(blue) == (0, 0)
    assert await listed(red) == (1, 1)
    assert await listed({}) == (1, 1)
    assert await statuses(red) == [200, 200, 202, 202]


async def test_the_audit_log_is_paged_and_filtered(api: httpx.AsyncClient) -> None:
    for name in ("one", "two", "three"):
        await api.post("/admin/api-keys", json={"name": name, "role": "viewer"})
    first = (await api.get("/admin/audit", params={"limit": 2})).json()
    second = (await api.get("/admin/audit", params={"limit": 2, "cursor": first["next"]})).json()
    names = [entry["detail"]["name"] for entry in first["entries"] + second["entries"]]
    assert names == ["three", "two", "one"]
    assert second["next"] is None
    assert (await api.get("/admin/audit", params={"principal": "nobody"})).json()["entries"] == []
    for cursor in ("x", "-1", "9" * 25, "١"):
        assert (await api.get("/admin/audit", params={"cursor": cursor})).status_code == 422


# --- catalog ----------------------------------------------------------------------------------------------------


async def test_models_are_registered_replaced_and_deleted(api: httpx.AsyncClient) -> None:
    model = {"id": "acme/Rocket-9B-chat", "parameters": 9_000_000_000, "context_length": 8192}
    made = await api.post("/admin/models", json=model)
    assert made.status_code == 201
    view = made.json()
    assert (view["name"], view["family"], view["size"]) == ("Rocket-9B-chat", "Rocket", "9B")
    assert view["vram_required_gb"] == 20.2
    assert view["origin"] == "manual"
    launch = {**BODY, "model_name": "acme/Rocket-9B-chat"}
    assert (await api.post("/admin/instances/launch", json=launch)).status_code == 202
    replaced = await api.post("/admin/models", json={**model, "vram_required_gb": 99})
    assert (replaced.status_code, replaced.json()["vram_required_gb"]) == (200, 99)
    assert (await api.post("/admin/instances/launch", json=launch)).status_code == 422
    listed = (await api.get("/admin/models/r2")).json()["models"]
    assert [item["id"] for item in listed] == [
        "acme/Rocket-9B-chat",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.3-70B",
        "tiny",
    ]
    assert (await api.delete("/admin/models/acme/Rocket-9B-chat")).status_code == 200
    assert (await api.delete("/admin/models/acme/Rocket-9B-chat")).status_code == 404
    assert (await api.post("/admin/instances/launch", json=launch)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {"id": "m"},
        {"id": "", "parameters": 1},
        {"id": "a b", "parameters": 1},
        {"id": "m", "parameters": 0},
        {"id": "m", "parameters": 10**30},
        {"id": "m", "vram_required_gb": -1},
        {"id": "m", "vram_required_gb": 1, "context_length": 2**40},
        {"id": "m", "vram_required_gb": 1, "colour": "red"},
        {"id": "m", "parameters": 1, "dtype": "float3"},
        {"id": "m", "weights_gb": 0},
        {"id": "m", "parameters": 1, "config": []},
        {"id": "m", "parameters": 1, "config": {}},
        {"id": "m", "parameters": 1, "config": {"model_type": "llama", "num_hidden_layers": "32"}},
    ],
)
async def test_unfit_models_are_422(refusing: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await refusing.post("/admin/models", json=body)).status_code == 422


async def test_offers_are_filtered_cheapest_first(refusing: httpx.AsyncClient) -> None:
    async def found(**params: Any) -> list[dict[str, Any]]:
        response = await refusing.get("/admin/offers", params=params)
        assert response.status_code == 200
        offers: list[dict[str, Any]] = response.json()["offers"]
        return offers

    everything = await found()
    prices = [float(offer["hourly_price"]) for offer in everything]
    assert prices == sorted(prices)
    assert everything[0]["instance_type"] == "g4dn.xlarge"
    assert everything[0]["fits"] is None
    assert {offer["region"] for offer in await found(provider="azure")} == {"eastus", "westus2", "centralus"}
    assert {offer["zone"] for offer in await found(gpu="a10g", market="spot")} == {"us-east-1-a", "us-east-1-b"}
    assert await found(region="us-west-2", instance_type="g5.xlarge") == []
    judged = {offer["instance_type"]: offer for offer in await found(model_name=LLAMA)}
    assert judged["g5.xlarge"]["fits"] is True
    assert judged["g4dn.xlarge"]["why_not"] == f"{LLAMA} needs 19.3 GB of GPU memory, g4dn.xlarge has 16 GB"
    assert (await refusing.get("/admin/offers", params={"model_name": "none"})).status_code == 422
    assert (await refusing.get("/admin/offers", params={"market": "flea"})).status_code == 422


# --- health, downloads, documents -------------------------------------------------------------------------------


async def test_health_names_what_is_away(
    api: httpx.AsyncClient, workflows: FakeWorkflows, services: Services, database: Database
) -> None:
    well = await api.get("/health", headers=ANONYMOUS)
    assert well.status_code == 200
    assert {name: item["ok"] for name, item in well.json()["components"].items()} == {
        "database": True,
        "temporal": True,
        "catalog": True,
    }
    workflows.away = True
    async with database.transaction() as session:
        await CatalogRepository(session).keep_backends(["broken"])
        await CatalogRepository(session).put_backend(BackendRow(name="broken", error="credentials refused"))
    services.catalog.forget()
    ill = await api.get("/health", headers=ANONYMOUS)
    assert ill.status_code == 503
    components = ill.json()["components"]
    assert [components[name]["ok"] for name in ("database", "temporal", "catalog")] == [True, False, False]
    assert "broken: credentials refused" in components["catalog"]["detail"]
    assert (await api.get("/health/live", headers=ANONYMOUS)).status_code == 200


async def test_without_a_database_the_api_stays_up(api_settings: Settings, workflows: FakeWorkflows) -> None:
    away = SecretStr(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    app = create_app(api_settings.model_copy(update={"database_url": away}), workflows)
    async with client_of(app, {"X-Admin-Token": ADMIN_TOKEN}) as client:
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["components"]["database"]["ok"] is False
        for request in (
            client.post("/admin/instances/launch", json=BODY),
            client.get("/admin/nodes"),
            client.get("/admin/whoami", headers={**ANONYMOUS, "Authorization": "Bearer sf_a_b"}),
        ):
            response = await request
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert response.headers["content-type"] == "application/problem+json"
        assert (await client.get("/health/live")).status_code == 200


async def test_connections_that_died_are_replaced_without_an_error(
    api: httpx.AsyncClient, database: Database, services: Services
) -> None:
    await asyncio.gather(*(api.get("/admin/nodes") for _ in range(5)))
    pool = services.database.engine.pool
    idle = pool.checkedin()  # type: ignore[attr-defined]
    assert idle > 1
    async with database.transaction() as session:
        killed = await session.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        assert len(killed.all()) >= idle
    answers = await asyncio.gather(*(api.post("/admin/instances/launch", json=BODY) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [202] * 5


async def test_the_node_agent_can_be_downloaded(refusing: httpx.AsyncClient) -> None:
    from skyfleet.agent import bundle

    got = await refusing.get(f"/downloads/node-agent/{bundle.version()}", headers=ANONYMOUS)
    assert got.status_code == 200
    digest = hashlib.sha256(got.content).hexdigest()
    assert got.headers["x-checksum-sha256"] == digest
    assert got.headers["etag"] == f'"{digest}"'
    assert "immutable" in got.headers["cache-control"]
    assert 'filename="node-agent.pyz"' in got.headers["content-disposition"]
    again = await refusing.get(f"/downloads/node-agent/{bundle.version()}", headers={"If-None-Match": f'"{digest}"'})
    assert (again.status_code, again.content) == (304, b"")
    missing = await refusing.get("/downloads/node-agent/0.0.0")
    assert missing.status_code == 404
    assert bundle.version() in missing.json()["detail"]


async def test_a_version_that_only_a_worker_has_can_be_downloaded(api: httpx.AsyncClient, database: Database) -> None:
    """While a release is rolled out, launches name the agent of whichever worker provisioned them."""
    content = b"the agent of another release"
    digest = hashlib.sha256(content).hexdigest()
    async with database.transaction() as session:
        await AgentBundleRepository(session).publish("9.9.9-abcdef01", digest, content)
    got = await api.get("/downloads/node-agent/9.9.9-abcdef01", headers=ANONYMOUS)
    assert (got.content, got.headers["x-checksum-sha256"]) == (content, digest)


async def test_unknown_routes_and_methods_are_problems(refusing: httpx.AsyncClient) -> None:
    for response, status in (
        (await refusing.get("/nowhere"), 404),
        (await refusing.put("/admin/nodes"), 405),
        (await refusing.get("/admin/nodes/%00/status"), 400),
        (await refusing.get("/admin/nodes?provider=%00"), 400),
        (await refusing.get("/admin/nodes/%ff%fe/status"), 404),
    ):
        assert response.status_code == status
        assert response.json()["status"] == status
        assert response.headers["content-type"] == "application/problem+json"


async def test_the_openapi_document(app: FastAPI, api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json", headers=ANONYMOUS)).json()
    assert (await api.get("/docs", headers=ANONYMOUS)).status_code == 200
    assert set(document["components"]["securitySchemes"]) == {"AdminToken", "ApiKey"}
    launch = document["paths"]["/admin/instances/launch"]["post"]
    assert launch["security"] == [{"AdminToken": []}, {"ApiKey": []}]
    assert {"202", "400", "401", "403", "409", "413", "422", "429", "503"} <= set(launch["responses"])
    assert document["components"]["schemas"]["LaunchRequest"]["examples"][0] == BODY
    assert document["paths"]["/admin/nodes/register"]["post"]["security"] == []
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["Problem"]["properties"]["errors"]["items"] == {
        "$ref": "#/components/schemas/FieldProblem"
    }
