"""`GET /metrics`: who may read it, what it says of the database's truths, and what it says without a database."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families as parse
from pydantic import SecretStr
from sqlalchemy import text

from api.app import create_app
from api.services import Services
from skyfleet.db.repositories import AttemptRepository, FleetRepository, LaunchRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, utcnow
from skyfleet.domain.fleet import FleetFigures
from skyfleet.domain.states import LaunchStage, Role
from skyfleet.settings import Settings
from skyfleet.telemetry import logs
from tests.api.conftest import ADMIN, FakeWorkflows, client_of, launched, make_key, open_attempt, registration


async def figures(database: Database) -> FleetFigures:
    async with database.transaction() as session:
        return await FleetRepository(session).figures()


async def run(database: Database, statement: str) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement))


def at(app: FastAPI, address: str, **headers: str) -> httpx.AsyncClient:
    """A client of the app at this address."""
    transport = httpx.ASGITransport(app, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)


class TestWhoMayRead:
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    async def test_this_machine_may_while_there_is_no_token(self, app: FastAPI, address: str) -> None:
        async with at(app, address) as client:
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain")

    async def test_another_machine_may_not_nor_one_behind_a_proxy(self, app: FastAPI) -> None:
        for client in (at(app, "10.0.0.7"), at(app, "127.0.0.1", **{"X-Forwarded-For": "10.0.0.7"})):
            async with client:
                answer = await client.get("/metrics")
                assert answer.status_code == 401
                assert "metrics token" in answer.json()["detail"]

    async def test_an_admin_may_from_anywhere_and_nobody_less(self, app: FastAPI, database: Database) -> None:
        """A viewer sees one tenant, and metrics are of all."""
        viewer = await make_key(database, "viewer", Role.VIEWER)
        admin = await make_key(database, "admin", Role.ADMIN)
        for headers, status in ((ADMIN, 200), (admin, 200), (viewer, 403), ({"X-Admin-Token": "wrong"}, 401)):
            async with at(app, "10.0.0.7", **headers) as client:
                assert (await client.get("/metrics")).status_code == status

    async def test_with_a_token_everybody_needs_it(
        self, api_settings: Settings, workflows: FakeWorkflows, database: Database
    ) -> None:
        config = api_settings.model_copy(update={"metrics_token": SecretStr("the-scraper")})
        app = create_app(config, workflows)
        right, wrong = {"Authorization": "Bearer the-scraper"}, {"Authorization": "Bearer another"}
        for headers, status in (({}, 401), (wrong, 401), (right, 200), (ADMIN, 200)):
            async with at(app, "127.0.0.1", **headers) as client:
                assert (await client.get("/metrics")).status_code == status
        async with at(app, "127.0.0.1", **right) as client:
            assert (await client.get("/admin/nodes")).status_code == 401, "it opens nothing else"


class TestFigures:
    async def test_an_attempt_waits_in_the_queue_until_the_cloud_is_asked(
        self, api: httpx.AsyncClient, launch_id: str, attempt: AttemptRow, database: Database
    ) -> None:
        assert (await figures(database)).queued_attempts == 1
        async with database.transaction() as session:
            await AttemptRepository(session).begin(launch_id, 1, "a hash")
        assert (await figures(database)).queued_attempts == 0

    async def test_a_machine_costs_once_before_and_after_its_node_registers(
        self, api: httpx.AsyncClient, attempt: AttemptRow, database: Database
    ) -> None:
        assert (await figures(database)).cost_rates == [], "the cloud has not said that there is one"
        await run(database, "UPDATE launch_attempts SET state = 'created'")
        rates = (await figures(database)).cost_rates
        assert [(rate.provider, rate.market, rate.hourly_price) for rate in rates] == [
            ("azure", "on_demand", attempt.hourly_price)
        ]
        answer = await api.post(f"/admin/nodes/register?node_id={attempt.node_id}", json=registration())
        assert answer.status_code == 200, answer.text
        known = await figures(database)
        assert known.cost_rates == rates
        assert [(count.provider, count.status, count.nodes) for count in known.nodes] == [("azure", "ready", 1)]

    async def test_a_machine_that_is_to_end_costs_until_that_is_confirmed(
        self, api: httpx.AsyncClient, attempt: AttemptRow, database: Database
    ) -> None:
        await run(database, "UPDATE launch_attempts SET state = 'closing', closing_at = now() - interval '90 s'")
        known = await figures(database)
        assert known.teardowns == 1
        assert known.oldest_teardown_seconds == pytest.approx(90, abs=5)
        assert len(known.cost_rates) == 1
        await run(database, "UPDATE launch_attempts SET state = 'closed', closed_at = now()")
        known = await figures(database)
        assert (known.teardowns, known.oldest_teardown_seconds, known.cost_rates) == (0, 0, [])

    async def test_a_node_s_heartbeats_count_until_its_end_is_asked_for(
        self, api: httpx.AsyncClient, attempt: AttemptRow, database: Database
    ) -> None:
        await api.post(f"/admin/nodes/register?node_id={attempt.node_id}", json=registration())
        (first,) = (await figures(database)).heartbeats
        assert first.provider == "azure"
        assert first.seconds == [pytest.approx(0, abs=5)], "since its registration, before the first"
        await run(database, "UPDATE nodes SET last_heartbeat_at = now() - interval '45 s'")
        assert (await figures(database)).heartbeats[0].seconds == [pytest.approx(45, abs=5)]
        await run(database, "UPDATE nodes SET last_heartbeat_at = now() + interval '45 s'")
        assert (await figures(database)).heartbeats[0].seconds == [0.0], "no clock is before another"
        await api.post(f"/admin/nodes/{attempt.node_id}/terminate")
        known = await figures(database)
        assert known.heartbeats == []
        assert known.teardowns == 1
        await run(database, "UPDATE nodes SET status = 'terminated'")
        known = await figures(database)
        assert (known.nodes, known.teardowns, known.cost_rates) == ([], 0, [])

    async def test_the_age_of_a_stage_begins_when_it_was_entered_last(
        self, api: httpx.AsyncClient, launch_id: str, database: Database
    ) -> None:
        await launched(api)  # another, which is QUEUED
        ago = {"PLANNING": 300, "REQUESTING": 200, "TEARING_DOWN": 100}
        then = utcnow()
        async with database.transaction() as session:
            launches = LaunchRepository(session)
            for stage, seconds in (*ago.items(), ("PLANNING", 60)):
                await launches.record(
                    launch_id,
                    kind="stage",
                    stage=LaunchStage(stage),
                    message=stage,
                    at=then - timedelta(seconds=seconds),
                )
            await launches.record(launch_id, kind="progress", message="on its way", at=then)
        known = {row.stage: row for row in (await figures(database)).open_launches}
        assert {stage: row.launches for stage, row in known.items()} == {"PLANNING": 1, "QUEUED": 1}
        assert known["PLANNING"].oldest_seconds == pytest.approx(60, abs=5)
        assert known["QUEUED"].oldest_seconds == pytest.approx(0, abs=5)


class TestWithoutADatabase:
    async def test_the_other_metrics_are_told(self, app: FastAPI, services: Services) -> None:
        down = Database("postgresql://nobody@127.0.0.1:1/none")
        services.fleet._database = down
        async with at(app, "127.0.0.1") as client:
            await client.get("/health/live")
            answer = await client.get("/metrics")
        assert answer.status_code == 200
        families = {family.name: family for family in parse(answer.text)}
        assert [sample.value for sample in families["skyfleet_database_up"].samples] == [0]
        assert "skyfleet_nodes" not in families
        routes = {sample.labels["route"] for sample in families["skyfleet_http_request_duration_seconds"].samples}
        assert "/health/live" in routes
        await down.aclose()

    async def test_figures_are_read_at_most_every_few_seconds(
        self, api: httpx.AsyncClient, launch_id: str, database: Database
    ) -> None:
        async def queued() -> list[float]:
            told = {family.name: family for family in parse((await api.get("/metrics")).text)}
            return [sample.value for sample in told["skyfleet_queued_attempts"].samples]

        assert await queued() == [0]
        await open_attempt(database, launch_id)
        assert (await figures(database)).queued_attempts == 1
        assert await queued() == [0]


async def test_requests_are_told_by_route_and_never_by_what_was_asked_for(api: httpx.AsyncClient) -> None:
    await api.get("/admin/nodes/not-a-node/status")
    await api.get("/there/is/no-such-route")
    await api.request("BREW", "/admin/nodes")
    told = {family.name: family for family in parse((await api.get("/metrics")).text)}
    counted = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"])
        for sample in told["skyfleet_http_request_duration_seconds"].samples
    }
    assert ("GET", "/admin/nodes/{name}/status", "4xx") in counted
    assert ("GET", "none", "4xx") in counted
    assert {method for method, _, _ in counted} <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
    assert not [route for _, route, _ in counted if "not-a-node" in route or "no-such-route" in route]


async def test_a_request_s_id_is_on_what_is_logged_meanwhile(
    app: FastAPI, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    async def broken() -> FleetFigures | None:
        seen.append(logs.bound())
        raise RuntimeError("a bug")

    monkeypatch.setattr(services.fleet, "figures", broken)
    async with client_of(app, ADMIN) as client:
        answer = await client.get("/metrics", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine-1"
    assert "mine-1" in answer.json()["detail"]
    assert seen == [{"request_id": "mine-1"}]
