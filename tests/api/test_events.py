"""Launch events over server-sent events and WebSocket, against a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.services import Services
from skyfleet.db.repositories import LaunchRepository
from skyfleet.db.session import Database
from skyfleet.domain.states import LaunchStage, Role
from tests.api.conftest import ADMIN, ADMIN_TOKEN, BODY, end, make_key, open_attempt
from tests.waiting import eventually


@pytest.fixture
async def http(served: str) -> Any:
    """A client of the real server."""
    async with httpx.AsyncClient(base_url=f"http://{served}", headers=ADMIN, timeout=10) as client:
        yield client


@pytest.fixture
async def job_id(http: httpx.AsyncClient) -> str:
    """A launch of the real server."""
    answer = await http.post("/admin/instances/launch", json=BODY)
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["job_id"]
    return found


async def _note(database: Database, job_id: str, message: str) -> None:
    async with database.transaction() as session:
        launch = await LaunchRepository(session).get(job_id, lock=True)
        assert launch is not None
        await LaunchRepository(session).record(launch.id, kind="progress", message=message)


class _Listener:
    """Reads a stream in the background; `events` are (id, event, data)."""

    def __init__(self, http: httpx.AsyncClient, job_id: str, **request: Any) -> None:
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self._http, self._path, self._request = http, f"/admin/instances/launch/{job_id}/events", request
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        fields: dict[str, str] = {}
        async with self._http.stream("GET", self._path, **self._request) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    self.events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
                    fields = {}

    @property
    def messages(self) -> list[str]:
        return [data["message"] for _, _, data in self.events]


async def test_events_are_replayed_pushed_and_closed(
    http: httpx.AsyncClient, database: Database, services: Services, job_id: str
) -> None:
    listener = _Listener(http, job_id)
    await eventually(lambda: len(listener.events) == 1, what="the replay")
    await eventually(services.events.connected.is_set)
    await open_attempt(database, job_id)
    # Far sooner than anybody would poll: it was pushed.
    await eventually(lambda: len(listener.events) == 2, timeout_s=5, what="the pushed event")
    await end(database, job_id, LaunchStage.READY)
    await asyncio.wait_for(listener.task, 10)
    assert [(seq, kind) for seq, kind, _ in listener.events] == [(1, "stage"), (2, "attempt"), (3, "end")]
    assert listener.events[-1][2]["stage"] == "READY"
    late = _Listener(http, job_id)
    await asyncio.wait_for(late.task, 10)
    assert late.events == listener.events
    assert services.events._waiters == {}


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_listener_goes_on_where_it_was(
    http: httpx.AsyncClient, database: Database, job_id: str, how: str
) -> None:
    await open_attempt(database, job_id)
    await end(database, job_id, LaunchStage.FAILED)
    request: dict[str, Any] = (
        {"headers": {"Last-Event-ID": "2"}} if how == "header" else {"params": {"last_event_id": "2"}}
    )
    listener = _Listener(http, job_id, **request)
    await asyncio.wait_for(listener.task, 10)
    assert [seq for seq, _, _ in listener.events] == [3]


@pytest.mark.parametrize("position", ["x", "-1", "1.5", "9" * 20])
async def test_odd_positions_are_400(http: httpx.AsyncClient, job_id: str, position: str) -> None:
    path = f"/admin/instances/launch/{job_id}/events"
    assert (await http.get(path, headers={"Last-Event-ID": position})).status_code == 400


async def test_no_event_is_lost_when_the_listening_connection_dies(
    http: httpx.AsyncClient, database: Database, services: Services, job_id: str
) -> None:
    listener = _Listener(http, job_id)
    await eventually(lambda: len(listener.events) == 1)
    await eventually(services.events.connected.is_set)
    for n in range(3):
        async with database.transaction() as session:
            killed = await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skyfleet-events' "
                    "AND datname = current_database()"
                )
            )
            assert len(killed.all()) == 1  # one connection for the process
        await _note(database, job_id, f"while nobody listened {n}")
        await eventually(lambda n=n: len(listener.events) == 2 * n + 2, timeout_s=10, what="the event that was missed")  # type: ignore[misc]
        await eventually(services.events.connected.is_set, timeout_s=10, what="listening again")
        await _note(database, job_id, f"after it listened again {n}")
        await eventually(lambda n=n: len(listener.events) == 2 * n + 3, timeout_s=5, what="the event after that")  # type: ignore[misc]
    await end(database, job_id, LaunchStage.CANCELLED)
    await asyncio.wait_for(listener.task, 10)
    assert [seq for seq, _, _ in listener.events] == list(range(1, 9))


async def test_many_listeners_of_many_launches(http: httpx.AsyncClient, database: Database) -> None:
    jobs = [(await http.post("/admin/instances/launch", json=BODY)).json()["job_id"] for _ in range(5)]
    listeners = [_Listener(http, job) for job in jobs for _ in range(3)]
    await eventually(lambda: all(listener.events for listener in listeners))
    for job in jobs:
        await _note(database, job, job)
        await end(database, job, LaunchStage.FAILED)
    await asyncio.wait_for(asyncio.gather(*(listener.task for listener in listeners)), 15)
    for index, listener in enumerate(listeners):
        assert listener.messages[1:] == [jobs[index // 3], "the end"]


async def test_a_listener_that_leaves_is_forgotten(http: httpx.AsyncClient, services: Services, job_id: str) -> None:
    listener = _Listener(http, job_id)
    await eventually(lambda: services.events._waiters)
    listener.task.cancel()
    await eventually(lambda: not services.events._waiters, what="the listener to be forgotten")


# --- WebSocket --------------------------------------------------------------------------------------------------


def _url(served: str, job_id: str, query: str = "") -> str:
    return f"ws://{served}/admin/instances/launch/{job_id}/ws{query}"


async def _all(connection: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    messages = []
    try:
        while True:
            messages.append(json.loads(await asyncio.wait_for(connection.recv(), 10)))
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd else None


async def test_a_websocket_sends_the_same(
    http: httpx.AsyncClient, served: str, database: Database, job_id: str
) -> None:
    async with connect(_url(served, job_id), additional_headers=ADMIN) as connection:
        assert json.loads(await connection.recv())["seq"] == 1
        await open_attempt(database, job_id)
        assert json.loads(await asyncio.wait_for(connection.recv(), 5))["seq"] == 2
        await end(database, job_id, LaunchStage.READY)
        rest, code = await _all(connection)
    assert ([item["seq"] for item in rest], code) == ([3], 1000)
    listener = _Listener(http, job_id)
    await asyncio.wait_for(listener.task, 10)
    async with connect(_url(served, job_id, f"?token={ADMIN_TOKEN}")) as connection:
        everything, code = await _all(connection)
    assert everything == [data for _, _, data in listener.events]
    assert code == 1000


async def test_a_websocket_goes_on_where_it_was(served: str, database: Database, job_id: str) -> None:
    await end(database, job_id, LaunchStage.FAILED)
    async with connect(_url(served, job_id, f"?token={ADMIN_TOKEN}&last_event_id=1")) as connection:
        messages, code = await _all(connection)
    assert ([item["seq"] for item in messages], code) == ([2], 1000)


async def test_refused_websockets(served: str, database: Database, job_id: str) -> None:
    other = await make_key(database, "other", Role.VIEWER, "another-tenant")
    refused = [
        ({}, job_id, "", 4401),
        ({}, job_id, "?token=wrong", 4401),
        (ADMIN, "launch-0", "", 4404),
        (other, job_id, "", 4404),
        (ADMIN, job_id, "?last_event_id=x", 4400),
    ]
    for headers, subject, query, expected in refused:
        async with connect(_url(served, subject, query), additional_headers=headers) as connection:
            messages, code = await _all(connection)
        assert (messages, code) == ([], expected)


async def test_a_websocket_that_leaves_is_forgotten(served: str, services: Services, job_id: str) -> None:
    async with connect(_url(served, job_id), additional_headers=ADMIN) as connection:
        await connection.recv()
        await eventually(lambda: services.events._waiters)
    await eventually(lambda: not services.events._waiters, what="the listener to be forgotten")
