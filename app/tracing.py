"""OpenTelemetry traces: a span a request, and one below it for each stage. Off unless MASKWELL_TRACING is on.

Where they go, and how many, the SDK's own OTEL_* variables say. The spans of the stages are made when the request has
ended, from its notes; where tracing is off nothing of the SDK is loaded, and a request costs nothing more.
"""

import importlib.util
import os
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from app import __version__
from app.notes import Notes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# W3C Trace Context, version 00; a later one begins alike.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
SERVICE_NAME = "maskwell"
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds, by machines
CLOSE_S = 5.0  # for what is not sent yet: a collector that is away must not hold up the end


class TracingError(Exception):
    """Tracing is on, and what it needs is not installed."""


class RequestTrace(Protocol):
    """The trace of one request."""

    trace_id: str
    traceresponse: str

    def end(self, method: str, route: str, status: int | None, notes: Notes) -> None:
        """The request has ended; arguments as in Metrics.settle."""


class Tracing:
    """Makes the spans of a service.

    Args:
        provider: of spans; what the environment says if left out.

    Raises:
        TracingError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        check_tracing()
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider or _make_provider()
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, headers: Mapping[str, str]) -> "RequestTrace":
        """A request has come; its span hangs below that of the client, where it names one."""
        from opentelemetry.trace import SpanKind

        named = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = self._propagator.extract(named)
        return _Trace(self._tracer, self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER))

    def close(self) -> None:
        """Send what is not sent yet."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class _Trace:
    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer, self._span = tracer, span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        # W3C Trace Context, level 2: tells the client where its request is to be found
        self.traceresponse = f"00-{self.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, method: str, route: str, status: int | None, notes: Notes) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span = self._span
        if span.is_recording():
            span.update_name(f"{method} {route}" if route else method)
            attributes = {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status or "",
                "error.type": notes.reason,
                "maskwell.request_id": notes.request_id,
                "maskwell.key": notes.key,
                "maskwell.model": notes.model,
                "maskwell.model_version": notes.model_version,
                "maskwell.pixels": notes.pixels or "",
                "maskwell.cancelled": "true" if status is None else "",
            }
            span.set_attributes({name: value for name, value in attributes.items() if value != ""})
            if status is not None and status >= 500:
                span.set_status(Status(StatusCode.ERROR, notes.reason))
            # the stages were timed by a clock that has no date
            offset_ns = time.time_ns() - time.perf_counter_ns()
            context = set_span_in_context(span)
            for stage in notes.stages:
                ended_ns = offset_ns + int(stage.ended_at * 1e9)
                child = self._tracer.start_span(
                    stage.name, context=context, start_time=ended_ns - int(stage.seconds * 1e9)
                )
                child.end(ended_ns)
        span.end()


def check_tracing() -> None:
    """See that what tracing needs is installed.

    Raises:
        TracingError: it is not.
    """
    for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of a parent
            found = False
        if not found:
            raise TracingError(f"MASKWELL_TRACING: {name} is not installed: pip install 'maskwell[tracing]'")


def parse_trace_id(traceparent: str) -> str:
    """The trace that a client says its request belongs to; empty if it says none, or nonsense."""
    match = TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""


def _make_provider() -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes: dict[str, str] = {"service.version": __version__}
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:  # what is given here would win over the environment
        attributes["service.name"] = SERVICE_NAME
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
