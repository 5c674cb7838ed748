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
    """Samples of a family by their labels' values."""
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
        return wanted <= {(span.service, span.name) for span in observed.collector.trace_with("RunActivity:complete_launch")}

    await eventually(whole, timeout_s=15, what=f"the trace; there are {observed.collector.spans}")
    spans = observed.collector.trace_with("RunActivity:complete_launch")
    roots = [span.name for span in spans if not span.parent]
    assert roots == ["POST /admin/instances/launch"]
    ids = {span.id for span in spans}
    assert all(span.parent in ids for span in spans if span.parent), "a span hangs on one that was never sent"
    assert not [span for span in observed.collector.spans if "heartbeat" in span.name or "/health" in span.name]
