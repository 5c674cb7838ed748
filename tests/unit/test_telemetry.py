"""Time by stage, the fleet as metrics, and what stands on a line of a log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from skyfleet.domain.fleet import CatalogAge, CostRate, FleetFigures, HeartbeatAges, NodeCount, OpenLaunches
from skyfleet.domain.states import LaunchStage
from skyfleet.domain.timing import seconds_by_stage
from skyfleet.telemetry import logs, traces
from skyfleet.telemetry.logs import LogFormat
from skyfleet.telemetry.metrics import exposition, fleet_families

S = LaunchStage
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

FIGURES = FleetFigures(
    nodes=[NodeCount(provider="aws", status="ready", nodes=3), NodeCount(provider="gcp", status="draining", nodes=1)],
    open_launches=[OpenLaunches(stage="PLANNING", launches=2, oldest_seconds=12.5)],
    queued_attempts=4,
    cost_rates=[CostRate(provider="aws", market="spot", hourly_price=Decimal("1.206"))],
    heartbeats=[
        HeartbeatAges(provider="aws", seconds=[1.0, 29.9, 30.1]),
        HeartbeatAges(provider="gcp", seconds=[400.0]),
    ],
    teardowns=1,
    oldest_teardown_seconds=61.0,
    catalogs=[CatalogAge(backend="local", seconds=3.0)],
)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class TestTiming:
    def test_a_stage_lasts_until_the_next_and_counts_in_sum(self) -> None:
        timeline = [
            (S.QUEUED, at(0)),
            (S.PLANNING, at(1)),
            (S.REQUESTING, at(2)),
            (S.REQUESTING, at(2.5)),  # an event within a stage
            (S.TEARING_DOWN, at(4)),
            (S.PLANNING, at(7)),
            (S.REQUESTING, at(9)),
            (S.READY, at(20)),
            (S.READY, at(500)),  # its machine's end, long after
        ]
        assert seconds_by_stage(timeline) == {S.QUEUED: 1, S.PLANNING: 3, S.REQUESTING: 13, S.TEARING_DOWN: 3}

    def test_a_machine_whose_clock_is_behind_takes_no_time_away(self) -> None:
        timeline = [(S.PROVISIONING, at(10)), (S.INSTALLING, at(4)), (S.LOADING_MODEL, at(11)), (S.READY, at(12))]
        assert seconds_by_stage(timeline) == {S.PROVISIONING: 0, S.INSTALLING: 1, S.LOADING_MODEL: 1}

    def test_nothing_is_nothing(self) -> None:
        assert seconds_by_stage([]) == {}

    @given(st.lists(st.tuples(st.sampled_from(sorted(set(S) - {S.READY, S.FAILED, S.CANCELLED})), st.floats(0, 1e5))))
    def test_the_sum_is_the_time_that_passed(self, steps: list[tuple[LaunchStage, float]]) -> None:
        timeline = [(stage, at(seconds)) for stage, seconds in steps]
        spent = seconds_by_stage([*timeline, (S.FAILED, at(2e5))])
        passed = (at(2e5) - timeline[0][1]).total_seconds() if timeline else 0.0
        assert sum(spent.values()) == pytest.approx(passed)
        assert all(seconds >= 0 for seconds in spent.values())


class TestFleet:
    def samples(self, figures: FleetFigures | None) -> dict[tuple[str, ...], float]:
        body, _ = exposition("", CollectorRegistry(), fleet_families(figures, heartbeat_interval_s=10.0))
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in parse_text(body.decode())
            for sample in family.samples
            if sample.name.startswith("skyfleet_") and sample.name != "skyfleet_build_info"
        }

    def test_figures_are_told(self) -> None:
        told = self.samples(FIGURES)
        assert told["skyfleet_database_up",] == 1
        assert told["skyfleet_nodes", "aws", "ready"] == 3
        assert told["skyfleet_open_launches", "PLANNING"] == 2
        assert told["skyfleet_open_launches", "PROVISIONING"] == 0
        assert told["skyfleet_open_launch_stage_age_seconds", "PLANNING"] == 12.5
        assert told["skyfleet_queued_attempts",] == 4
        assert told["skyfleet_cost_rate_dollars_per_hour", "spot", "aws"] == 1.206
        assert told["skyfleet_teardowns",] == 1
        assert told["skyfleet_teardown_age_seconds",] == 61
        assert told["skyfleet_catalog_age_seconds", "local"] == 3

    def test_a_node_is_late_after_three_intervals(self) -> None:
        told = self.samples(FIGURES)
        assert told["skyfleet_late_nodes", "aws"] == 1, "30.1 s, not 29.9 s"
        assert told["skyfleet_late_nodes", "gcp"] == 1
        assert told["skyfleet_heartbeat_age_max_seconds",] == 400
        assert told["skyfleet_heartbeat_age_seconds_bucket", "30.0"] == 2
        assert told["skyfleet_heartbeat_age_seconds_bucket", "300.0"] == 3
        assert told["skyfleet_heartbeat_age_seconds_bucket", "+Inf"] == 4
        assert told["skyfleet_heartbeat_age_seconds_gcount",] == 4

    def test_without_a_database_nothing_is_said_of_the_fleet(self) -> None:
        assert self.samples(None) == {("skyfleet_database_up",): 0}

    def test_an_empty_fleet_is_told_as_empty(self) -> None:
        nothing = FleetFigures(
            nodes=[],
            open_launches=[],
            queued_attempts=0,
            cost_rates=[],
            heartbeats=[],
            teardowns=0,
            oldest_teardown_seconds=0,
            catalogs=[],
        )
        told = self.samples(nothing)
        assert told.pop(("skyfleet_database_up",)) == 1
        assert set(told.values()) == {0}

    def test_openmetrics_is_read_by_its_own_parser(self) -> None:
        accept = "application/openmetrics-text; version=1.0.0"
        body, media_type = exposition(accept, CollectorRegistry(), fleet_families(FIGURES, 10.0))
        assert media_type.startswith("application/openmetrics-text")
        kinds = {family.name: family.type for family in parse_openmetrics(body.decode())}
        assert kinds["skyfleet_heartbeat_age_seconds"] == "gaugehistogram"


class TestLogs:
    @pytest.fixture(autouse=True)
    def _root_as_it_was(self) -> Iterator[None]:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        root.handlers[:] = handlers
        root.setLevel(level)

    def written(self, style: LogFormat, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure(style)
        return stream

    def test_json_has_the_ids_and_what_went_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = self.written("json", monkeypatch)
        token = logs.bind(launch_id="launch-1", node_id=None, attempt=2)
        try:
            raise ValueError("a reason")
        except ValueError:
            logging.getLogger("a.library").exception("it failed with %s", "this")
        finally:
            logs.unbind(token)
        line = json.loads(stream.getvalue())
        assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
        assert "ValueError: a reason" in line.pop("exception")
        assert line == {
            "level": "ERROR",
            "logger": "a.library",
            "message": "it failed with this",
            "launch_id": "launch-1",
            "attempt": "2",
        }

    def test_text_has_the_ids_behind_the_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = self.written("text", monkeypatch)
        token = logs.bind(request_id="r-1")
        logging.getLogger("skyfleet").warning("look")
        logs.unbind(token)
        logging.getLogger("skyfleet").warning("look again")
        first, second = stream.getvalue().splitlines()
        assert first.endswith("WARNING skyfleet: look request_id=r-1")
        assert second.endswith("WARNING skyfleet: look again")

    def test_a_workflow_s_line_has_its_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the SDK's own logger gives them; no context of ours reaches into a workflow."""
        stream = self.written("json", monkeypatch)
        extra = {"temporal_workflow": {"workflow_id": "launch/launch-1", "run_id": "r", "attempt": 1}}
        logging.getLogger("temporalio.workflow").warning("odd", extra=extra)
        line = json.loads(stream.getvalue())
        assert (line["workflow_id"], line["run_id"]) == ("launch/launch-1", "r")
        assert "temporal_workflow" not in line

    def test_requests_of_httpx_are_not_logged_with_their_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = self.written("text", monkeypatch)
        logging.getLogger("httpx").info("HTTP Request: GET http://x/?token=secret")
        assert stream.getvalue() == ""


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert not traces.configure("test")
    assert traces.temporal_interceptors() == []
    assert traces.traceparent() is None
