"""The spans of one request of a client's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.trace import Status, StatusCode, set_span_in_context

from governor.exchange import Exchange
from governor.generation import Purpose
from governor_server.api_errors import Headers
from governor_server.tracing.asked import Asked
from governor_server.tracing.attributes import MAX_NAME_LENGTH, judged, measured
from governor_server.tracing.fail_open import guarded
from governor_server.upstream import Body, UpstreamResponse

if TYPE_CHECKING:
    from governor_server.tracing.tracing import Tracing


class Requests(Protocol):
    """What sends a request: an `Upstream` or a `Balancer`."""

    def request(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: Body = b"",
        affinity: str = "",
        *,
        with_key: bool = True,
    ) -> Any: ...


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
        *,
        with_key: bool = True,
    ) -> AsyncIterator[UpstreamResponse]:
        """As `Upstream.request`, in a span. `model` is the one that a chat request names, "" where it is not
        known; None where it is no chat request."""
        asked = self._asked = self._ask(method, purpose, model, body)
        if asked is not None:
            headers = asked.headers(headers) or headers
        try:
            async with upstream.request(
                method, target, headers, body, affinity, with_key=with_key
            ) as response:
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
            told = judged(decision, exchange.entropy, content=self.tracing.content)
            self._span.add_event("governor.decision", told)
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
