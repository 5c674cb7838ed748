"""What a worker tells of its activities, and the Temporal SDK of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from temporalio import activity
from temporalio.exceptions import CancelledError
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from skyfleet.telemetry import logs, metrics


class ActivityTelemetry(Interceptor):
    """Times each activity, and puts the ids of what it is about on all that is logged meanwhile."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """See `Interceptor`."""
        return _Inbound(next)


class _Inbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        # Never taken back: each activity is a task of its own, and the SDK logs its failure after us.
        logs.bind(
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            activity=info.activity_type,
            attempt=info.attempt,
            trace_id=logs.current_trace_id(),
            **_subject(input.args),
        )
        began, outcome = time.perf_counter(), "failed"
        try:
            result = await super().execute_activity(input)
            outcome = "completed"
            return result
        except (asyncio.CancelledError, CancelledError):
            outcome = "cancelled"
            raise
        finally:
            metrics.activity_ran(info.activity_type, outcome, time.perf_counter() - began)


def _subject(arguments: Sequence[Any]) -> dict[str, str | None]:
    """The launch and the node that the one message to an activity is about, where it names them."""
    message = arguments[0] if arguments else None
    attempt = getattr(message, "attempt", None)  # a reference to one, or its number
    return {name: getattr(message, name, None) or getattr(attempt, name, None) for name in ("launch_id", "node_id")}


def serve_sdk_metrics(host: str, port: int) -> None:
    """Have the SDK serve its own metrics at this address: its runtime is not Python's, and has its own server.

    Before the first client is made. Raises `ValueError` or `RuntimeError` when the address cannot be had.
    """
    config = PrometheusConfig(
        bind_address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        counters_total_suffix=True,
        unit_suffix=True,
        durations_as_seconds=True,
    )
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(metrics=config)))
