"""The span of what upstream is asked, and its share of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from governor.generation import Purpose
from governor.request import Json
from governor.turn import Turn
from governor_server.api_errors import Headers
from governor_server.tracing.attributes import MAX_NAME_LENGTH
from governor_server.tracing.fail_open import guarded
from governor_server.tracing.messages import messages_of, said, spoken
from governor_server.upstream import Body, UpstreamError, UpstreamResponse

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from governor_server.tracing.tracing import Tracing

PROVIDER: Final = "vllm"
CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})


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
