"""Registration, stages, heartbeats and preemption notices; and the nodes that come of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from skyfleet.db.repositories import AttemptRepository, AuditRepository, LaunchRepository, NodeRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, AuditRow, LaunchRow, NodeRow
from skyfleet.domain.messages import EngineFailed, NodeRegistered, StageReached
from skyfleet.domain.states import AttemptState, LaunchStage, NodeStatus
from tests.api.conftest import TOKEN, FakeWorkflows, end, launched, open_attempt, registration

NO_ADMIN = {"X-Admin-Token": ""}
NOW = datetime(2025, 1, 1, 12, tzinfo=UTC).isoformat()


async def _register(api: httpx.AsyncClient, attempt: AttemptRow, key: str | None = None, **changes: Any) -> Any:
    return await api.post(
        "/admin/nodes/register",
        params={"node_id": attempt.node_id},
        json=registration(**changes),
        headers=NO_ADMIN | ({"Idempotency-Key": key} if key else {}),
    )


async def _launch_row(database: Database, launch_id: str) -> LaunchRow:
    async with database.transaction() as session:
        row = await LaunchRepository(session).get(launch_id)
    assert row is not None
    return row


async def _audit(database: Database, subject: str) -> list[AuditRow]:
    async with database.transaction() as session:
        return list(await AuditRepository(session).page(subject=subject))


def _beat(sequence: int, healthy: bool = True) -> dict[str, Any]:
    return {
        "at": NOW,
        "sequence": sequence,
        "engine": {"healthy": healthy, "running": 1, "waiting": 0, "kv_cache_usage": 0.5, "tokens_per_second": None},
        "gpus": [],
        "agent": {"version": "0.1.0", "uptime_s": 1.5, "engine_restarts": 0},
    }


# --- registration -----------------------------------------------------------------------------------------------


async def test_registration_makes_the_node_and_tells_the_launch(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    stages = [
        {"stage": "INSTALLING", "at": "2025-01-01T12:00:00Z"},
        {"stage": "LOADING_MODEL", "at": "2025-01-01T12:00:05Z"},
        {"stage": "ODD", "at": "2025-01-01T12:00:06Z"},
    ]
    response = await _register(api, attempt, stages=stages, agent_version="0.1.0", engine="echo", new_field=1)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["status"], answer["node_id"]) == ("registered", attempt.node_id)
    assert len(answer["heartbeat_key"]) >= 32
    async with database.transaction() as session:
        node = await NodeRepository(session).get(attempt.node_id)
        stored = await AttemptRepository(session).get(launch_id, 1)
        events = await LaunchRepository(session).events(launch_id)
    assert node is not None
    assert stored is not None
    assert (node.status, node.endpoint_url, node.gpu_type) == ("ready", "http://127.0.0.1:8000", "A10")
    assert node.billed_from == attempt.created_at
    assert answer["heartbeat_key"] not in str(node.model_dump())
    assert stored.token_used_at is not None
    row = await _launch_row(database, launch_id)
    assert row.stage == "REGISTERING"
    assert {"INSTALLING", "LOADING_MODEL", "REGISTERING"} <= set(row.reached)
    assert "STARTING_ENGINE" not in row.reached
    assert [event.stage for event in events][-3:] == ["INSTALLING", "LOADING_MODEL", "REGISTERING"]
    ((told, signal),) = workflows.named("registered")
    assert isinstance(signal, NodeRegistered)
    assert (told, signal.attempt, signal.endpoint_url) == (launch_id, 1, "http://127.0.0.1:8000")
    assert [(entry.action, entry.outcome) for entry in await _audit(database, attempt.node_id)] == [
        ("node.register", "done")
    ]


async def test_any_token_of_the_attempt_is_good_once(api: httpx.AsyncClient, attempt: AttemptRow) -> None:
    first = await _register(api, attempt, registration_token="the token of a create that was lost")
    other = await _register(api, attempt)
    assert (first.status_code, other.status_code) == (200, 401)


async def test_refused_registrations_are_audited(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, attempt: AttemptRow
) -> None:
    forged = await _register(api, attempt, registration_token="guess")
    assert forged.status_code == 401
    assert forged.headers["www-authenticate"]
    assert (await _register(api, attempt)).status_code == 200
    assert (await _register(api, attempt)).status_code == 401  # used, and no Idempotency-Key
    assert (await _register(api, attempt, key="k")).status_code == 401  # a key that was not there the first time
    actions = [(entry.action, entry.outcome) for entry in await _audit(database, attempt.node_id)]
    assert actions == [
        ("node.register.replayed", "refused"),
        ("node.register.replayed", "refused"),
        ("node.register", "done"),
        ("node.register.forged", "refused"),
    ]
    assert len(workflows.named("registered")) == 1


async def test_unknown_nodes_and_missing_ids(api: httpx.AsyncClient) -> None:
    missing = await api.post("/admin/nodes/register", json=registration())
    unknown = await api.post("/admin/nodes/register", params={"node_id": "node-x-1"}, json=registration())
    assert (missing.status_code, unknown.status_code) == (400, 404)
    assert missing.json()["errors"][0]["field"] == "node_id"


@pytest.mark.parametrize("state", [AttemptState.CLOSING, AttemptState.CLOSED])
async def test_an_attempt_given_up_is_410(
    api: httpx.AsyncClient, database: Database, launch_id: str, attempt: AttemptRow, state: AttemptState
) -> None:
    async with database.transaction() as session:
        row = await AttemptRepository(session).get(launch_id, 1)
        assert row is not None
        row.state = state.value
    assert (await _register(api, attempt)).status_code == 410
    assert (await _register(api, attempt, registration_token="guess")).status_code == 401
    assert [entry.action for entry in await _audit(database, attempt.node_id)] == [
        "node.register.forged",
        "node.register.late",
    ]


@pytest.mark.parametrize("stage", [LaunchStage.FAILED, LaunchStage.CANCELLED, None])
async def test_a_launch_that_ended_or_is_being_cancelled_is_410(
    api: httpx.AsyncClient, database: Database, launch_id: str, attempt: AttemptRow, stage: LaunchStage | None
) -> None:
    if stage is None:
        await api.delete(f"/admin/instances/launch/{launch_id}")
    else:
        await end(database, launch_id, stage)
    assert (await _register(api, attempt)).status_code == 410


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("provider", "aws"),
        ("region", "westus2"),
        ("model_name", "tiny"),
        ("instance_type", "Standard_NC6s_v3"),
        ("spot_instance", True),
    ],
)
async def test_a_node_that_is_not_what_was_bought_is_409(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, field: str, said: Any
) -> None:
    response = await _register(api, attempt, **{field: said})
    assert response.status_code == 409
    assert repr(said) in response.json()["detail"]
    assert response.json()["errors"][0]["field"] == field
    assert [entry.action for entry in await _audit(database, attempt.node_id)] == ["node.register.forged"]
    assert (await _register(api, attempt)).status_code == 200  # the token was not used up


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h:1",
        "http://h",
        "h:80",
        "http://:80",
        "http://h:99999",
        "http://u:p@h:80",
        "http://h:80/?q",
        "http://a b:80",
        "http://[::g]:80",
        "javascript:alert(1)",
    ],
)
async def test_endpoints_must_be_addresses(api: httpx.AsyncClient, attempt: AttemptRow, url: str) -> None:
    response = await _register(api, attempt, endpoint_url=url)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "endpoint_url"


async def test_a_lost_reply_is_answered_again_until_the_first_heartbeat(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    first = (await _register(api, attempt, key="secret of the agent")).json()
    second = await _register(api, attempt, key="secret of the agent")
    assert second.status_code == 200
    old, new = first["heartbeat_key"], second.json()["heartbeat_key"]
    assert old != new
    assert len(workflows.named("registered")) == 2
    async with database.transaction() as session:
        events = await LaunchRepository(session).events(launch_id)
    assert sum(event.stage == "REGISTERING" for event in events) == 1
    path = f"/admin/nodes/{attempt.node_id}/heartbeat"
    assert (await api.post(path, json=_beat(1), headers={"Authorization": f"Bearer {old}"})).status_code == 401
    assert (await _register(api, attempt, key="another secret")).status_code == 401
    assert (await api.post(path, json=_beat(1), headers={"Authorization": f"Bearer {new}"})).status_code == 200
    assert (await _register(api, attempt, key="secret of the agent")).status_code == 401


async def test_when_the_launch_cannot_be_told_the_agent_tries_again(
    api: httpx.AsyncClient, workflows: FakeWorkflows, attempt: AttemptRow
) -> None:
    workflows.away = True
    away = await _register(api, attempt, key="k")
    assert away.status_code == 503
    assert away.headers["retry-after"]
    workflows.away = False
    assert (await _register(api, attempt, key="k")).status_code == 200
    assert len(workflows.named("registered")) == 1


# --- stages -----------------------------------------------------------------------------------------------------


async def _stage(api: httpx.AsyncClient, attempt: AttemptRow, stage: str, token: str = TOKEN, **more: Any) -> Any:
    return await api.post(
        f"/admin/nodes/{attempt.node_id}/stages",
        json={"stage": stage, "at": NOW, "detail": "", **more},
        headers=NO_ADMIN | {"Authorization": f"Bearer {token}"},
    )


async def test_stages_move_the_launch_forward_only(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    for stage in ("INSTALLING", "STARTING_ENGINE", "LOADING_MODEL", "STARTING_ENGINE"):
        response = await _stage(api, attempt, stage, detail="pip")
        assert (response.status_code, response.json()) == (200, {"status": "recorded"})
    row = await _launch_row(database, launch_id)
    assert row.stage == "STARTING_ENGINE"
    assert set(row.reached) >= {"INSTALLING", "LOADING_MODEL", "STARTING_ENGINE"}
    async with database.transaction() as session:
        events = await LaunchRepository(session).events(launch_id, after=2)
    assert [(event.kind, event.message) for event in events] == [
        ("stage", "installing dependencies: pip"),
        ("stage", "starting the engine: pip"),
        ("progress", "loading model: pip"),
    ]
    told = [signal.stage for _, signal in workflows.named("stage") if isinstance(signal, StageReached)]
    assert told == ["INSTALLING", "STARTING_ENGINE", "LOADING_MODEL", "STARTING_ENGINE"]


async def test_stages_are_recorded_while_temporal_is_away(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    workflows.away = True
    assert (await _stage(api, attempt, "INSTALLING")).status_code == 200
    assert (await _launch_row(database, launch_id)).stage == "INSTALLING"


async def test_an_engine_that_failed_is_told_until_it_is_heard(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    failure = {"detail": "CUDA out of memory", "log_tail": ["line 1", "line 2"]}
    workflows.away = True
    assert (await _stage(api, attempt, "ENGINE_FAILED", **failure)).status_code == 503
    workflows.away = False
    assert (await _stage(api, attempt, "ENGINE_FAILED", **failure)).status_code == 200
    ((_, signal),) = workflows.named("engine_failed")
    assert isinstance(signal, EngineFailed)
    assert (signal.detail, signal.log_tail) == ("CUDA out of memory", ["line 1", "line 2"])
    async with database.transaction() as session:
        events = await LaunchRepository(session).events(launch_id)
    assert [event.data for event in events if "could not start" in event.message] == [
        {"log_tail": ["line 1", "line 2"]}
    ]


async def test_refused_stages(api: httpx.AsyncClient, database: Database, launch_id: str, attempt: AttemptRow) -> None:
    assert (await _stage(api, attempt, "INSTALLING", token="guess")).status_code == 401
    assert (await _stage(api, attempt, "READY")).status_code == 422
    assert (await _stage(api, attempt, "INSTALLING", at="2025-01-01T00:00:00")).status_code == 422
    await end(database, launch_id, LaunchStage.CANCELLED)
    assert (await _stage(api, attempt, "INSTALLING")).status_code == 410
    unknown = await api.post("/admin/nodes/none/stages", json={"stage": "INSTALLING", "at": NOW})
    assert unknown.status_code == 404


async def test_an_agent_started_again_after_ready_is_not_sent_away(
    api: httpx.AsyncClient, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    await _register(api, attempt)
    await end(database, launch_id, LaunchStage.READY)
    assert (await _stage(api, attempt, "INSTALLING")).status_code == 200
    assert (await _launch_row(database, launch_id)).stage == "READY"


async def test_a_clock_that_is_ahead_is_not_believed(
    api: httpx.AsyncClient, database: Database, launch_id: str, attempt: AttemptRow
) -> None:
    await _stage(api, attempt, "INSTALLING", at=(datetime.now(UTC) + timedelta(days=400)).isoformat())
    async with database.transaction() as session:
        events = await LaunchRepository(session).events(launch_id)
    assert events[-1].at <= datetime.now(UTC)


# --- heartbeats -------------------------------------------------------------------------------------------------


@pytest.fixture
async def key(api: httpx.AsyncClient, attempt: AttemptRow) -> dict[str, str]:
    """Headers with the heartbeat key of a registered node."""
    answer = (await _register(api, attempt)).json()
    return NO_ADMIN | {"Authorization": f"Bearer {answer['heartbeat_key']}"}


async def _node(database: Database, attempt: AttemptRow) -> NodeRow:
    async with database.transaction() as session:
        node = await NodeRepository(session).get(attempt.node_id)
    assert node is not None
    return node


async def _set(database: Database, attempt: AttemptRow, **values: Any) -> None:
    async with database.transaction() as session:
        node = await NodeRepository(session).get(attempt.node_id)
        assert node is not None
        for name, value in values.items():
            setattr(node, name, value)


async def test_heartbeats_are_stored_and_answered(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    path = f"/admin/nodes/{attempt.node_id}/heartbeat"
    answer = await api.post(path, json=_beat(2), headers=key)
    assert (answer.status_code, answer.json()) == (200, {"directive": "continue"})
    node = await _node(database, attempt)
    assert node.heartbeat_sequence == 2
    assert node.first_heartbeat_at == node.last_heartbeat_at
    assert node.last_heartbeat is not None
    assert node.last_heartbeat["engine"]["kv_cache_usage"] == 0.5
    # One that was overtaken is answered, and not written.
    assert (await api.post(path, json=_beat(1, healthy=False), headers=key)).json() == {"directive": "continue"}
    still = await _node(database, attempt)
    assert (still.heartbeat_sequence, still.last_heartbeat) == (2, node.last_heartbeat)
    await api.post(path, json=_beat(3, healthy=False), headers=key)
    later = await _node(database, attempt)
    assert later.last_heartbeat is not None
    assert later.last_heartbeat["engine"]["healthy"] is False
    assert later.first_heartbeat_at == node.first_heartbeat_at


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        ({"status": NodeStatus.DRAINING.value}, "drain"),
        ({"status": NodeStatus.TERMINATING.value}, "shutdown"),
        ({"terminate_requested_at": datetime(2025, 1, 1, tzinfo=UTC)}, "shutdown"),
    ],
)
async def test_directives(
    api: httpx.AsyncClient,
    database: Database,
    attempt: AttemptRow,
    key: dict[str, str],
    values: dict[str, Any],
    directive: str,
) -> None:
    await _set(database, attempt, **values)
    for sequence in (1, 1):  # the second is not new, and hears the same
        answer = await api.post(f"/admin/nodes/{attempt.node_id}/heartbeat", json=_beat(sequence), headers=key)
        assert answer.json() == {"directive": directive}


async def test_refused_heartbeats(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    path = f"/admin/nodes/{attempt.node_id}/heartbeat"
    assert (await api.post(path, json=_beat(1), headers=NO_ADMIN)).status_code == 401
    assert (await api.post(path, json=_beat(1), headers={"Authorization": "Bearer x"})).status_code == 401
    assert (await api.post("/admin/nodes/none/heartbeat", json=_beat(1), headers=key)).status_code == 404
    assert (await api.post(path, json=_beat(2**31), headers=key)).status_code == 422
    assert (await _node(database, attempt)).last_heartbeat_at is None
    await _set(database, attempt, status=NodeStatus.TERMINATED.value)
    assert (await api.post(path, json=_beat(5), headers=key)).status_code == 410


async def test_a_preemption_notice_is_kept_and_shown(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    path = f"/admin/nodes/{attempt.node_id}/termination-warning"
    notice = {"deadline": "2030-01-01T00:02:00Z", "source": "aws-imds", "detail": "terminate"}
    assert (await api.post(path, json=notice, headers=NO_ADMIN)).status_code == 401
    assert (await api.post(path, json=notice, headers=key)).json() == {"status": "recorded"}
    node = await _node(database, attempt)
    assert node.termination_warning is not None
    assert node.termination_warning["source"] == "aws-imds"
    shown = (await api.get(f"/admin/nodes/{attempt.node_id}/status")).json()
    assert "2030-01-01 00:02:00 UTC" in shown["status_message"]
    assert (await _audit(database, attempt.node_id))[0].action == "node.termination_warning"
    assert (await api.post(path, json={**notice, "deadline": None}, headers=key)).status_code == 200
    assert (await api.post(path, json={**notice, "kind": "other"}, headers=key)).status_code == 422


async def test_advice_is_kept_and_never_hides_a_preemption(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    path = f"/admin/nodes/{attempt.node_id}/termination-warning"
    advice = {"kind": "rebalance", "source": "aws-rebalance-recommendation"}
    works = {"kind": "maintenance", "source": "gcp-maintenance-event", "deadline": "2030-01-01T00:02:00Z"}
    for notice, message in ((advice, "may take the machine away soon"), (works, "works on the machine at 2030")):
        assert (await api.post(path, json=notice, headers=key)).json() == {"status": "recorded"}
        assert message in (await _node(database, attempt)).status_message
    await api.post(path, json={"source": "aws-spot-instance-action"}, headers=key)
    # Late, or told again: the machine is taken away all the same.
    assert (await api.post(path, json=advice, headers=key)).json() == {"status": "recorded"}
    node = await _node(database, attempt)
    assert node.termination_warning is not None
    assert node.termination_warning["kind"] == "preemption"
    assert "takes the machine away" in node.status_message


async def test_a_heartbeat_of_an_agent_that_says_all_it_can(
    api: httpx.AsyncClient, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    beat = _beat(1)
    now = "2030-01-01T00:00:00.000+00:00"
    beat["engine"]["state"] = "failing"
    beat["gpus"] = [{"index": 0, "ecc_uncorrected_errors": 2**64 - 1, "last_xid": 79, "last_xid_at": now}]
    beat["agent"] = {"engine_restarts": 5, "engine_last_restart_at": now, "engine_last_restart_reason": "it hangs"}
    answer = await api.post(f"/admin/nodes/{attempt.node_id}/heartbeat", json=beat, headers=key)
    assert answer.status_code == 200
    kept = (await _node(database, attempt)).last_heartbeat
    assert kept is not None
    assert kept["engine"]["state"] == "failing"
    assert kept["gpus"][0]["ecc_uncorrected_errors"] == 2**64 - 1
    assert kept["agent"]["engine_last_restart_reason"] == "it hangs"


# --- nodes, for people ------------------------------------------------------------------------------------------


async def test_nodes_are_listed_filtered_and_paged(api: httpx.AsyncClient, database: Database) -> None:
    made = []
    for n in range(3):
        attempt = await open_attempt(database, await launched(api, deployment=f"d{n}"))
        assert (await _register(api, attempt)).status_code == 200
        made.append(attempt)
    await _set(database, made[0], status=NodeStatus.TERMINATED.value)
    first = (await api.get("/admin/nodes", params={"limit": 2})).json()
    second = (await api.get("/admin/nodes", params={"limit": 2, "cursor": first["next"]})).json()
    listed = [node["node_id"] for node in first["nodes"] + second["nodes"]]
    assert listed == [attempt.node_id for attempt in reversed(made)]
    assert second["next"] is None
    assert first["nodes"][0]["cost_per_hour"] == "3.200000"

    async def found(**params: Any) -> list[str]:
        return [node["node_id"] for node in (await api.get("/admin/nodes", params=params)).json()["nodes"]]

    assert await found(status="terminated") == [made[0].node_id]
    assert await found(deployment="d1") == [made[1].node_id]
    assert await found(provider="aws") == []
    assert (await api.get("/admin/nodes", params={"status": "asleep"})).status_code == 422


async def test_terminate_is_written_down_and_delivered(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    path = f"/admin/nodes/{attempt.cluster_name}/terminate"
    first = await api.post(path, json={"reason": "too dear"})
    again = await api.post(f"/admin/nodes/{attempt.node_id}/terminate")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == {"status": "terminating", "subject": attempt.node_id}
    assert [subject for subject, _ in workflows.named("terminate")] == [attempt.node_id] * 2
    node = await _node(database, attempt)
    assert (node.terminate_requested_by, node.status) == ("admin-token", "ready")
    assert [entry.action for entry in await _audit(database, attempt.node_id)] == ["node.terminate", "node.register"]
    beat = await api.post(f"/admin/nodes/{attempt.node_id}/heartbeat", json=_beat(1), headers=key)
    assert beat.json() == {"directive": "shutdown"}
    await _set(database, attempt, status=NodeStatus.TERMINATED.value)
    assert (await api.post(path)).json()["status"] == "terminated"
    assert (await api.post("/admin/nodes/none/terminate")).status_code == 404
    assert (await api.post(path, json={"why": "x"})).status_code == 422


async def test_terminate_without_temporal_is_accepted(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database, attempt: AttemptRow, key: dict[str, str]
) -> None:
    workflows.away = True
    assert (await api.post(f"/admin/nodes/{attempt.cluster_name}/terminate")).status_code == 202
    assert (await _node(database, attempt)).terminate_requested_at is not None  # which the sweep delivers
