"""Spans and metrics: what is in them, what is not, and that a request never waits for them."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from governor_server import app as application
from governor_server.errors import SettingsError
from governor_server.tracing import export, request_trace
from governor_server.tracing import tracing as tracing_module
from governor_server.tracing.attributes import MAX_NAME_LENGTH
from governor_server.tracing.tracing import Tracing
from tests.server.bodies import answer
from tests.server.scripted_upstream import ABORT, Answer, Proxied, ScriptedUpstream, proxied, scripted
from tests.server.waiting import PATIENCE_S, eventually, refusing_port
from tests.wire.generated import Generated, changed, chat, made, stream_bytes

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
SURE = Answer.whole(Generated(content="Oslo", id="chatcmpl-2"))
SERVER = "POST /v1/chat/completions"
BOTH = pytest.mark.parametrize("stream", [False, True])
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SAID = ("Norway", "Oslo", "Let me look", "capital")


class Traced:
    """What a proxy recorded."""

    def __init__(self, proxy: Proxied, sample: float = 1.0, content: bool = False) -> None:
        self._proxy = proxy
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracing = proxy.app.proxy.tracing = Tracing(
            self.exporter,
            self.reader,
            sample=sample,
            content=content,
            fail_open=lambda: proxy.app.proxy.fail_open("trace"),
            dropped=proxy.app.metrics.dropped_spans_total.inc,
        )

    async def spans(self, requests: int = 1) -> dict[str, ReadableSpan]:
        """Those of so many requests, by name; nothing is recorded after that."""
        await eventually(lambda: self._answered() >= requests)
        await asyncio.gather(*self._proxy.app.proxy.reviews)
        self.tracing.close()
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def _answered(self) -> float:
        (metric,) = self._proxy.app.metrics.requests.collect()
        return sum(sample.value for sample in metric.samples)


@asynccontextmanager
async def traced(
    upstream: ScriptedUpstream, mode: str = "enforce", **fields: Any
) -> AsyncIterator[tuple[Proxied, Traced]]:
    async with proxied(upstream, mode) as proxy:
        yield proxy, Traced(proxy, **fields)


def known(of: Any) -> dict[str, Any]:
    """The attributes of a span, an event or a point."""
    return dict(of.attributes or {})


def parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent else 0


def number(span: ReadableSpan) -> int:
    return span.context.span_id if span.context else 0


@BOTH
async def test_a_withheld_call_is_told_in_the_spans_of_its_request(stream: bool) -> None:
    """The request in the client's trace, in it what upstream was asked, and the decision with its numbers."""
    async with scripted(answer(CALLING, stream), SURE) as upstream, traced(upstream) as (proxy, seen):
        await proxy.chat(chat(stream=stream), traceparent=PARENT, tracestate="a=b")
        spans = await seen.spans()
        assert proxy.metric("governor_fail_open_total", where="trace") == 0
    server, asked, probe = (spans[name] for name in (SERVER, "chat atlas", "probe atlas"))
    assert len(spans) == 3
    assert (server.kind, asked.kind, probe.kind) == (SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CLIENT)
    assert server.context is not None
    assert f"{server.context.trace_id:x}" == PARENT.split("-")[1].lstrip("0")
    assert f"{parent(server):x}" == PARENT.split("-")[2]
    assert parent(asked) == parent(probe) == number(server)
    assert known(server)["http.response.status_code"] == 200
    assert known(server)["governor.action"] == "answer"
    assert known(asked) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(upstream.url.rpartition(":")[2]),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "atlas",
        "gen_ai.response.model": "atlas",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "governor.purpose": "request",
    }
    assert known(probe)["governor.purpose"] == "probe"
    assert known(probe)["gen_ai.usage.input_tokens"] == 100
    (event,) = server.events
    told = known(event)
    assert (told["gen_ai.tool.name"], told["governor.decision"], told["governor.reason"]) == (
        "lookup",
        "answer",
        "confident_answer",
    )
    assert told["governor.entropy.before"] > 0
    assert told["governor.input.least_margin"] > 0.9
    # The generation is over before the probe begins, which is how long it took.
    assert asked.end_time is not None and probe.start_time is not None
    assert asked.end_time <= probe.start_time


async def test_upstream_gets_the_context_of_the_span_that_asks_it() -> None:
    """Its own spans are children of ours, and a probe's of the probe's."""
    async with scripted(answer(CALLING, False), SURE) as upstream, traced(upstream) as (proxy, seen):
        await proxy.chat(chat(), traceparent=PARENT, tracestate="a=b")
        spans = await seen.spans()
    for name, received in zip(("chat atlas", "probe atlas"), upstream.received, strict=True):
        given = [value for key, value in received.headers if key.lower() == "traceparent"]
        assert given == [f"00-{PARENT.split('-')[1]}-{number(spans[name]):016x}-01"]
        assert received.header("tracestate") == "a=b"


async def test_without_tracing_the_clients_context_goes_on_as_it_is() -> None:
    """No span is made, and nothing of OpenTelemetry is between a request and upstream."""
    async with scripted(answer(CALLING, False), SURE) as upstream, proxied(upstream) as proxy:
        await proxy.chat(chat(), traceparent=PARENT)
    assert [received.header("traceparent") for received in upstream.received] == [PARENT, PARENT]


@pytest.mark.parametrize("content", [False, True])
@BOTH
async def test_what_is_said_is_in_no_span_unless_asked_for(stream: bool, content: bool) -> None:
    """Not in attributes, events, names or metrics; with `content` it is where the conventions want it."""
    result = made(("c0", "find", '{"country": "Norway"}'))
    question = {"role": "user", "content": "What is the capital of Norway?"}
    answers = [answer(CALLING, stream), SURE]
    async with scripted(*answers) as upstream, traced(upstream, content=content) as (proxy, seen):
        await proxy.chat(chat(question, *result, stream=stream))
        measured = str(seen.reader.get_metrics_data())
        spans = await seen.spans()
    texts = "".join(span.to_json() for span in spans.values())
    assert not any(word in measured for word in SAID)
    assert [word in texts for word in SAID] == [content] * len(SAID)
    if content:
        asked = known(spans["chat atlas"])
        assert '"type":"tool_call_response","id":"c0","response":"Oslo"' in asked["gen_ai.input.messages"]
        assert '"finish_reason":"tool_calls"' in asked["gen_ai.output.messages"]


async def test_what_is_decided_after_the_answer_has_a_span_of_its_own() -> None:
    """Observing asks when the client has its message: the request's span is over by then."""
    answers = [answer(CALLING, False), SURE]
    async with scripted(*answers) as upstream, traced(upstream, "observe") as (proxy, seen):
        await proxy.chat(chat())
        spans = await seen.spans()
    review = spans["review"]
    assert parent(review) == number(spans[SERVER])
    assert parent(spans["probe atlas"]) == number(review)
    (event,) = review.events
    told = known(event)
    assert (told["governor.decision"], told["governor.proposed"]) == ("pass", "answer")


async def test_what_is_not_governed_is_traced_without_being_read() -> None:
    """A chat without tools has its model; another request its method."""
    async with scripted(SURE, Answer([b"{}"])) as upstream, traced(upstream) as (proxy, seen):
        await proxy.chat({"model": "atlas", "messages": []})
        async with proxy.client.get("/v1/models?of=me") as response:
            await response.read()
        await seen.spans(2)
    spans = seen.exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == ["GET", "GET", SERVER, "chat atlas"]
    assert {known(span).get("url.path") for span in spans} == {"/v1/models", "/v1/chat/completions", None}


@pytest.mark.parametrize(
    ("sample", "flags", "kept"), [(0.0, None, 0), (1.0, None, 3), (0.0, "01", 3), (1.0, "00", 0)]
)
async def test_a_client_that_traces_decides_what_is_kept(sample: float, flags: str | None, kept: int) -> None:
    """Else the share does."""
    headers = {} if flags is None else {"traceparent": PARENT[:-2] + flags}
    async with (
        scripted(answer(CALLING, False), SURE) as upstream,
        traced(upstream, sample=sample) as (
            proxy,
            seen,
        ),
    ):
        status, _, _ = await proxy.chat(chat(), **headers)
        assert (status, len(await seen.spans())) == (200, kept)
        assert proxy.metric("governor_fail_open_total", where="trace") == 0


async def test_a_broken_answer_is_an_error_of_both_spans() -> None:
    """Though the client's status was 200 by then."""
    source = stream_bytes(CALLING.chunks()[:2], done=False)
    async with scripted(Answer.stream(source, ABORT)) as upstream, traced(upstream) as (proxy, seen):
        with pytest.raises(Exception, match="payload"):
            await proxy.chat(chat(stream=True))
        spans = await seen.spans()
    for name, kind in ((SERVER, "upstream_broken"), ("chat atlas", "broken")):
        assert spans[name].status.status_code is StatusCode.ERROR
        assert known(spans[name])["error.type"] == kind


async def test_the_metrics_of_the_conventions_count_every_request_to_upstream() -> None:
    """Durations and tokens, with the model's name bounded as in our own metrics."""
    answers = [answer(CALLING, True), SURE]
    async with scripted(*answers) as upstream, traced(upstream, sample=0.0) as (proxy, seen):
        await proxy.chat(chat(stream=True))
        data = seen.reader.get_metrics_data()
    assert data is not None
    points: dict[str, list[Any]] = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    (duration,) = points["gen_ai.client.operation.duration"]
    assert duration.count == 2
    assert known(duration)["gen_ai.request.model"] == "atlas"
    usage = {known(point)["gen_ai.token.type"]: point for point in points["gen_ai.client.token.usage"]}
    assert (usage["input"].sum, usage["output"].sum) == (200, 40)
    assert tuple(usage["input"].explicit_bounds)[:3] == (1, 4, 16)


@pytest.mark.parametrize("usage", ["none", {"prompt_tokens": -1, "completion_tokens": "x"}])
async def test_odd_bodies_break_neither_a_span_nor_an_answer(usage: object) -> None:
    """Names that are none or too long, numbers that are texts."""
    odd = Generated(calls=[("c1", "Oslo is the capital", "{}")]).response()
    odd |= {"usage": usage, "model": ["x"]}
    async with scripted(Answer.whole(odd)) as upstream, traced(upstream) as (proxy, seen):
        status, _, _ = await proxy.chat({**chat(), "model": "a" * 5000})
        assert "gen_ai.client.token.usage" not in str(seen.reader.get_metrics_data())
        spans = await seen.spans()
        assert (status, proxy.metric("governor_fail_open_total", where="trace")) == (200, 0)
    (event,) = spans[SERVER].events
    assert known(event)["gen_ai.tool.name"] == "other"
    (asked,) = [span for span in spans.values() if span.kind is SpanKind.CLIENT]
    assert len(str(known(asked)["gen_ai.request.model"])) == MAX_NAME_LENGTH


@BOTH
@pytest.mark.parametrize("odd", [5, 2**70, True, ["x"], {"country": "Norway"}], ids=str)
@pytest.mark.parametrize("piece", ["content", "reasoning", "id", "name", "arguments"])
async def test_a_piece_that_is_no_text_costs_neither_its_trace_nor_a_call(
    piece: str, odd: object, stream: bool
) -> None:
    """The governor steps aside once, for there is a call to judge, and the client has the message as it
    was."""
    thinking = replace(CALLING, reasoning="Hm.")
    source = stream_bytes([changed(chunk, piece, odd) for chunk in thinking.chunks(usage=True)])
    whole = changed(thinking.response(), piece, odd)
    first = Answer.stream(source) if stream else replace(SURE, pieces=[json.dumps(whole).encode()])
    request = chat(stream=stream, logprobs=True, top_logprobs=20)
    async with scripted(first) as upstream, traced(upstream, content=True) as (proxy, seen):
        _, _, body = await proxy.chat(request)
        spans = await seen.spans()
        opened = {
            where: proxy.metric("governor_fail_open_total", where=where)
            for where in ("chunk", "response", "decision", "release", "body", "review", "record", "trace")
        }
    assert body == source if stream else json.loads(body) == whole
    assert opened == dict.fromkeys(opened, 0) | {"decision" if stream else "response": 1}
    asked = known(spans["chat atlas"])
    assert asked["gen_ai.usage.output_tokens"] == 20
    assert '"finish_reason":"tool_calls"' in asked["gen_ai.output.messages"]
    assert "governor.action" in known(spans[SERVER])


async def test_tracing_that_fails_does_not_fail_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the answer is the one that it would have been."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("of tracing")

    async with scripted(SURE, SURE, SURE) as upstream, traced(upstream) as (proxy, seen):
        monkeypatch.setattr(request_trace, "Asked", fail)
        assert (await proxy.chat(chat()))[0] == 200
        assert proxy.metric("governor_fail_open_total", where="trace") == 1
        monkeypatch.setattr(seen.tracing.tracer, "start_span", fail)
        assert (await proxy.chat(chat()))[0] == 200
        seen.tracing.close()


class Stuck(SpanExporter):
    """A collector that takes nothing, until it refuses all."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.open.wait()
        return SpanExportResult.FAILURE


def test_spans_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the collector is stuck no more than so many wait, and none that got lost is forgotten."""
    monkeypatch.setattr(export, "MAX_WAITING_SPANS", 10)
    monkeypatch.setattr(export, "MAX_EXPORTED_SPANS", 5)
    stuck, dropped = Stuck(), [0]

    def drop(number: int) -> None:
        dropped[0] += number

    bounded = export.Bounded(stuck, drop)
    for _ in range(25):
        bounded.on_end(sampled())
    assert dropped == [15]
    stuck.open.set()
    bounded.shutdown()
    assert dropped == [25]


def sampled() -> ReadableSpan:
    """A span that is over."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("span")
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def test_without_the_extra_an_endpoint_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry is no dependency of the proxy."""
    monkeypatch.delitem(sys.modules, "governor_server.tracing.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install '.\[otel\]'"):
        application.tracing_kind()


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """What takes OTLP over HTTP, in a thread: its address, and what it was sent."""
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_collector_gets_all_of_it_at_the_latest_when_the_proxy_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the settings to the bytes of OTLP over HTTP; the name of the service is the operator's."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours,place=here")
    with collector() as (url, taken):
        settings = {"endpoint": f"{url}/"}
        async with (
            scripted(answer(CALLING, True), SURE) as upstream,
            proxied(upstream, tracing=settings) as proxy,
        ):
            await proxy.chat(chat(stream=True), traceparent=PARENT)
    assert {path for path, _ in taken} == {"/v1/traces", "/v1/metrics"}
    spans, names, services = [], set(), set()
    for path, body in taken:
        if path == "/v1/traces":
            sent = ExportTraceServiceRequest.FromString(body)
            for resource in sent.resource_spans:
                services |= {(a.key, a.value.string_value) for a in resource.resource.attributes}
                spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                names |= {m.name for scope in measured.scope_metrics for m in scope.metrics}
    assert sorted(span.name for span in spans) == [SERVER, "chat atlas", "probe atlas"]
    assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}
    assert {("service.name", "ours"), ("place", "here")} <= services
    assert names == {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}


async def test_a_collector_that_is_not_there_neither_stops_a_request_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end waits a while for the last spans, and no longer. They are counted as lost; nothing failed
    open."""
    tried = threading.Event()

    class Late(OTLPSpanExporter):
        """Finds out only after the proxy has ended that there is no collector."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            tried.wait()
            return super().export(spans)

    monkeypatch.setattr(tracing_module, "OTLPSpanExporter", Late)
    monkeypatch.setattr(tracing_module, "CLOSE_S", 0.2)
    # Seconds: long enough for one more try.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    with refusing_port() as port:
        collecting = {"endpoint": f"http://127.0.0.1:{port}"}
        async with scripted(SURE) as upstream, proxied(upstream, tracing=collecting) as proxy:
            assert (await proxy.chat(chat()))[0] == 200
        exporting = still_exporting()
        assert exporting
        tried.set()
        # What it logs until then would be said during somebody else's test.
        for thread in exporting:
            await asyncio.to_thread(thread.join, PATIENCE_S)
        assert still_exporting() == []
    assert proxy.metric("governor_dropped_spans_total") == 2
    assert proxy.metric("governor_fail_open_total", where="trace") == 0


def still_exporting() -> list[threading.Thread]:
    """The threads of proxies that ended before their spans were taken."""
    return [thread for thread in threading.enumerate() if thread.name == "tracing"]
