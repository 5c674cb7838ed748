"""The channels, their tests, and the history of what was told."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from api.services import Services
from skyfleet.db.repositories import (
    AuditRepository,
    ChannelRepository,
    DeliveryRepository,
    NodeRepository,
    NotificationRepository,
)
from skyfleet.db.session import Database
from skyfleet.db.tables import AttemptRow, AuditRow, utcnow
from skyfleet.domain.messages import ChannelTestInput
from skyfleet.domain.notifications import Notification, NotificationKind
from skyfleet.domain.states import Role
from skyfleet.notifier.process import Notifier
from tests.api.conftest import FakeWorkflows, client_of, make_key, registration

CHANNELS = "/admin/notification-channels"
SECRET = "s3cretpath"
URL = f"json://me:pa55word@127.0.0.1:8000/{SECRET}"


async def make(api: httpx.AsyncClient, name: str = "hook", **body: Any) -> dict[str, Any]:
    response = await api.post(CHANNELS, json={"name": name, "url": URL, **body})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def audits(database: Database) -> list[AuditRow]:
    async with database.transaction() as session:
        return list(await AuditRepository(session).page())


async def told(database: Database, subject: str, tenant: str | None = "default", to: str | None = None) -> int:
    """A notification, on its way to the channel of that name."""
    async with database.transaction() as session:
        await NotificationRepository(session).add(
            Notification(
                kind=NotificationKind.LAUNCH_FAILED,
                subject=subject,
                title=f"about {subject}",
                tenant=tenant,
                dedupe=subject,
            )
        )
        (row,) = await NotificationRepository(session).page(subject=subject)
        channel = None if to is None else await ChannelRepository(session).find(to)
        await DeliveryRepository(session).open(row, [] if channel is None else [channel])
        assert row.id is not None
        return row.id


# --- channels --------------------------------------------------------------------------------------------------------


async def test_a_channel_is_made_read_changed_and_removed(api: httpx.AsyncClient, database: Database) -> None:
    made = await make(api, kinds=["node_lost", "node_lost"], tenants=["a"], throttle_count=3)
    assert made["id"].startswith("channel-")
    assert (made["service"], made["masked_url"]) == ("JSON", "json://****@127.0.0.1:8000/****")
    assert (made["kinds"], made["tenants"], made["throttle_count"]) == (["node_lost"], ["a"], 3)
    assert (await api.get(f"{CHANNELS}/hook")).json() == (await api.get(f"{CHANNELS}/{made['id']}")).json() == made
    assert (await api.get(CHANNELS)).json() == {"channels": [made]}
    change = {"url": "slack://T1/B1/s3cret", "kinds": [], "enabled": False}
    changed = (await api.patch(f"{CHANNELS}/hook", json=change)).json()
    assert (changed["service"], changed["masked_url"]) == ("Slack", "slack://****")
    assert (changed["kinds"], changed["enabled"], changed["tenants"]) == ([], False, ["a"])
    assert changed["updated_at"] > made["updated_at"]
    async with database.transaction() as session:
        row = await ChannelRepository(session).find("hook")
        assert row is not None
        assert row.url == "slack://T1/B1/s3cret"
    assert (await api.delete(f"{CHANNELS}/hook")).json() == {"status": "removed", "subject": made["id"]}
    assert (await api.get(f"{CHANNELS}/hook")).status_code == 404
    assert (await api.get(CHANNELS)).json() == {"channels": []}
    done = [(row.action, row.subject, row.detail["name"]) for row in await audits(database)]
    assert done == [(f"notification_channel.{what}", made["id"], "hook") for what in ("remove", "change", "create")]


async def test_a_change_of_nothing_changes_nothing(api: httpx.AsyncClient, database: Database) -> None:
    made = await make(api)
    assert (await api.patch(f"{CHANNELS}/hook", json={})).json() == made
    assert [row.action for row in await audits(database)] == ["notification_channel.create"]


async def test_a_name_is_given_once(api: httpx.AsyncClient) -> None:
    await make(api)
    await make(api, "other")
    assert (await api.post(CHANNELS, json={"name": "hook", "url": URL})).status_code == 409
    assert (await api.patch(f"{CHANNELS}/other", json={"name": "hook"})).status_code == 409


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "no address at all"}, "url"),
        ({"url": f"nope://host/{SECRET}"}, "url"),
        ({"url": ""}, "url"),
        ({"url": "json://" + "x" * 2000}, "url"),
        ({"name": "-"}, "name"),
        ({"kinds": ["nope"]}, "kinds.0"),
        ({"tenants": ["a b"]}, "tenants.0"),
        ({"min_severity": "loud"}, "min_severity"),
        ({"throttle_count": 0}, "throttle_count"),
        ({"throttle_seconds": 0}, "throttle_seconds"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_what_is_refused_is_named(api: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    await make(api, "there")
    for response in (
        await api.post(CHANNELS, json={"name": "hook", "url": URL} | body),
        await api.patch(f"{CHANNELS}/there", json=body),
    ):
        assert response.status_code == 422, response.text
        (problem,) = response.json()["errors"]
        assert problem["field"] == field
        assert SECRET not in response.text
        if field == "url" and len(body["url"]) < 2000:
            assert any("slack://" in accepted for accepted in problem["accepted"])
        if field in ("kinds.0", "min_severity"):
            assert len(problem["accepted"]) >= 3


@pytest.mark.parametrize(
    ("url", "service"),
    [
        (URL, "JSON"),
        (f"slack://T1JJ3T3L2/A1BRTD4JD/{SECRET}xxxxxxxxxxxxxx", "Slack"),
        (f"mailtos://me:{SECRET}@example.org", "E-Mail"),
        (f"dbus://{SECRET}", None),
        (f"KDE://{SECRET}", None),
        (f"macosx://_/?sound={SECRET}", None),
        (f"windows://{SECRET}", None),
        (f"file:///{SECRET}", None),
        (f"https://example.org/{SECRET}", None),  # no known service's
        (f"json://?x={SECRET}", None),
    ],
)
async def test_addresses_are_checked_by_apprise_itself(
    api: httpx.AsyncClient, services: Services, url: str, service: str | None
) -> None:
    services.addresses = Notifier()
    response = await api.post(CHANNELS, json={"name": "hook", "url": url})
    assert SECRET not in response.text
    if service is not None:
        assert response.status_code == 201, response.text
        assert response.json()["service"] == service
    else:
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "url"


async def test_only_an_admin_changes_channels_and_a_tenant_sees_its_own(app: FastAPI, database: Database) -> None:
    viewer = await make_key(database, "viewer", Role.VIEWER, "a")
    operator = await make_key(database, "operator", Role.OPERATOR, "a")
    admin = await make_key(database, "admin", Role.ADMIN)
    async with client_of(app, admin) as api:
        for name, tenants in (("all", []), ("shared", ["a", "b"]), ("theirs", ["b"])):
            await make(api, name, tenants=tenants)
        for headers in (viewer, operator):
            for method, path in (
                ("POST", CHANNELS),
                ("PATCH", f"{CHANNELS}/all"),
                ("DELETE", f"{CHANNELS}/all"),
                ("POST", f"{CHANNELS}/all/test"),
            ):
                assert (await api.request(method, path, json={}, headers=headers)).status_code == 403
            seen = (await api.get(CHANNELS, headers=headers)).json()["channels"]
            assert [(one["name"], one["tenants"]) for one in seen] == [("all", []), ("shared", ["a"])]
            assert (await api.get(f"{CHANNELS}/theirs", headers=headers)).status_code == 404
        assert len((await api.get(CHANNELS)).json()["channels"]) == 3


async def test_unknown_channels_are_404(api: httpx.AsyncClient) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test")):
        response = await api.request(method, f"{CHANNELS}/none{path}", json={} if method == "PATCH" else None)
        assert response.status_code == 404


async def test_a_test_says_what_the_receiver_said(
    api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database
) -> None:
    made = await make(api)
    tested = (await api.post(f"{CHANNELS}/hook/test")).json()
    assert (tested["channel"], tested["ok"], tested["detail"]) == ("hook", False, "error=500")
    request = ChannelTestInput(channel_id=made["id"], requested_by="admin-token")
    assert workflows.named("test_channel") == [(made["id"], request)]
    audit = (await audits(database))[0]
    assert (audit.action, audit.detail["ok"]) == ("notification_channel.test", False)
    workflows.away = True
    assert (await api.post(f"{CHANNELS}/hook/test")).status_code == 503


async def test_an_address_is_in_no_answer_no_audit_row_and_no_log(
    api: httpx.AsyncClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        await api.post(CHANNELS, json={"name": "hook", "url": URL}),
        await api.post(CHANNELS, json={"name": "hook", "url": URL}),
        await api.patch(f"{CHANNELS}/hook", json={"url": URL + "x"}),
        await api.get(CHANNELS),
        await api.get(f"{CHANNELS}/hook"),
        await api.get("/admin/audit"),
        await api.post(f"{CHANNELS}/hook/test"),
        await api.delete(f"{CHANNELS}/hook"),
    ]
    assert [answer.status_code for answer in answers] == [201, 409, 200, 200, 200, 200, 200, 200]
    async with database.transaction() as session:
        rows = (await session.execute(text("SELECT a::text FROM audit a"))).scalars().all()
    assert len(rows) == 4
    shown = "\n".join([*(answer.text for answer in answers), *rows, caplog.text])
    assert "json://****@127.0.0.1:8000/****" in shown
    assert not [secret for secret in (SECRET, "pa55word") if secret in shown]


# --- history ---------------------------------------------------------------------------------------------------------


async def test_the_history_is_paged_and_says_what_became_of_each(api: httpx.AsyncClient, database: Database) -> None:
    await make(api)
    for number in range(5):
        await told(database, f"launch-{number}", to="hook" if number % 2 else None)
    first = (await api.get("/admin/notifications", params={"limit": 3})).json()
    assert [one["subject"] for one in first["notifications"]] == ["launch-4", "launch-3", "launch-2"]
    (delivery,) = first["notifications"][1]["deliveries"]
    assert (delivery["channel"], delivery["state"], delivery["attempts"]) == ("hook", "pending", 0)
    assert first["notifications"][0]["deliveries"] == []
    rest = (await api.get("/admin/notifications", params={"limit": 3, "cursor": first["next"]})).json()
    assert [one["subject"] for one in rest["notifications"]] == ["launch-1", "launch-0"]
    assert rest["next"] is None
    one = (await api.get("/admin/notifications", params={"subject": "launch-1"})).json()["notifications"]
    assert [(item["kind"], item["severity"]) for item in one] == [("launch_failed", "warning")]
    none = await api.get("/admin/notifications", params={"kind": "node_lost"})
    assert none.json()["notifications"] == []
    await api.delete(f"{CHANNELS}/hook")
    after = (await api.get("/admin/notifications", params={"subject": "launch-1"})).json()["notifications"]
    (delivery,) = after[0]["deliveries"]
    assert (delivery["channel"], delivery["channel_id"], delivery["state"]) == ("hook", None, "suppressed")


async def test_a_tenant_sees_its_own_history(app: FastAPI, database: Database) -> None:
    for subject, tenant in (("mine", "a"), ("theirs", "b"), ("fleet", None)):
        await told(database, subject, tenant)
    async with client_of(app, await make_key(database, "viewer", Role.VIEWER, "a")) as api:
        seen = (await api.get("/admin/notifications")).json()["notifications"]
    assert [one["subject"] for one in seen] == ["mine"]


# --- events ----------------------------------------------------------------------------------------------------------


async def test_a_preemption_notice_is_told_once(
    api: httpx.AsyncClient, attempt: AttemptRow, database: Database
) -> None:
    body = registration()
    registered = await api.post("/admin/nodes/register", params={"node_id": attempt.node_id}, json=body)
    headers = {"Authorization": f"Bearer {registered.json()['heartbeat_key']}"}
    warning = {"source": "aws-imds", "deadline": utcnow().isoformat()}
    for _ in range(2):
        path = f"/admin/nodes/{attempt.node_id}/termination-warning"
        assert (await api.post(path, json=warning, headers=headers)).status_code == 200
    (one,) = (await api.get("/admin/notifications")).json()["notifications"]
    assert (one["kind"], one["subject"], one["tenant"]) == ("node_preempted", attempt.node_id, "default")
    assert "aws-imds" in one["body"]
    async with database.transaction() as session:
        node = await NodeRepository(session).get(attempt.node_id)
    assert node is not None
    assert node.model_name in one["body"]
