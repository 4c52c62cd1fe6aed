"""Spans and metrics of OpenTelemetry, after its conventions for generative AI. Needs the extra `otel`.

One SERVER span for each request, in the client's trace if it sent a `traceparent`; in it a CLIENT span for
whatever upstream is asked, whose context upstream gets; and an event for each decision. The names that begin
with `gen_ai.` are those of the semantic conventions in `SEMCONV`; what these have no name for begins with
`governor.`.

Everything here fails open: a request goes on without its spans. Export is in the background, and bounded.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

import orjson
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from governor.decision import Decision
from governor.exchange import Exchange
from governor.generation import Purpose
from governor.records import CallRecord
from governor.request import Json
from governor.turn import Turn
from governor_server.api_errors import Headers
from governor_server.asgi import Scope, header
from governor_server.metrics import MAX_MODEL_NAMES, TOOL_NAME, Names
from governor_server.upstream import Body, UpstreamError, UpstreamResponse

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

SEMCONV: Final = "https://opentelemetry.io/schemas/1.41.0"
PROVIDER: Final = "vllm"
VERSION: Final = importlib.metadata.version("tool-governor")

MAX_WAITING_SPANS = 2048
"""That are not exported yet; beyond it spans are dropped, and counted."""
MAX_EXPORTED_SPANS = 512
"""In one request to the collector."""
CLOSE_S = 3.0
"""How long the end of the proxy waits for the last spans to be taken."""
MAX_NAME_LENGTH = 256
"""Characters of a name that a client or a model chose."""
MAX_CONTENT_LENGTH = 64 * 1024
"""Characters of a text, where texts are recorded."""

CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})
DURATIONS = tuple(0.01 * 2**n for n in range(14))
TOKENS = tuple(float(4**n) for n in range(14))
"""The bounds of the histograms that the conventions advise."""

S = TypeVar("S", bound="_Guarded")
P = ParamSpec("P")
T = TypeVar("T")


class Requests(Protocol):
    """What sends a request: an `Upstream` or a `Balancer`."""

    def request(
        self, method: str, target: bytes, headers: Headers, body: Body = b"", affinity: str = ""
    ) -> Any: ...


class _Guarded(Protocol):
    @property
    def tracing(self) -> Tracing: ...


def guarded(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T | None]:
    """What fails in `method` is counted, and None comes instead."""

    @wraps(method)
    def inner(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        with self.tracing.fail_open():
            return method(self, *args, **kwargs)
        return None

    return inner


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
                View(
                    instrument_name="*.duration", aggregation=ExplicitBucketHistogramAggregation(DURATIONS)
                ),
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


class RequestTrace:
    """The spans of one request. `span` is the innermost that is open beside upstream's."""

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self.tracing = tracing
        self._server = span
        self._span = span
        self._asked: Asked | None = None

    @asynccontextmanager
    async def asking(
        self,
        upstream: Requests,
        method: str,
        target: bytes,
        headers: Headers,
        body: Body,
        affinity: str,
        purpose: Purpose,
        model: str | None,
    ) -> AsyncIterator[UpstreamResponse]:
        """As `Upstream.request`, in a span. `model` is the one that a chat request names, "" where it is not
        known; None where it is no chat request."""
        asked = self._asked = self._ask(method, purpose, model, body)
        if asked is not None:
            headers = asked.headers(headers) or headers
        try:
            async with upstream.request(method, target, headers, body, affinity) as response:
                if asked is not None:
                    asked.responded(response)
                yield response
        except BaseException as error:
            if asked is not None:
                asked.failed(error)
            raise
        finally:
            if asked is not None:
                asked.end()

    @guarded
    def _ask(self, method: str, purpose: Purpose, model: str | None, body: Body) -> Asked:
        return Asked(self.tracing, self._span, method, purpose, model, body)

    @guarded
    def generated(self, exchange: Exchange) -> None:
        """Upstream's answer to a request for a generation is complete: its span ends here."""
        if self._asked is not None:
            self._asked.generated(exchange.turn, exchange.answered_by)

    @guarded
    def answered(self, body: object) -> None:
        """A probe's answer is complete."""
        if self._asked is not None and isinstance(body, Mapping):
            self._asked.answered(body)

    @guarded
    def decided(self, exchange: Exchange) -> None:
        """What was decided, and what came of earlier calls."""
        self._span.set_attributes(
            {
                "gen_ai.conversation.id": exchange.conversation[:MAX_NAME_LENGTH],
                "governor.mode": exchange.mode.value,
                "governor.arm": exchange.arm.value,
                "governor.action": exchange.action.value,
            }
        )
        for decision in exchange.decisions:
            self._span.add_event("governor.decision", self._decision(decision, exchange.entropy))
        for record in exchange.completed_records():
            self._span.add_event("governor.result", measured(record))

    @contextmanager
    def reviewing(self) -> Iterator[None]:
        """What is done after the client has its message, in a span of its own."""
        with self.tracing.fail_open():
            self._span = self.tracing.tracer.start_span("review", set_span_in_context(self._server))
        try:
            yield
        finally:
            self._end(self._span)

    @guarded
    def _end(self, span: Any) -> None:
        if span is not self._server:
            span.end()

    @guarded
    def end(self, status: int, tenant: str) -> None:
        """The client has its answer; `status` is the one that it got."""
        self._server.set_attribute("http.response.status_code", status)
        if tenant:
            self._server.set_attribute("governor.tenant", tenant)
        if status >= 500:
            self._server.set_status(Status(StatusCode.ERROR))
        self._server.end()

    @guarded
    def failed(self, kind: str) -> None:
        """The client gets an error instead of an answer, or no end of one."""
        self._server.set_attribute("error.type", kind)
        self._server.set_status(Status(StatusCode.ERROR))

    def _decision(self, decision: Decision, entropy: float | None) -> dict[str, AttributeValue]:
        told: dict[str, AttributeValue | None] = {
            "gen_ai.tool.name": tool(decision.call.name),
            "gen_ai.tool.call.id": decision.call.id[:MAX_NAME_LENGTH],
            "governor.decision": decision.action.value,
            "governor.proposed": decision.proposed.value,
            "governor.reason": decision.reason.value,
            "governor.policy": decision.policy,
            "governor.tier": decision.tier,
            "governor.entropy.before": entropy,
            # A text among them may be one of the model's.
            **{f"governor.input.{k}": v for k, v in decision.inputs.items() if not isinstance(v, str)},
        }
        if self.tracing.content:
            told["gen_ai.tool.call.arguments"] = decision.call.arguments[:MAX_CONTENT_LENGTH]
        return known(told)


class Asked:
    """The span of one request to upstream."""

    def __init__(
        self,
        tracing: Tracing,
        parent: Any,
        method: str,
        purpose: Purpose,
        model: str | None,
        body: Body,
    ) -> None:
        self.tracing = tracing
        self._start = perf_counter()
        self._measures: dict[str, AttributeValue] = {}
        attributes: dict[str, AttributeValue] = {"http.request.method": method}
        name = method
        if model is not None:
            self._measures = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER}
            model = model[:MAX_NAME_LENGTH]
            operation = "probe" if purpose in (Purpose.PROBE, Purpose.LABEL) else "chat"
            name = f"{operation} {model}".strip()
            attributes |= {**self._measures, "governor.purpose": purpose.value}
            if model:
                self._measures["gen_ai.request.model"] = tracing.models.label(model)
                attributes["gen_ai.request.model"] = model
            if tracing.content and isinstance(body, bytes):
                attributes["gen_ai.input.messages"] = said(messages_of(body))
        context = set_span_in_context(parent)
        self._span = tracing.tracer.start_span(name, context, SpanKind.CLIENT, attributes)
        self._ended = False

    @guarded
    def headers(self, headers: Headers) -> Headers:
        """The headers for upstream, with the context of this span."""
        carrier: dict[str, str] = {}
        self.tracing.propagator.inject(carrier, set_span_in_context(self._span, Context()))
        kept = [pair for pair in headers if pair[0] not in CONTEXT_HEADERS]
        return [*kept, *((name.encode(), value.encode()) for name, value in carrier.items())]

    @guarded
    def responded(self, response: UpstreamResponse) -> None:
        """The head of the answer is there."""
        parts = urlsplit(response.url)
        self._span.set_attribute("server.address", parts.hostname or "")
        self._span.set_attribute("server.port", parts.port or (443 if parts.scheme == "https" else 80))
        self._span.set_attribute("http.response.status_code", response.status)
        if response.status >= 400:
            self._mark(str(response.status))

    @guarded
    def failed(self, error: BaseException) -> None:
        """There is no answer, or no whole one."""
        if not self._ended:
            # Told by its kind: the words may be those of a prompt.
            self._mark(error.reason if isinstance(error, UpstreamError) else type(error).__name__)

    def _mark(self, kind: str) -> None:
        if self._measures:
            self._measures["error.type"] = kind
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR))

    def generated(self, turn: Turn, model: str) -> None:
        """The whole of an answer that was read piece by piece, or at once."""
        self._tell(turn.usage, turn.finish_reason, model)
        if self.tracing.content:
            self._span.set_attribute("gen_ai.output.messages", said([spoken(turn)]))
        self.end()

    def answered(self, body: Json) -> None:
        """The body of a whole answer."""
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        choice = choice if isinstance(choice, Mapping) else {}
        self._tell(body.get("usage"), choice.get("finish_reason"), body.get("model"))
        if self.tracing.content:
            self._span.set_attribute("gen_ai.output.messages", said([choice.get("message")]))
        self.end()

    def _tell(self, usage: object, finish_reason: object, model: object) -> None:
        if isinstance(model, str) and model:
            self._span.set_attribute("gen_ai.response.model", model[:MAX_NAME_LENGTH])
        if isinstance(finish_reason, str):
            self._span.set_attribute("gen_ai.response.finish_reasons", [finish_reason[:MAX_NAME_LENGTH]])
        for kind, key in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            tokens = usage.get(key) if isinstance(usage, Mapping) else None
            if isinstance(tokens, int) and tokens >= 0:
                self._span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
                self.tracing.usage.record(tokens, {**self._measures, "gen_ai.token.type": kind})

    @guarded
    def end(self) -> None:
        """The request is over; a second time does nothing."""
        if self._ended:
            return
        self._ended = True
        if self._measures:
            self.tracing.duration.record(perf_counter() - self._start, self._measures)
        self._span.end()


class Bounded(SpanProcessor):
    """Hands spans to `exporter` in batches, from a thread, and drops what comes while too many wait."""

    def __init__(self, exporter: SpanExporter, dropped: Callable[[int], None]) -> None:
        self._ended = 0
        self._dropped = dropped
        self._counted = Counted(exporter, dropped)
        # Room for more than is let in: it would drop without telling.
        self._batches = BatchSpanProcessor(
            self._counted,
            max_queue_size=2 * MAX_WAITING_SPANS,
            max_export_batch_size=MAX_EXPORTED_SPANS,
            schedule_delay_millis=1000,
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        """Of a span that is not sampled nothing is to be sent, nor counted."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._ended - self._counted.handled >= MAX_WAITING_SPANS:
            self._dropped(1)
            return
        self._ended += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """What waits is sent; for 30 seconds at most."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits, now."""
        return self._batches.force_flush(timeout_millis)


class Counted(SpanExporter):
    """An exporter of which is known how many spans it has `handled`, and which were `dropped` by it."""

    def __init__(self, exporter: SpanExporter, dropped: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._dropped = dropped
        self.handled = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """To the collector."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.handled += len(spans)
            if result is not SpanExportResult.SUCCESS:
                self._dropped(len(spans))
        return result

    def shutdown(self) -> None:
        """No more spans come."""
        self._exporter.shutdown()


def measured(record: CallRecord) -> dict[str, AttributeValue]:
    """What the result of an earlier call led to."""
    return known(
        {
            "gen_ai.tool.name": tool(record.tool),
            "gen_ai.tool.call.id": record.call_id[:MAX_NAME_LENGTH],
            "governor.entropy.before": record.entropy_before,
            "governor.entropy.after": record.entropy_after,
            "governor.entropy.reduction": record.entropy_reduction,
            "governor.label": record.label.value if record.label is not None else None,
        }
    )


def known(values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    """Those that there are."""
    return {key: value for key, value in values.items() if value is not None}


def tool(name: str) -> str:
    """The name of a tool; a model may write anything in its place, and that is not for a span."""
    return name if TOOL_NAME.fullmatch(name) else "other"


# What is said, where that is recorded


def said(messages: object) -> str:
    """Messages of the chat API, as the conventions write them."""
    given = messages if isinstance(messages, list) else []
    told = [_message(message) for message in given if isinstance(message, Mapping)]
    return orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS).decode()[:MAX_CONTENT_LENGTH]


def messages_of(body: bytes) -> object:
    """The messages of a request, which may be no request at all."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return given.get("messages") if isinstance(given, dict) else None


def spoken(turn: Turn) -> Json:
    """A turn as a message of the chat API."""
    calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls]
    return {
        "role": "assistant",
        "content": turn.content,
        "reasoning": turn.reasoning,
        "tool_calls": calls,
        "finish_reason": turn.finish_reason,
    }


def _message(message: Json) -> dict[str, Any]:
    content, parts = message.get("content"), []
    if message.get("role") == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    else:
        if message.get("reasoning"):
            parts.append({"type": "reasoning", "content": message["reasoning"]})
        if content:
            parts.append({"type": "text", "content": content})
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                named = {"name": function.get("name"), "arguments": function.get("arguments")}
                parts.append({"type": "tool_call", "id": call.get("id"), **named})
    told: dict[str, Any] = {"role": message.get("role"), "parts": parts}
    if message.get("finish_reason"):
        told["finish_reason"] = message["finish_reason"]
    return told
