"""Traces, over OTLP/HTTP, where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; without it nothing is imported.

OpenTelemetry's own variables say the rest: headers, sampling, resource attributes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import TracerProvider

_provider: TracerProvider | None = None

#: Not worth a trace: probes and scrapes, and heartbeats, which come for as long as a node lives. And an event stream
#: is open for as long as somebody looks.
_NOT_TRACED = "/health,/metrics,/heartbeat,/events,/ws"


def configure(service: str) -> bool:
    """Send traces as the service of that name if a collector is configured; whether one is. Call once."""
    global _provider
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in endpoints):
        return False
    # Imported only here: some 20 MB.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from skyfleet import __version__

    # What the operator says of the service in OTEL_RESOURCE_ATTRIBUTES or OTEL_SERVICE_NAME goes before our name.
    ours = Resource.create({SERVICE_NAME: service, "service.version": __version__})
    _provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(_provider)
    return True


def shutdown() -> None:
    """Send what is left. Ours to do, since processes leave without `atexit` (`skyfleet.exit`)."""
    if _provider is not None:
        _provider.shutdown()


def instrument(app: FastAPI) -> None:
    """Have each request to the API be a span."""
    if _provider is None:
        return
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=_provider, excluded_urls=_NOT_TRACED, exclude_spans=["receive", "send"]
    )


def temporal_interceptors() -> list[Any]:
    """Interceptors of a Temporal client, which the workers on it use too."""
    if _provider is None:
        return []
    from temporalio.contrib.opentelemetry import TracingInterceptor

    return [TracingInterceptor(_provider.get_tracer("skyfleet"))]


def traceparent() -> str | None:
    """The current span as the W3C header `traceparent` names it, for whoever is to carry the trace on."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
