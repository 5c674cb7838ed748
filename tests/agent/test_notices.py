"""The cloud's notices: what a metadata service says, or does instead, and what the control plane hears of it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from skyfleet.agent.metadata import SERVICES, Look, NoMetadata, Notice
from tests.agent.harness import HEARTBEAT_KEY, MODEL, AgentProcess, FakeControlPlane, FakeMetadata, bare_python
from tests.waiting import eventually

Machine = Callable[..., AgentProcess]

AWS = "/latest/meta-data/"
GCP = "/computeMetadata/v1/instance/"
AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_COMPUTE = "/metadata/instance/compute?api-version=2021-02-01"

#: What each service says while nothing is announced.
QUIET = {
    "aws": {"/latest/api/token": "token-1"},
    "gcp": {GCP + "preempted": "FALSE", GCP + "maintenance-event": "NONE", GCP + "id": "1"},
    "azure": {
        AZURE_COMPUTE: json.dumps({"name": "vm-1"}),
        AZURE_EVENTS: json.dumps({"DocumentIncarnation": 1, "Events": []}),
    },
}


def azure_events(*events: dict[str, Any]) -> str:
    """Azure's document; each event is about this machine unless it says otherwise."""
    usual = {"EventId": "E1", "EventType": "Preempt", "Resources": ["VM-1"], "EventStatus": "Scheduled"}
    return json.dumps({"DocumentIncarnation": 2, "Events": [{**usual, **event} for event in events]})


#: What each says of a preemption, and the warning that comes of it.
PREEMPTED = {
    "aws": (
        AWS + "spot/instance-action",
        json.dumps({"action": "terminate", "time": "2030-01-01T00:02:00Z"}),
        ("aws-spot-instance-action", "2030-01-01T00:02:00+00:00"),
    ),
    "gcp": (GCP + "preempted", "TRUE", ("gcp-preempted", None)),
    "azure": (
        AZURE_EVENTS,
        azure_events({"NotBefore": "Tue, 01 Jan 2030 00:00:30 GMT"}),
        ("azure-preempt", "2030-01-01T00:00:30+00:00"),
    ),
}


async def look(metadata: FakeMetadata, provider: str, what: str, spot: bool = True) -> list[Notice]:
    """One look of that name."""
    found: Look = next(one for one in SERVICES[provider](metadata.url).looks(spot) if one.what == what)
    return await found.read()


class TestLooks:
    """What is read from each service."""

    async def test_aws(self, metadata: FakeMetadata) -> None:
        metadata.values |= QUIET["aws"]
        service = SERVICES["aws"](metadata.url)
        action, rebalance, scheduled = service.looks(True)
        assert [await one.read() for one in (action, rebalance, scheduled)] == [[], [], []]
        # One token serves for all, and is renewed when it is refused.
        assert metadata.asked["/latest/api/token"] == 1
        assert metadata.headers["x-aws-ec2-metadata-token"] == "token-1"
        metadata.broken = 401
        with pytest.raises(NoMetadata, match="401"):
            await action.read()
        metadata.broken = None
        metadata.values["/latest/api/token"] = "token-2"
        metadata.values[AWS + "spot/instance-action"] = '{"action": "stop", "time": "soon"}'
        (notice,) = await action.read()
        assert metadata.headers["x-aws-ec2-metadata-token"] == "token-2"
        assert (notice.kind, notice.deadline) == ("preemption", None)
        metadata.values[AWS + "events/recommendations/rebalance"] = '{"noticeTime": "2030-01-01T00:00:00Z"}'
        assert [one.kind for one in await rebalance.read()] == ["rebalance"]
        event = {"Code": "system-reboot", "Description": "scheduled reboot", "EventId": "e-1", "State": "active"}
        event |= {"NotBefore": "21 Jan 2030 09:00:43 GMT"}
        metadata.values[AWS + "events/maintenance/scheduled"] = json.dumps([event, {**event, "State": "completed"}])
        (notice,) = await scheduled.read()
        assert (notice.kind, notice.deadline) == ("maintenance", "2030-01-21T09:00:43+00:00")
        assert notice.detail == "system-reboot: scheduled reboot"
        assert [one.what for one in service.looks(False)] == ["events/maintenance/scheduled"]

    async def test_gcp(self, metadata: FakeMetadata) -> None:
        metadata.values |= QUIET["gcp"]
        assert await look(metadata, "gcp", "preempted") == await look(metadata, "gcp", "maintenance-event") == []
        assert metadata.headers["metadata-flavor"] == "Google"
        metadata.values[GCP + "maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
        (notice,) = await look(metadata, "gcp", "maintenance-event", spot=False)
        assert (notice.kind, notice.detail) == ("maintenance", "MIGRATE_ON_HOST_MAINTENANCE")
        assert [one.what for one in SERVICES["gcp"](metadata.url).looks(False)] == ["maintenance-event"]

    @pytest.mark.parametrize(
        ("event", "kinds"),
        [
            ({}, ["preemption"]),
            ({"EventType": "Terminate"}, ["preemption"]),
            ({"EventType": "Reboot"}, ["maintenance"]),
            ({"EventType": "Redeploy"}, ["maintenance"]),
            ({"EventType": "Freeze"}, ["maintenance"]),
            ({"EventType": "SomethingNew"}, []),
            ({"Resources": ["another-vm"]}, []),
            ({"Resources": "vm-1"}, []),
            ({"Resources": None, "EventType": None}, []),
        ],
    )
    async def test_azure(self, metadata: FakeMetadata, event: dict[str, Any], kinds: list[str]) -> None:
        metadata.values |= QUIET["azure"] | {AZURE_EVENTS: azure_events(event)}
        assert [notice.kind for notice in await look(metadata, "azure", "scheduledevents")] == kinds
        assert metadata.headers["metadata"] == "true"

    @pytest.mark.parametrize(
        ("provider", "what", "path"),
        [
            ("aws", "spot/instance-action", AWS + "spot/instance-action"),
            ("aws", "events/recommendations/rebalance", AWS + "events/recommendations/rebalance"),
            ("aws", "events/maintenance/scheduled", AWS + "events/maintenance/scheduled"),
            ("aws", "spot/instance-action", "/latest/api/token"),
            ("gcp", "preempted", GCP + "preempted"),
            ("gcp", "maintenance-event", GCP + "maintenance-event"),
            ("azure", "scheduledevents", AZURE_EVENTS),
            ("azure", "scheduledevents", AZURE_COMPUTE),
        ],
    )
    @pytest.mark.parametrize(
        "said",
        ["", "<html>Sign in</html>", '"text"', "7", '{"action": []}', "[" * 100_000, "null", "\x00\xff"],
        ids=["empty", "html", "text", "number", "object", "deep", "null", "noise"],
    )
    async def test_garbage_is_no_notice(
        self, metadata: FakeMetadata, provider: str, what: str, path: str, said: str
    ) -> None:
        metadata.values |= QUIET[provider] | {path: said}
        if path == "/latest/api/token" and re.fullmatch("[!-~]+", said) and len(said) < 1024:
            assert await look(metadata, provider, what) == []  # that may well be a token
            return
        with pytest.raises(NoMetadata):
            await look(metadata, provider, what)


def told(control_plane: FakeControlPlane, kind: str = "preemption") -> list[dict[str, Any]]:
    """The warnings of that kind."""
    return [call.body for call in control_plane.warnings if call.body["kind"] == kind]


async def serving(control_plane: FakeControlPlane) -> None:
    """Until the node heartbeats with an engine that serves."""
    await eventually(
        lambda: control_plane.heartbeats and control_plane.heartbeats[-1].body["engine"]["healthy"], what="a good beat"
    )


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
async def test_a_preemption_is_told_within_two_seconds_and_drains_the_node(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine, provider: str
) -> None:
    metadata.values |= QUIET[provider]
    # Azure's on the oldest Python that the agent has to run on, where there is one.
    agent = machine(provider=provider, metadata_url=metadata.url, python=bare_python() if provider == "azure" else None)
    agent.start()
    await serving(control_plane)
    assert control_plane.warnings == []
    path, said, (source, deadline) = PREEMPTED[provider]
    noticed = time.monotonic()
    metadata.values[path] = said
    await eventually(lambda: control_plane.warnings, interval_s=0.01, what="a warning")
    assert control_plane.warnings[0].at - noticed < 2
    assert control_plane.warnings[0].headers["authorization"] == f"Bearer {HEARTBEAT_KEY}"
    (warning,) = told(control_plane)
    assert (warning["kind"], warning["source"]) == ("preemption", source)
    assert deadline is None or warning["deadline"] == deadline
    # It drains by itself, and no `continue` of a control plane that does not know yet calls that off.
    await eventually(lambda: "event=drain.idle" in agent.log, what="the drain")
    await eventually(lambda: control_plane.heartbeats[-1].body["engine"]["state"] == "stopped", what="engine stopped")
    await eventually(lambda: agent.engine_processes() == [], what="the engine's end")
    assert "drain.called_off" not in agent.log
    asked = metadata.asked[path]
    await eventually(lambda: metadata.asked[path] >= asked + 2, what="two more looks")
    assert len(told(control_plane)) == 1
    assert not agent.ended
    control_plane.directive = "shutdown"
    await eventually(lambda: agent.ended, what="the agent's end")
    assert agent.off.exists()


async def test_a_notice_while_the_control_plane_is_away_drains_at_once_and_is_told_later(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    metadata.values |= QUIET["gcp"]
    agent = machine(provider="gcp", metadata_url=metadata.url, engine={"name": "echo", "args": []})
    agent.start()
    await serving(control_plane)
    await control_plane.stop()
    metadata.values[GCP + "preempted"] = "TRUE"
    await eventually(lambda: "event=drain.idle" in agent.log, what="the drain")
    await eventually(lambda: agent.engine_processes() == [], what="the engine's end")
    assert control_plane.warnings == []
    replies: list[int | str | None] = [503, "lost"]
    control_plane.on_warning = lambda call: replies.pop(0) if replies else None
    await control_plane.start()
    await eventually(lambda: "event=notice.heard" in agent.log, what="the warning heard")
    assert len(told(control_plane)) == 3
    assert len({json.dumps(body) for body in told(control_plane)}) == 1


async def test_running_requests_finish_after_a_notice(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    metadata.values |= QUIET["aws"]
    agent = machine(metadata_url=metadata.url, engine={"name": "echo", "args": ["--tokens-per-second", "10"]})
    agent.start()
    await serving(control_plane)
    words = " ".join(["word"] * 25)
    request = asyncio.ensure_future(agent.ask("POST", "/v1/completions", {"model": MODEL, "prompt": words}))
    await eventually(lambda: control_plane.heartbeats[-1].body["engine"]["running"] == 1, what="a running request")
    path, said, _ = PREEMPTED["aws"]
    metadata.values[path] = said
    await eventually(lambda: control_plane.heartbeats[-1].body["engine"]["state"] == "draining", what="draining")
    assert not request.done()
    status, answer = await request
    assert (status, json.loads(answer)["choices"][0]["text"]) == (200, words)
    await eventually(lambda: agent.engine_processes() == [], what="the engine's end")


async def test_advice_is_told_and_changes_nothing(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    """A recommendation and maintenance are passed on; whether they matter is decided elsewhere."""
    metadata.values |= QUIET["aws"]
    metadata.values[AWS + "events/recommendations/rebalance"] = '{"noticeTime": "2030-01-01T00:00:00Z"}'
    event = {"Code": "instance-retirement", "EventId": "e-1", "State": "active"}
    metadata.values[AWS + "events/maintenance/scheduled"] = json.dumps([event])
    # A control plane that cannot read one is not asked again and again.
    control_plane.on_warning = lambda call: 422 if call.body["kind"] == "maintenance" else None
    agent = machine(metadata_url=metadata.url)
    agent.start()
    await eventually(lambda: len(control_plane.warnings) == 2, what="both")
    seen = metadata.asked[AWS + "spot/instance-action"]
    await eventually(lambda: metadata.asked[AWS + "spot/instance-action"] >= seen + 3, what="three more looks")
    assert len(control_plane.warnings) == 2
    assert control_plane.heartbeats[-1].body["engine"]["state"] == "serving"
    # Another recommendation is another notice.
    metadata.values[AWS + "events/recommendations/rebalance"] = '{"noticeTime": "2030-01-01T01:00:00Z"}'
    await eventually(lambda: len(told(control_plane, "rebalance")) == 2, what="the second recommendation")
    assert "drain.started" not in agent.log


async def test_an_on_demand_machine_is_watched_for_maintenance_alone(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    metadata.values |= QUIET["gcp"] | {
        GCP + "preempted": "TRUE",
        GCP + "maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE",
    }
    agent = machine(provider="gcp", metadata_url=metadata.url, spot_instance=False)
    agent.start()
    await eventually(lambda: control_plane.warnings, what="the maintenance")
    assert [call.body["kind"] for call in control_plane.warnings] == ["maintenance"]
    assert metadata.asked[GCP + "preempted"] == 0
    assert control_plane.heartbeats[-1].body["engine"]["state"] == "serving"


@pytest.mark.parametrize(
    ("provider", "how"),
    [
        ("aws", "held"),
        ("gcp", "held"),
        ("azure", "held"),
        ("aws", b"HTTP/1.1 200 OK\r\n\r\n<html>"),
        ("gcp", b"\x00\xff" * 4096),
        ("azure", b""),
        ("gcp", 404),
    ],
    ids=["aws-held", "gcp-held", "azure-held", "aws-html", "gcp-noise", "azure-nothing", "gcp-404"],
)
async def test_a_service_that_misbehaves_disturbs_nobody_and_is_heard_once_it_is_well(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine, provider: str, how: int | bytes | str
) -> None:
    metadata.values |= QUIET[provider]
    agent = machine(provider=provider, metadata_url=metadata.url)
    agent.start()
    await serving(control_plane)
    await eventually(lambda: sum(metadata.asked.values()) > 4, what="looks at the service")
    if how == "held":
        metadata.held.clear()
    else:
        assert not isinstance(how, str)
        metadata.broken = how
    path, said, _ = PREEMPTED[provider]
    metadata.values[path] = said
    await eventually(lambda: "event=notices.no_answer" in agent.log, what="the failure noted")
    beats = len(control_plane.heartbeats)
    broken_at = time.monotonic()
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 10, what="ten more heartbeats")
    assert time.monotonic() - broken_at < 15  # every 0.2 s, and not after 3 s of patience each
    assert all(call.body["engine"]["healthy"] for call in control_plane.heartbeats[beats:])
    assert control_plane.warnings == []
    metadata.broken = None
    metadata.held.set()
    await eventually(lambda: told(control_plane), what="the warning")
    agent.signal(signal.SIGTERM)
    await eventually(lambda: agent.ended, timeout_s=15, what="the agent's end")
    assert agent.exit_status == 0


async def test_a_service_that_is_not_there_is_hardly_asked(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    """A provider without one is probed for all three; what answers is taken."""
    agent = machine(provider="slurm", metadata_url=metadata.url)
    agent.start()
    await serving(control_plane)
    paths = ("/latest/api/token", GCP + "id", AZURE_COMPUTE)
    await eventually(lambda: all(metadata.asked[path] == 1 for path in paths), what="one probe of each")
    beats = len(control_plane.heartbeats)
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 10, what="ten more heartbeats")
    assert all(metadata.asked[path] == 1 for path in paths)
    metadata.values |= QUIET["gcp"] | {GCP + "preempted": "TRUE"}
    await eventually(lambda: told(control_plane), what="the warning")
    assert told(control_plane)[0]["source"] == "gcp-preempted"


async def test_a_sandbox_machine_without_a_service_asks_nobody(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """The usual address would be that of the machine that the sandbox runs on."""
    agent = machine(metadata_url=None)
    agent.start()
    await serving(control_plane)
    beats = len(control_plane.heartbeats)
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 10, what="ten more heartbeats")
    assert "event=notices" not in agent.log


async def test_a_control_plane_that_gave_the_node_up_says_so_to_a_warning_too(
    control_plane: FakeControlPlane, metadata: FakeMetadata, machine: Machine
) -> None:
    metadata.values |= QUIET["aws"]
    control_plane.on_warning = lambda call: 410
    agent = machine(metadata_url=metadata.url, heartbeat_interval_s=30)
    agent.start()
    await eventually(lambda: control_plane.heartbeats, what="a heartbeat")
    path, said, _ = PREEMPTED["aws"]
    metadata.values[path] = said
    await eventually(lambda: agent.ended, what="the agent's end")
    assert agent.off.exists()
    assert agent.exit_status == 0
