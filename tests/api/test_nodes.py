"""What people command of nodes, what clouds do to them, and the history of both."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.temporal import CommandRefused
from skyfleet.db.repositories import AuditRepository, NodeRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, NodeRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.states import Role
from tests.api.conftest import FakeWorkflows, launched, make_key, open_attempt, registration

NO_ADMIN = {"X-Admin-Token": ""}


@pytest.fixture
async def node(api: httpx.AsyncClient, database: Database) -> tuple[AttemptRow, dict[str, str]]:
    """The attempt of a registered node, and its heartbeat key as headers."""
    attempt = await open_attempt(database, await launched(api, max_life_seconds=3600, idle_shutdown_seconds=600))
    answer = await api.post(
        "/admin/nodes/register", params={"node_id": attempt.node_id}, json=registration(), headers=NO_ADMIN
    )
    assert answer.status_code == 200
    return attempt, NO_ADMIN | {"Authorization": f"Bearer {answer.json()['heartbeat_key']}"}


async def row(database: Database, attempt: AttemptRow) -> NodeRow:
    """The node as it is written."""
    async with database.transaction() as session:
        found = await NodeRepository(session).get(attempt.node_id)
    assert found is not None
    return found


async def shown(api: httpx.AsyncClient, attempt: AttemptRow) -> dict[str, Any]:
    """The node as people see it."""
    answer: dict[str, Any] = (await api.get(f"/admin/nodes/{attempt.node_id}/status")).json()
    return answer


async def test_what_the_launch_asked_for_is_the_nodes(
    api: httpx.AsyncClient, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    view = await shown(api, node[0])
    assert (view["max_life_seconds"], view["idle_shutdown_seconds"]) == (3600, 600)
    assert (view["routable"], view["health"], view["health_score"]) == (True, None, None)


@pytest.mark.parametrize("field", ["max_life_seconds", "idle_shutdown_seconds"])
async def test_less_than_a_minute_is_refused(api: httpx.AsyncClient, field: str) -> None:
    body = {"model_name": "meta-llama/Llama-3.1-8B-Instruct", field: 59}
    answer = await api.post("/admin/instances/launch", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_a_drain_takes_the_node_out_of_rotation_at_once(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    attempt, key = node
    path = f"/admin/nodes/{attempt.cluster_name}/drain"
    first = await api.post(path, json={"reason": "a new kernel", "seconds": 30})
    assert (first.status_code, first.json()) == (202, {"status": "draining", "subject": attempt.node_id})
    assert (await api.post(path)).status_code == 202  # the same drain
    view = await shown(api, attempt)
    assert (view["status"], view["routable"]) == ("draining", False)
    expected = m.DrainNode(requested_by="admin-token", reason="a new kernel", seconds=30)
    assert workflows.named("drain") == [(attempt.node_id, expected)] * 2
    events = (await api.get(f"/admin/nodes/{attempt.node_id}/events")).json()["events"]
    assert [(event["kind"], event["message"]) for event in events] == [
        ("command", "drain, by admin-token: a new kernel")
    ]
    async with database.transaction() as session:
        [entry] = await AuditRepository(session).page(subject=attempt.node_id, action="node.drain")
    assert (entry.principal, entry.outcome, entry.detail["reason"]) == ("admin-token", "accepted", "a new kernel")
    beat = {"at": datetime.now(UTC).isoformat(), "sequence": 1, "engine": {"healthy": True}}
    answer = await api.post(f"/admin/nodes/{attempt.node_id}/heartbeat", json=beat, headers=key)
    assert answer.json() == {"directive": "drain"}


async def test_a_drain_that_temporal_did_not_hear_of_is_found_by_the_sweep(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    workflows.away = True
    assert (await api.post(f"/admin/nodes/{node[0].node_id}/drain")).status_code == 202
    later = utcnow() + timedelta(seconds=1)
    async with database.transaction() as session:
        [found] = await NodeRepository(session).undelivered_commands(later)
        found.workflow_heard_at = later
    assert found.id == node[0].node_id
    async with database.transaction() as session:
        assert await NodeRepository(session).undelivered_commands(later) == []


async def test_a_replacement_leaves_the_node_serving(
    api: httpx.AsyncClient, workflows: FakeWorkflows, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    attempt, _ = node
    answer = await api.post(f"/admin/nodes/{attempt.node_id}/replace", json={"reason": "slow"})
    assert (answer.status_code, answer.json()["status"]) == (202, "ready")
    view = await shown(api, attempt)
    assert (view["status"], view["routable"]) == ("ready", True)
    assert workflows.named("replace") == [(attempt.node_id, m.ReplaceNode(requested_by="admin-token", reason="slow"))]


@pytest.mark.parametrize("what", ["drain", "replace"])
async def test_a_node_that_ends_takes_no_other_command(
    api: httpx.AsyncClient, workflows: FakeWorkflows, node: tuple[AttemptRow, dict[str, str]], what: str
) -> None:
    path = f"/admin/nodes/{node[0].node_id}"
    workflows.refuse = CommandRefused("NodeEnding", "the node is being terminated")
    refused = await api.post(f"{path}/{what}")
    assert (refused.status_code, "being terminated" in refused.json()["detail"]) == (409, True)
    workflows.refuse = None
    await api.post(f"{path}/terminate")
    late = await api.post(f"{path}/{what}")
    assert (late.status_code, "its end was asked for" in late.json()["detail"]) == (409, True)
    assert (await shown(api, node[0]))["routable"] is False


@pytest.mark.parametrize("what", ["drain", "replace"])
async def test_commands_need_an_operator_of_the_nodes_tenant(
    api: httpx.AsyncClient, database: Database, node: tuple[AttemptRow, dict[str, str]], what: str
) -> None:
    path = f"/admin/nodes/{node[0].node_id}/{what}"
    viewer = await make_key(database, "viewer", Role.VIEWER)
    stranger = await make_key(database, "stranger", Role.OPERATOR, tenant="somebody-else")
    for key, status in ((viewer, 403), (stranger, 404)):
        assert (await api.post(path, headers=NO_ADMIN | key)).status_code == status
    events = f"/admin/nodes/{node[0].node_id}/events"
    assert (await api.get(events, headers=NO_ADMIN | stranger)).status_code == 404
    assert (await api.post("/admin/nodes/nobody/" + what)).status_code == 404


@pytest.mark.parametrize("body", [{"seconds": -1}, {"seconds": 1e9}, {"second": 5}, {"reason": "x" * 501}])
async def test_a_drain_with_nonsense_is_refused(
    api: httpx.AsyncClient, node: tuple[AttemptRow, dict[str, str]], body: dict[str, Any]
) -> None:
    answer = await api.post(f"/admin/nodes/{node[0].node_id}/drain", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == next(iter(body))


async def test_a_notice_drains_the_node_before_it_is_answered(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    attempt, key = node
    notice = {"deadline": "2030-01-01T00:02:00Z", "source": "aws-imds", "detail": "terminate"}
    path = f"/admin/nodes/{attempt.node_id}/termination-warning"
    for _ in range(2):  # a lost reply: it is told again
        assert (await api.post(path, json=notice, headers=key)).status_code == 200
    view = await shown(api, attempt)
    assert (view["status"], view["routable"]) == ("draining", False)
    warned = m.PreemptionWarned(source="aws-imds", deadline=datetime(2030, 1, 1, 0, 2, tzinfo=UTC))
    assert workflows.named("warn") == [(attempt.node_id, warned)] * 2
    events = (await api.get(f"/admin/nodes/{attempt.node_id}/events")).json()["events"]
    assert [event["kind"] for event in events] == ["preemption"]
    assert (await row(database, attempt)).preemption_warned() == warned


async def test_a_notice_that_temporal_did_not_hear_of_is_found_by_the_sweep(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, node: tuple[AttemptRow, dict[str, str]]
) -> None:
    workflows.away = True
    attempt, key = node
    path = f"/admin/nodes/{attempt.node_id}/termination-warning"
    assert (await api.post(path, json={"source": "gcp"}, headers=key)).status_code == 200
    async with database.transaction() as session:
        [found] = await NodeRepository(session).undelivered_commands(utcnow() + timedelta(seconds=1))
    assert found.preemption_warned() == m.PreemptionWarned(source="gcp")
