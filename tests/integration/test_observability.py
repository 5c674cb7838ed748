"""A running stack tells of itself: metrics, logs with ids, and one trace from a request to the agent's answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from skyfleet.domain.states import LaunchStatus
from tests.deploy.queries import expressions, names_asked, names_told
from tests.integration.otlp import Collector, collecting
from tests.ports import free_port
from tests.stack import RunningStack, running_stack
from tests.waiting import eventually


@dataclass
class Observed:
    """A stack on which one launch got READY and another failed, and where it tells of itself."""

    stack: RunningStack
    collector: Collector
    temporal_metrics: str
    ready: str
    failed: str

    async def scrape(self, url: str, **headers: str) -> httpx.Response:
        """What a scraper is answered."""
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(url, headers=headers)).raise_for_status()

    async def families(self, url: str) -> dict[str, Metric]:
        """Metric families by name, read from the text format."""
        return {family.name: family for family in parse_text((await self.scrape(url)).text)}

    @property
    def api(self) -> str:
        """The API's metrics."""
        return f"{self.stack.endpoints.api}/metrics"

    @property
    def worker(self) -> str:
        """The worker's metrics."""
        return f"http://127.0.0.1:{self.stack.port('worker_health')}/metrics"

    def log(self, name: str) -> list[dict[str, Any]]:
        """Lines of a child's log."""
        text = (self.stack.data / "logs" / f"{name}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
async def observed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    """A stack of its own, since what it tells is counted here."""
    with collecting() as collector:
        port = free_port()
        settings = {
            "SKYFLEET_LOG_FORMAT": "json",
            "SKYFLEET_TEMPORAL_METRICS_PORT": str(port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NO_PROXY": "127.0.0.1",
        }
        async with running_stack(tmp_path_factory.mktemp("observed"), settings=settings) as stack:
            kind = stack.kind()
            ready = await stack.launch(kind.aws)
            await stack.ready(ready)
            match = {"operation": "create", "instance_type": kind.azure}
            await stack.bench.add_fault({"real": "AllocationFailed"}, match=match, times=None)
            failed = await stack.launch(kind.azure, provider="azure", region="eastus")
            assert (await stack.ended(failed)).status is LaunchStatus.FAILED
            yield Observed(stack, collector, f"http://127.0.0.1:{port}/metrics", ready, failed)
            await stack.terminate(ready)


def values(family: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """Samples of a family by the values of their labels, which come in the order of the labels' names."""
    return {
        tuple(sample.labels.values()): sample.value for sample in family.samples if sample.name == family.name + suffix
    }


async def test_a_launch_is_one_trace_from_the_request_to_its_agent(observed: Observed) -> None:
    wanted = {
        ("skyfleet-api", "POST /admin/instances/launch"),
        ("skyfleet-api", "StartWorkflow:LaunchWorkflow"),
        ("skyfleet-worker", "RunWorkflow:LaunchWorkflow"),
        ("skyfleet-worker", "RunActivity:provision_machine"),
        ("skyfleet-worker", "RunActivity:complete_launch"),
        ("skyfleet-api", "POST /admin/nodes/register"),
        ("skyfleet-api", "SignalWorkflow:node_registered"),
    }

    def whole() -> bool:
        spans = observed.collector.trace_with("RunActivity:complete_launch")
        return wanted <= {(span.service, span.name) for span in spans}

    await eventually(whole, timeout_s=15, what="the whole trace")
    spans = observed.collector.trace_with("RunActivity:complete_launch")
    roots = [span.name for span in spans if not span.parent]
    assert roots == ["POST /admin/instances/launch"]
    ids = {span.id for span in spans}
    assert all(span.parent in ids for span in spans if span.parent), "a span hangs on one that was never sent"
    assert not [span for span in observed.collector.spans if "heartbeat" in span.name or "/health" in span.name]


async def test_the_worker_tells_of_launches_attempts_and_activities(observed: Observed) -> None:
    families = await observed.families(observed.worker)
    launches = values(families["skyfleet_launch_duration_seconds"], "_count")
    assert launches == {("completed",): 1, ("failed",): 1, ("cancelled",): 0, ("timeout",): 0}
    attempts = values(families["skyfleet_attempts"], "_total")
    assert attempts == {("aws", "succeeded"): 1, ("azure", "capacity"): 1}
    stages = values(families["skyfleet_launch_stage_duration_seconds"], "_count")
    assert stages[("PROVISIONING",)] == 1, "only one of the two got so far"
    assert stages[("VALIDATING",)] == 2
    assert not {("READY",), ("FAILED",)} & set(stages), "which do not pass"
    told = await observed.stack.story(observed.ready)
    took = values(families["skyfleet_launch_duration_seconds"], "_sum")[("completed",)]
    assert took == pytest.approx((told[-1].at - told[0].at).total_seconds(), abs=0.01)
    activities = values(families["skyfleet_activity_duration_seconds"], "_count")
    assert activities[("complete_launch", "completed")] == 1
    assert activities[("provision_machine", "failed")] == 1


async def test_the_api_tells_of_the_fleet_and_of_its_requests(observed: Observed) -> None:
    async def settled() -> dict[str, Metric] | None:  # what it knows of the fleet may be some seconds old
        families = await observed.families(observed.api)
        return families if values(families["skyfleet_nodes"]) == {("aws", "ready"): 1} else None

    families = await eventually(settled, timeout_s=15, interval_s=0.5, what="the node in the metrics")
    node = await observed.stack.client.node((await observed.stack.client.status(observed.ready)).node_id or "")
    assert values(families["skyfleet_cost_rate_dollars_per_hour"]) == {(node.market, "aws"): float(node.cost_per_hour)}
    assert values(families["skyfleet_database_up"]) == {(): 1}
    assert set(values(families["skyfleet_open_launches"]).values()) == {0}
    assert values(families["skyfleet_late_nodes"]) == {("aws",): 0}
    assert values(families["skyfleet_catalog_age_seconds"])[("local",)] < 60
    requests = values(families["skyfleet_http_request_duration_seconds"], "_count")
    assert requests[("POST", "/admin/instances/launch", "2xx")] == 2
    assert requests[("POST", "/admin/nodes/{node_id}/heartbeat", "2xx")] >= 1
    assert not [route for _, route, _ in requests if observed.ready in route or node.node_id in route]


async def test_what_is_told_is_openmetrics_where_that_is_asked_for(observed: Observed) -> None:
    for url in (observed.api, observed.worker):
        answer = await observed.scrape(url, Accept="application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert "skyfleet_build" in {family.name for family in parse_openmetrics(answer.text)}


async def test_dashboards_and_alerts_ask_for_metrics_that_there_are(observed: Observed) -> None:
    """A metric that is renamed, in the code or by an upgrade of Temporal's SDK, fails here."""
    told: set[str] = set()
    for url in (observed.api, observed.worker, observed.temporal_metrics):
        text = (await observed.scrape(url)).text
        told |= names_told(text)
    # The scrape itself, as Prometheus writes it down.
    told.add("up")
    asked = {query: names_asked(query) for query in expressions()}
    assert len(asked) > 30
    assert {name: query for query, names in asked.items() for name in names - told} == {}


async def test_every_line_of_a_log_has_the_ids_of_what_it_is_about(observed: Observed) -> None:
    # A machine that will not be created is a step that failed, of which the SDK itself warns.
    lines = [line for line in observed.log("worker") if line.get("launch_id") == observed.failed]
    assert lines
    assert {line["workflow_id"] for line in lines} == {f"launch/{observed.failed}"}
    assert "provision_machine" in {line["activity"] for line in lines}
    for line in lines:
        assert {"timestamp", "level", "logger", "message", "run_id", "attempt", "trace_id"} <= set(line)
    async with httpx.AsyncClient(base_url=observed.stack.endpoints.api, trust_env=False) as http:
        answer = await http.get("/admin/nodes", headers={"X-Request-Id": "mine"})
        assert answer.headers["x-request-id"] == "mine"


async def test_no_secret_is_in_a_log(observed: Observed) -> None:
    secrets = [observed.stack.endpoints.admin_token, observed.stack.database_url.partition("@")[0].rpartition(":")[2]]
    (machine,) = await observed.stack.ledger(observed.ready)
    boot = json.loads((observed.stack.machine_folder(machine) / "boot.json").read_text())
    secrets.append(boot["registration_token"])
    assert all(len(secret) > 10 for secret in secrets)
    for log in (observed.stack.data / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], log.name
