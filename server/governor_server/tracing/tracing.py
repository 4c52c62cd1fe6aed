"""Where spans and metrics begin, and where they go."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from governor_server.asgi import Scope, header
from governor_server.metrics import MAX_MODEL_NAMES, Names
from governor_server.tracing.asked import CONTEXT_HEADERS
from governor_server.tracing.attributes import MAX_CONTENT_LENGTH, MAX_NAME_LENGTH
from governor_server.tracing.export import Bounded
from governor_server.tracing.fail_open import guarded
from governor_server.tracing.request_trace import RequestTrace

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

SEMCONV: Final = "https://opentelemetry.io/schemas/1.41.0"
VERSION: Final = importlib.metadata.version("tool-governor")

CLOSE_S = 3.0
"""How long the end of the proxy waits for the last spans to be taken."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})
DURATIONS = tuple(0.01 * 2**n for n in range(14))
TOKENS = tuple(float(4**n) for n in range(14))
"""The bounds of the histograms that the conventions advise."""


class Tracing:
    """Makes spans and metrics, which `exporter` and `reader` take out.

    `sample` is the share that is kept of the traces that begin here, while one that a client began is kept if
    the client keeps it. `content`: what is said is recorded too. `dropped` is told of spans that got lost,
    `fail_open` swallows what fails.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        reader: MetricReader,
        *,
        sample: float = 1.0,
        content: bool = False,
        fail_open: Callable[[], AbstractContextManager[None, bool]],
        dropped: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.content = content
        self.fail_open = fail_open
        self.models = Names(MAX_MODEL_NAMES)
        resource = Resource.create().merge(
            Resource({"service.name": "tool-governor", "service.version": VERSION})
        )
        resource = resource.merge(OTELResourceDetector().detect())
        self._spans = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=resource,
            span_limits=SpanLimits(max_span_attribute_length=MAX_CONTENT_LENGTH),
            shutdown_on_exit=False,
        )
        self._spans.add_span_processor(Bounded(exporter, dropped))
        self._metrics = MeterProvider(
            [reader],
            resource=resource,
            shutdown_on_exit=False,
            views=[
                View(instrument_name="*.duration", aggregation=ExplicitBucketHistogramAggregation(DURATIONS)),
                View(instrument_name="*.usage", aggregation=ExplicitBucketHistogramAggregation(TOKENS)),
            ],
        )
        self.tracer = self._spans.get_tracer("governor", VERSION, SEMCONV)
        meter = self._metrics.get_meter("governor", VERSION, SEMCONV)
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "How long upstream took, of each request to it."
        )
        self.usage = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of each request to upstream."
        )
        self.propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(
        cls,
        endpoint: str,
        *,
        sample: float,
        content: bool,
        fail_open: Callable[[], AbstractContextManager[None, bool]],
        dropped: Callable[[int], None],
    ) -> Tracing:
        """Sends to the collector whose root is `endpoint`, in OTLP over HTTP."""
        root = endpoint.rstrip("/")
        return cls(
            OTLPSpanExporter(f"{root}/v1/traces"),
            PeriodicExportingMetricReader(OTLPMetricExporter(f"{root}/v1/metrics")),
            sample=sample,
            content=content,
            fail_open=fail_open,
            dropped=dropped,
        )

    @property
    def tracing(self) -> Tracing:
        return self

    @guarded
    def begin(self, scope: Scope, request_id: str, route: str) -> RequestTrace:
        """The trace of a request; `route` is its path where that is one of ours to know, else ""."""
        carrier = {name.decode(): header(scope, name) for name in CONTEXT_HEADERS}
        given = self.propagator.extract({name: value for name, value in carrier.items() if value})
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method,
            "url.path": scope["path"][:MAX_NAME_LENGTH],
            "url.scheme": scope["scheme"],
            "governor.request_id": request_id,
        }
        if route:
            attributes["http.route"] = route
        name = f"{method} {route}".strip() if method in METHODS else "HTTP"
        span = self.tracer.start_span(name, given, SpanKind.SERVER, attributes)
        return RequestTrace(self, span)

    def close(self) -> None:
        """Send what waits, and no more. Waits a few seconds at most."""
        # A thread that the interpreter does not wait for: a collector may be as slow as it likes.
        closing = threading.Thread(target=self._close, name="tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _close(self) -> None:
        with self.fail_open():
            self._spans.shutdown()
        with self.fail_open():
            self._metrics.shutdown()
