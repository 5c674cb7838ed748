"""Costs and budgets over the API: what is shown to whom, what is refused, and launches that a spent budget stops."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.costs import CostActivities
from activities.launch import LaunchActivities
from api.services import Services
from skyfleet.db.repositories import AuditRepository, CostRepository, NodeRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, CostIntervalRow, NodeRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.cost import interval_cost, month_of
from skyfleet.domain.offers import CloudInstance, InstanceState
from skyfleet.domain.states import LaunchStage, Market, Role
from tests.api.conftest import BODY, FakeWorkflows, end, launched, make_key, open_attempt, registration

MONTH = month_of(datetime.now(UTC))[0]
#: What machines are held for here: so short that this month's are over, whenever the tests run.
SPELL = timedelta(seconds=2)


def a_spell(dollars: str) -> Decimal:
    """The price an hour of a machine that costs this much a spell."""
    return Decimal(dollars) * 1800


def interval(name: str, spells: float, price: str = "2", **changes: Any) -> CostIntervalRow:
    """A machine that began with this month, costs `price` a spell and ended after some."""
    values: dict[str, Any] = {
        "cluster_name": name,
        "instance_id": f"i-{name}",
        "backend": "local",
        "provider": "azure",
        "region": "eastus",
        "instance_type": "Standard_NV36ads_A10_v5",
        "market": "on_demand",
        "hourly_price": a_spell(price),
        "tenant": "default",
        "principal": "ann",
        "started_at": MONTH,
        "ended_at": MONTH + spells * SPELL,
        "sandbox": True,
    }
    return CostIntervalRow(**values | changes)


async def add(database: Database, *rows: CostIntervalRow) -> None:
    """Write intervals into the ledger."""
    async with database.transaction() as session:
        session.add_all(rows)


@pytest.fixture
async def spent(database: Database) -> Sequence[CostIntervalRow]:
    """Two tenants and a stray: $2 + $1.50 (spot, $3 on demand) and $4, and $1."""
    rows = (
        interval("sf-a", 1),
        interval("sf-b", 1.5, "1", market="spot", on_demand_price=a_spell("2"), provider="aws", region="us-east-1"),
        interval("sf-c", 2, tenant="research", principal="bob"),
        interval("sf-s", 0.5, tenant=None, principal=None),
    )
    await add(database, *rows)
    return rows


# --- costs ------------------------------------------------------------------------------------------------------


async def test_the_month_in_short(api: httpx.AsyncClient, database: Database, spent: Any) -> None:
    await add(database, interval("sf-open", 0, hourly_price=Decimal("3.6"), ended_at=None))
    body = (await api.get("/admin/costs")).json()
    at = datetime.fromisoformat(body["as_of"])
    month_end = month_of(at)[1]
    running = interval_cost(Decimal("3.6"), MONTH, at)
    assert Decimal(body["month_to_date"]) == Decimal("8.5") + running
    assert Decimal(body["hourly_rate"]) == Decimal("3.6")
    left = interval_cost(Decimal("3.6"), at, month_end)
    assert Decimal(body["forecast"]) == Decimal(body["month_to_date"]) + left
    assert (Decimal(body["spot_saving"]), body["spot_saving_fraction"]) == (Decimal("1.5"), 0.5)
    assert Decimal(body["failed_cost"]) == Decimal("8.5") + running  # no launch stands behind any of these
    assert body["sandbox"] is True


async def test_costs_told_apart_and_cut_by_the_period(api: httpx.AsyncClient, spent: Any) -> None:
    found = (await api.get("/admin/costs/breakdown", params={"by": "provider"})).json()
    assert [(part["key"], Decimal(part["cost"]), part["machines"]) for part in found["parts"]] == [
        ("azure", Decimal(7), 3),
        ("aws", Decimal("1.5"), 1),
    ]
    assert Decimal(found["total"]["cost"]) == Decimal("8.5")
    cut = {"by": "user", "from": (MONTH + SPELL).isoformat(), "to": "2100-01-01T00:00:00Z"}
    found = (await api.get("/admin/costs/breakdown", params=cut)).json()
    assert {part["key"]: Decimal(part["cost"]) for part in found["parts"]} == {"bob": 2, "ann": Decimal("0.5")}
    found = (await api.get("/admin/costs/breakdown", params={"by": "user", "limit": 1})).json()
    assert (len(found["parts"]), found["truncated"], Decimal(found["total"]["cost"])) == (1, True, Decimal("8.5"))


async def test_the_ledger_comes_in_pages_and_narrowed(api: httpx.AsyncClient, spent: Any) -> None:
    names: list[str] = []
    cursor = None
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/admin/costs/intervals", params=params)).json()
        names += [one["machine"] for one in page["intervals"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == ["sf-s", "sf-c", "sf-b", "sf-a"]
    [line] = (await api.get("/admin/costs/intervals", params={"market": "spot"})).json()["intervals"]
    assert (line["spot"], Decimal(line["total"]), line["outcome"]) == (True, Decimal("1.5"), "stray")
    assert line["hours"] == round(3 / 3600, 4)
    assert not (await api.get("/admin/costs/intervals", params={"billed": "true"})).json()["intervals"]


async def test_a_tenant_sees_its_own_alone(api: httpx.AsyncClient, database: Database, spent: Any) -> None:
    headers = {"X-Admin-Token": "", **await make_key(database, "bob", Role.VIEWER, "research")}
    assert Decimal((await api.get("/admin/costs", headers=headers)).json()["month_to_date"]) == 4
    found = (await api.get("/admin/costs/breakdown", params={"by": "tenant"}, headers=headers)).json()
    assert [part["key"] for part in found["parts"]] == ["research"]
    lines = (await api.get("/admin/costs/intervals", headers=headers)).json()["intervals"]
    assert [line["machine"] for line in lines] == ["sf-c"]
    for path in ("/admin/costs", "/admin/costs/intervals", "/admin/costs/breakdown"):
        asked = {"tenant": "default", "by": "day"}
        assert (await api.get(path, params=asked, headers=headers)).status_code == 403
    for name, scope, value in (
        ("all", "all", None),
        ("mine", "tenant", "research"),
        ("bobs", "user", "bob"),
        ("theirs", "tenant", "default"),
    ):
        await put(api, name, amount="10", scope=scope, value=value)
    shown = (await api.get("/admin/budgets", headers=headers)).json()["budgets"]
    assert [one["name"] for one in shown] == ["bobs", "mine"]
    assert (await api.get("/admin/budgets/theirs", headers=headers)).status_code == 404
    assert (await api.put("/admin/budgets/mine", json={"amount": "1"}, headers=headers)).status_code == 403
    assert (await api.delete("/admin/budgets/mine", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"by": "colour"}, "by"),
        ({}, "by"),
        ({"by": "day", "from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"}, "from"),
        ({"by": "day", "from": "2026-11-02T00:00:00Z", "to": "2026-11-02T00:00:00Z"}, "from"),
        ({"by": "day", "from": "2026-11-01T00:00:00"}, "from"),
        ({"by": "day", "from": "2026-11-01T00:00:00Z", "to": "2026-11-02"}, "to"),
        ({"by": "day", "from": "2000-01-01T00:00:00Z"}, "from"),
        ({"by": "model", "from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"by": "model", "to": "9999-12-31T23:59:59-14:00"}, "to"),
        ({"by": "model", "from": "2100-01-01T00:00:00Z"}, "from"),
    ],
)
async def test_a_period_that_is_none_is_refused(refusing: httpx.AsyncClient, params: Any, field: str) -> None:
    response = await refusing.get("/admin/costs/breakdown", params=params)
    assert response.status_code == 422, response.text
    [problem] = response.json()["errors"]
    assert problem["field"] == field
    if params.get("by") == "colour":
        assert "provider" in problem["accepted"]


async def test_the_cost_of_a_node_is_the_ledgers(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow
) -> None:
    begun = utcnow() - timedelta(hours=1)
    instance = CloudInstance(
        name=attempt.cluster_name,
        id="i-1",
        backend="local",
        cloud="azure",
        region="eastus",
        zone="eastus-1",
        instance_type=attempt.instance_type,
        market=Market.ON_DEMAND,
        state=InstanceState.RUNNING,
        hourly_price=Decimal("3.30"),  # the price rose between plan and create
        owner="test",
        created_at=begun,
    )
    assert (await api.post(f"/admin/nodes/register?node_id={attempt.node_id}", json=registration())).status_code == 200
    assert Decimal((await api.get(f"/admin/nodes/{attempt.node_id}/status")).json()["cost"]) == 0
    async with database.transaction() as session:
        await CostRepository(session).has(instance)
        await CostRepository(session).ended(instance.name, begun + timedelta(minutes=30), told=True)
    node = (await api.get(f"/admin/nodes/{attempt.node_id}/status")).json()
    [listed] = (await api.get("/admin/nodes")).json()["nodes"]
    status = (await api.get("/admin/instances/status", params={"job_id": attempt.launch_id})).json()
    [line] = (await api.get("/admin/costs/intervals", params={"launch_id": attempt.launch_id})).json()["intervals"]
    figures = (node["cost"], listed["cost"], status["cost"], status["attempts"][0]["cost"], line["total"])
    assert {Decimal(figure) for figure in figures} == {Decimal("1.65")}
    assert Decimal(node["cost_per_hour"]) == Decimal(status["attempts"][0]["hourly_price"]) == Decimal("3.30")


# --- budgets ----------------------------------------------------------------------------------------------------


async def put(api: httpx.AsyncClient, name: str, **body: Any) -> dict[str, Any]:
    """Make or change a budget."""
    response = await api.put(f"/admin/budgets/{name}", json=body)
    assert response.status_code in (200, 201), response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_a_budget_is_made_changed_and_deleted_and_all_of_it_audited(
    api: httpx.AsyncClient, database: Database, spent: Any
) -> None:
    made = await api.put("/admin/budgets/team", json={"amount": "10", "scope": "tenant", "value": "research"})
    assert made.status_code == 201
    body = made.json()
    assert (Decimal(body["spent"]), Decimal(body["forecast"]), body["exhausted"]) == (4, 4, False)
    assert [Decimal(one) for one in body["alert_fractions"]] == [Decimal("0.5"), Decimal("0.8"), 1]
    changed = await api.put(
        "/admin/budgets/team",
        json={
            "amount": "4",
            "scope": "tenant",
            "value": "research",
            "alert_fractions": [1, "0.90", 0.9],
            "hard_stop": "drain",
        },
    )
    assert changed.status_code == 200
    again = (await api.get("/admin/budgets/team")).json()
    assert again == changed.json()
    assert (again["id"], again["exhausted"], again["created_at"]) == (body["id"], True, body["created_at"])
    assert [Decimal(one) for one in again["alert_fractions"]] == [Decimal("0.9"), 1]
    assert (await api.delete("/admin/budgets/team")).json() == {"status": "deleted", "subject": "team"}
    assert (await api.delete("/admin/budgets/team")).status_code == 404
    assert (await api.get("/admin/budgets")).json() == {"budgets": []}
    async with database.transaction() as session:
        rows = await AuditRepository(session).page(subject="team")
    assert [row.action for row in rows] == ["budget.delete", "budget.set", "budget.set"]
    assert rows[1].detail["before"]["amount"] == "10.000000"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "0"}, "amount"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": "1e9"}, "amount"),
        ({"amount": "0.0000001"}, "amount"),
        ({"amount": "1", "alert_fractions": ["0"]}, "alert_fractions.0"),
        ({"amount": "1", "alert_fractions": ["1", "2.1"]}, "alert_fractions.1"),
        ({"amount": "1", "alert_fractions": ["-0.5"]}, "alert_fractions.0"),
        ({"amount": "1", "scope": "planet", "value": "x"}, "scope"),
        ({"amount": "1", "scope": "tenant"}, "body"),
        ({"amount": "1", "scope": "all", "value": "x"}, "body"),
        ({"amount": "1", "hard_stop": "explode"}, "hard_stop"),
        ({"amount": "1", "currency": "EUR"}, "currency"),
    ],
)
async def test_what_is_no_budget_is_refused(refusing: httpx.AsyncClient, body: Any, field: str) -> None:
    response = await refusing.put("/admin/budgets/b", json=body)
    assert response.status_code == 422, response.text
    assert field in [problem["field"] for problem in response.json()["errors"]]
    assert (await refusing.put("/admin/budgets/a b", json={"amount": "1"})).status_code == 422


async def _check(database: Database, *, dry_run: bool = False) -> m.CheckBudgetsResult:
    steps = CostActivities(database)
    result: m.CheckBudgetsResult = await ActivityEnvironment().run(steps.check_budgets, m.SweepInput(dry_run=dry_run))
    return result


async def test_each_fraction_alerts_once_a_month(api: httpx.AsyncClient, database: Database, spent: Any) -> None:
    await put(api, "all", amount="10", alert_fractions=["0.5", "0.8", "0.9", "1"])
    assert (await _check(database, dry_run=True)).alerts == ["all:0.5", "all:0.8"]
    assert (await _check(database)).alerts == ["all:0.5", "all:0.8"]
    assert (await _check(database)).alerts == []
    assert (await _check(database, dry_run=True)).alerts == []
    async with database.transaction() as session:
        rows = await AuditRepository(session).page(action="budget.alert")
    assert [(row.subject, row.detail["fraction"], row.detail["spent"]) for row in rows] == [
        ("all", "0.8", "8.500000"),
        ("all", "0.5", "8.500000"),
    ]
    told = (await api.get("/admin/notifications", params={"kind": "budget_alert"})).json()["notifications"]
    assert [one["title"] for one in told] == ["Budget all: 80 % spent", "Budget all: 50 % spent"]
    given = (await api.get("/admin/budgets/all")).json()["alerts"]
    assert [Decimal(alert["fraction"]) for alert in given] == [Decimal("0.5"), Decimal("0.8")]
    # What was told holds for the new amount, or is told again.
    await put(api, "all", amount="12", alert_fractions=["0.5", "0.8"])
    assert (await _check(database)).alerts == []
    await add(database, interval("sf-more", 1))
    assert (await _check(database)).alerts == ["all:0.8"]


async def test_the_month_before_does_not_count(api: httpx.AsyncClient, database: Database) -> None:
    before = MONTH - timedelta(hours=3)
    await add(database, interval("sf-old", 0, started_at=before, ended_at=MONTH + SPELL))
    assert Decimal((await put(api, "all", amount="3"))["spent"]) == 2


@pytest.mark.parametrize(
    ("scope", "value"), [("all", None), ("tenant", "default"), ("user", "admin-token"), ("deployment", "chat")]
)
@pytest.mark.parametrize("hard_stop", ["refuse", "drain"])
async def test_a_spent_budget_refuses_launches_in_its_scope(
    api: httpx.AsyncClient, database: Database, workflows: FakeWorkflows, scope: str, value: str | None, hard_stop: str
) -> None:
    body = {**BODY, "deployment": "chat"}
    key = {"Idempotency-Key": "k"}
    first = await api.post("/admin/instances/launch", json=body, headers=key)
    assert first.status_code == 202
    await add(database, interval("sf-x", 2, principal="admin-token", deployment="chat"))
    await put(api, "cap", amount="4", scope=scope, value=value, hard_stop=hard_stop)
    refused = await api.post("/admin/instances/launch", json=body)
    assert refused.status_code == 402
    for part in ("budget cap", "$4.00 of $4.00 spent"):
        assert part in refused.json()["detail"]
    # What was accepted stays accepted.
    again = await api.post("/admin/instances/launch", json=body, headers=key)
    assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])
    assert len(workflows.named("start")) == 1
    # The workflow of one that was accepted before looks as well.
    with pytest.raises(ApplicationError, match="budget cap") as stopped:
        await ActivityEnvironment().run(
            LaunchActivities(database).validate_launch, m.ValidateInput(launch_id=first.json()["job_id"])
        )
    assert stopped.value.non_retryable
    await put(api, "cap", amount="5", scope=scope, value=value, hard_stop=hard_stop)
    assert (await api.post("/admin/instances/launch", json=body)).status_code == 202


@pytest.mark.parametrize(
    ("scope", "value", "hard_stop"),
    [
        ("all", None, "none"),
        ("tenant", "research", "refuse"),
        ("user", "bob", "refuse"),
        ("deployment", "other", "refuse"),
        ("experiment", "e1", "refuse"),
        ("provider", "aws", "refuse"),
    ],
)
async def test_a_budget_of_others_or_without_a_stop_refuses_nothing(
    api: httpx.AsyncClient, database: Database, scope: str, value: str | None, hard_stop: str
) -> None:
    others = {"tenant": "research", "principal": "bob", "deployment": "other", "experiment": "e1", "provider": "aws"}
    await add(database, interval("sf-x", 2, **others))
    assert Decimal((await put(api, "cap", amount="1", scope=scope, value=value, hard_stop=hard_stop))["spent"]) == 4
    assert (await api.post("/admin/instances/launch", json=BODY)).status_code == 202


async def test_a_providers_spent_budget_leaves_the_other_providers(api: httpx.AsyncClient, database: Database) -> None:
    anywhere = {"model_name": BODY["model_name"]}
    before = await launched(api, provider=None, region=None, instance_type=None)
    pinned = await launched(api)
    await add(database, interval("sf-x", 2))
    await put(api, "azure", amount="1", scope="provider", value="azure", hard_stop="refuse")
    assert (await api.post("/admin/instances/launch", json=BODY)).status_code == 402
    with_others = {**BODY, "fallback": {"clouds": ["aws"], "regions": "any"}}
    for body in (anywhere, with_others):
        assert (await api.post("/admin/instances/launch", json=body)).status_code == 202

    async def planned(launch_id: str) -> m.PlanResult:
        steps = LaunchActivities(database)
        result: m.PlanResult = await ActivityEnvironment().run(
            steps.plan_launch, m.PlanInput(launch_id=launch_id, attempt=1)
        )
        return result

    elsewhere = await planned(before)
    assert elsewhere.offer is not None
    assert elsewhere.offer.cloud == "aws"
    nowhere = await planned(pinned)
    assert nowhere.offer is None
    assert nowhere.nothing_left is not None
    assert "budget azure" in nowhere.nothing_left.message
    await put(api, "aws", amount="1", scope="provider", value="aws", hard_stop="refuse")
    await add(database, interval("sf-y", 2, provider="aws"))
    await put(api, "aws", amount="2", scope="provider", value="aws", hard_stop="refuse")
    assert (await api.post("/admin/instances/launch", json=anywhere)).status_code == 402


async def _node(api: httpx.AsyncClient, database: Database, number: int, market: str, tenant: str) -> str:
    """A node that registered `number` minutes after the month began, and the ledger's line of its machine."""
    launch_id = await launched(api)
    row = await open_attempt(database, launch_id)
    await end(database, launch_id, LaunchStage.READY)
    async with database.transaction() as session:
        NodeRepository(session).add(
            NodeRow(
                id=row.node_id,
                launch_id=launch_id,
                attempt=1,
                cluster_name=row.cluster_name,
                tenant=tenant,
                backend="local",
                provider="azure",
                region="eastus",
                instance_type=row.instance_type,
                market=market,
                hourly_price=Decimal(1),
                model_name="m",
                endpoint_url="http://h:1",
                status="ready",
                heartbeat_key_hash="h",
                billed_from=MONTH,
                registered_at=MONTH + timedelta(minutes=number),
            )
        )
    await add(database, interval(row.cluster_name, 0, ended_at=None, market=market, tenant=tenant))
    return row.node_id


async def test_a_spent_budget_that_drains_ends_its_nodes_by_priority(
    api: httpx.AsyncClient, database: Database, services: Services
) -> None:
    bought = [("on_demand", "default"), ("spot", "default"), ("on_demand", "default"), ("spot", "default")]
    nodes = [await _node(api, database, number, *how) for number, how in enumerate(bought)]
    other = await _node(api, database, 9, "spot", "research")
    await add(database, interval("sf-x", 1))
    await put(api, "cap", amount="1", scope="tenant", value="default", hard_stop="drain", alert_fractions=["1"])
    assert (await _check(database, dry_run=True)).drained_nodes == [nodes[3]]
    order = []
    while drained := (await _check(database)).drained_nodes:
        order += drained
    assert order == [nodes[3], nodes[1], nodes[2], nodes[0]]
    async with database.transaction() as session:
        asked = [await NodeRepository(session).get(node_id) for node_id in nodes]
        untouched = await NodeRepository(session).get(other)
        undelivered = await NodeRepository(session).undelivered_terminations(utcnow() + timedelta(seconds=1))
        audited = await AuditRepository(session).page(action="node.terminate", principal="budget cap")
    assert {node.terminate_requested_by for node in asked if node} == {"budget cap"}
    assert untouched is not None
    assert untouched.terminate_requested_at is None
    assert {node.id for node in undelivered} == set(nodes)
    assert sorted(row.subject for row in audited) == sorted(nodes)
