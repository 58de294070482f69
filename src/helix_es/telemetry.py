"""Traces: one from the HTTP request through the log to the runner and back. Free unless an exporter is configured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_CARRIED = ("traceparent", "tracestate")
_tracer = trace.get_tracer("helix_es")


def configure(service: str) -> None:
    """Export spans of this process if the environment names a collector; otherwise nothing is even imported."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"helix-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Send what is left."""
    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "shutdown"):
        provider.shutdown()


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    headers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Iterator[Span]:
    """Run a block as a span; `headers` of the message or request that caused it make it part of that trace."""
    parent: Context | None = None
    if headers is not None:
        parent = propagate.extract({key.lower(): headers[key] for key in headers if key.lower() in _CARRIED})
    with _tracer.start_as_current_span(
        name, context=parent, kind=kind, attributes=dict(attributes or {})
    ) as made:
        yield made


def carried() -> dict[str, str]:
    """Return the headers that make whoever reads a message part of the current trace."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return {key: headers[key] for key in headers if key in _CARRIED}
