"""The proxy: raw ASGI to the client, `Upstream` to the server, `Exchange` in between.

A chat completion that may be governed goes through an `Exchange`; everything else goes through untouched.
What the exchange decides is acted on here, and whatever fails here or in the core fails open: the client gets
what upstream sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol

import orjson

from governor.calls import ToolEffect
from governor.decision import Action, Mode
from governor.exchange import Ask, Deliver, Exchange, Explain, Purpose, Step
from governor.governance import Governance
from governor.records import CallRecord
from governor.request import Json, result_ids, untouched
from governor.rewards import CallTurn, RewardSettings, judged
from governor.transcript import Transcript
from governor_server import sse
from governor_server.asgi import (
    ClientGone,
    Receive,
    Reply,
    Scope,
    Send,
    Upload,
    error_body,
    gone,
    header,
    read_body,
    target,
    until_gone,
)
from governor_server.metrics import Metrics
from governor_server.upstream import Body, Headers, Upstream, UpstreamError, UpstreamResponse, requested

REFUSED = frozenset({400, 422})
"""Upstream does not like the request. It may be what the governor added, so it is asked again without
that."""

EVENT_STREAM = "text/event-stream"

REWARD = RewardSettings()
"""The conventions by which calls are judged for the metrics: those of training, where nobody changed them."""

MAX_REVIEWS = 64
"""Reviews of observed calls at the same time; past this many they are dropped and counted."""

_LENGTH = frozenset({b"content-length"})
_REWRITTEN = frozenset({b"content-length", b"accept-encoding"})
_PROBE_DROPS = frozenset({b"content-length", b"accept-encoding", b"x-request-id"})

log = logging.getLogger(__name__)


class Records(Protocol):
    """What the proxy needs of a record store."""

    def get(self, call_id: str) -> CallRecord | None: ...

    def put(self, record: CallRecord) -> None: ...

    def conversation(self, call_ids: tuple[str, ...]) -> str | None: ...


class Transcripts(Protocol):
    """Where the texts of conversations are kept, if they are."""

    def put(self, transcript: Transcript) -> None: ...


@dataclass(slots=True)
class Proxy:
    """What all requests share. `governance` may be replaced while the proxy runs; `by_model` holds those of
    models that are governed otherwise.

    `clock` gives seconds since the epoch; `new_id` gives a name for a conversation that has none yet.
    """

    upstream: Upstream
    governance: Governance
    records: Records
    metrics: Metrics
    clock: Callable[[], float]
    new_id: Callable[[], str]
    probe_timeout_s: float = 10.0
    probe_when_observing: bool = True
    by_model: Mapping[str, Governance] = field(default_factory=dict)
    transcripts: Transcripts | None = None
    reviews: set[asyncio.Task[None]] = field(default_factory=set)

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/chat/completions."""
        await self._answer(scope, receive, send, self._chat, "chat")

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other request, as it is."""
        await self._answer(scope, receive, send, self._forward, "other")

    async def close(self) -> None:
        """Ends what still runs in the background."""
        for task in self.reviews:
            task.cancel()
        await asyncio.gather(*self.reviews, return_exceptions=True)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        handler: Callable[[Scope, Receive, Reply], Coroutine[Any, Any, None]],
        route: str,
    ) -> None:
        reply = Reply(send)
        try:
            with self.metrics.requests_in_flight.track_inprogress():
                await handler(scope, receive, reply)
        except ClientGone:
            reply.status = reply.status or 499
        except UpstreamError as error:
            log.warning("%s", error)
            self.metrics.upstream_errors_total.labels(error.reason).inc()
            if not reply.status:
                await reply.error(error)
            # Otherwise the answer broke off half-way, and an unfinished body is how the client learns of it.
        finally:
            self.metrics.requests.labels(route, str(reply.status or 499)).inc()

    async def _chat(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        start = perf_counter()
        raw = await read_body(receive)
        chat: GovernedChat | None = None
        with self.fail_open("request"):
            if (exchange := self._open(scope, raw)) is not None:
                chat = GovernedChat(self, scope, raw, exchange, reply, start)
        await until_gone(gone(receive), chat.run() if chat else self._relay(scope, raw, reply))

    async def _forward(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        upload = Upload(await receive(), receive)
        await until_gone(upload.gone(), self._relay(scope, upload.body, reply))

    async def _relay(self, scope: Scope, body: Body, reply: Reply) -> None:
        headers = requested(scope["headers"])
        async with self.upstream.request(scope["method"], target(scope), headers, body) as response:
            await reply.relay(response)

    def _open(self, scope: Scope, raw: bytes) -> Exchange | None:
        """The exchange for a request that may be governed, else None."""
        if header(scope, b"x-governor") == "off":
            return None
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        return self._exchange(scope, body) if untouched(body) is None else None

    def _exchange(self, scope: Scope, body: Json) -> Exchange:
        ids = result_ids(body)
        conversation = header(scope, b"x-governor-conversation") or self.records.conversation(ids)
        explain = header(scope, b"x-governor-explain").lower()
        return Exchange(
            body,
            self.by_model.get(str(body.get("model")), self.governance),
            records={id: record for id in ids if (record := self.records.get(id)) is not None},
            conversation=conversation or self.new_id(),
            now=self.clock(),
            explain={"1": Explain.DECISIONS, "true": Explain.DECISIONS, "tokens": Explain.TOKENS}.get(
                explain, Explain.NO
            ),
            probe_when_observing=self.probe_when_observing,
        )

    def fail_open(self, where: str) -> FailOpen:
        """Counts an exception of the governor instead of raising it."""
        return FailOpen(self.metrics, where)

    def review(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the requests."""
        if len(self.reviews) >= MAX_REVIEWS:
            work.close()
            self.metrics.fail_open_total.labels("review_queue").inc()
            return
        task = asyncio.create_task(work)
        self.reviews.add(task)
        task.add_done_callback(self.reviews.discard)


class FailOpen:
    """Swallows, tells and counts what the governor itself raises; what upstream did is not its failure."""

    def __init__(self, metrics: Metrics, where: str) -> None:
        self._metrics = metrics
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, UpstreamError):
            return False
        log.error("failing open in %s", self._where, exc_info=error)
        self._metrics.fail_open_total.labels(self._where).inc()
        return True


class GovernedChat:
    """One governed request on its way through the proxy."""

    def __init__(
        self, proxy: Proxy, scope: Scope, raw: bytes, exchange: Exchange, reply: Reply, start: float
    ) -> None:
        self._proxy = proxy
        self._scope = scope
        self._raw = raw
        self._exchange = exchange
        self._reply = reply
        self._start = start
        self._waited_s = 0.0
        self._given_up = False
        self._later = False
        self._spoke = False

    async def run(self) -> None:
        """Ask upstream, and give the client what the exchange says."""
        async with self._ask(await self._admitted(), _REWRITTEN) as response:
            if not await refused(response):
                await self._take(response)
                return
        headers = requested(self._scope["headers"])
        async with self._proxy.upstream.request("POST", target(self._scope), headers, self._raw) as response:
            if not await refused(response):
                self._proxy.metrics.fail_open_total.labels("refused").inc()
            await self._reply.relay(response)

    def _ask(self, body: bytes, drop: frozenset[bytes]) -> AbstractAsyncContextManager[UpstreamResponse]:
        headers = requested(self._scope["headers"], drop=drop)
        return self._proxy.upstream.request("POST", target(self._scope), headers, body)

    async def _admitted(self) -> bytes:
        """The client's request as it goes upstream."""
        with self._proxy.fail_open("admission"):
            step: Step = self._exchange.admission()
            while isinstance(step, Ask) and step.purpose is Purpose.PROBE:
                step = await self._probe(step)
            if isinstance(step, Ask):
                return orjson.dumps(step.body)
        return self._raw

    async def _take(self, response: UpstreamResponse) -> None:
        streamed = response.content_type == EVENT_STREAM
        if response.status != 200:
            await self._reply.relay(response)
        elif response.encoded or streamed is not self._exchange.streams:
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
            await self._reply.relay(response)
        elif streamed:
            await self._stream(response)
        else:
            await self._whole(response)

    # A whole response

    async def _whole(self, response: UpstreamResponse) -> None:
        raw = await response.read()
        self._upstream_done(response)
        self._later = True
        parsed: Json = {}
        step: Step = Deliver()
        with self._proxy.fail_open("response"):
            parsed = orjson.loads(raw)
            self._exchange.receive_response(parsed)
            step = await self._decided()
        if not isinstance(step, Deliver) or step.body is None:
            with self._proxy.fail_open("release"):
                step = self._exchange.interrupted()
        body = raw
        with self._proxy.fail_open("body"):
            if isinstance(step, Deliver) and step.body and step.body is not parsed:
                body = orjson.dumps(step.body)
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        await self._reply.whole(response.status, [*headers, *self._own_headers(decided=True)], body)
        self._delivered()

    # A stream

    async def _stream(self, response: UpstreamResponse) -> None:
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        headers += [*self._own_headers(decided=False), (b"x-accel-buffering", b"no")]
        await self._reply.begin(response.status, headers)
        done = b""
        try:
            done = await self._generation(response)
        except UpstreamError as error:
            await self._broke_off(error)
            raise
        self._upstream_done(response)
        for_client = self._chunks(await self._finish())
        await self._reply.end(for_client + done)
        self._delivered()

    async def _generation(self, response: UpstreamResponse) -> bytes:
        """Pass on what a stream shows at once; returns the bytes of the event that ended it."""
        reader = sse.EventReader()
        async for piece in response.pieces():
            out = bytearray()
            for event in reader.feed(piece):
                if event.data == sse.DONE:
                    await self._speak(bytes(out))
                    return event.raw
                out += self._event(event)
            await self._speak(bytes(out))
        await self._reply.piece(reader.rest())
        return b""

    async def _speak(self, body: bytes) -> None:
        if body and not self._spoke:
            self._spoke = True
            self._proxy.metrics.time_to_first_token_seconds.observe(perf_counter() - self._start)
        await self._reply.piece(body)

    def _event(self, event: sse.Event) -> bytes:
        """What the client gets for one event of upstream."""
        if event.data is None or self._given_up:
            return b"" if self._later else event.raw
        passed: tuple[Json, ...] = ()
        with self._proxy.fail_open("chunk"):
            chunk = orjson.loads(event.data)
            passed = self._exchange.receive(chunk)
            return b"".join(event.raw if sent is chunk else sse.event(sent) for sent in passed)
        return self._give_up() + (b"" if self._later else event.raw)

    def _give_up(self) -> bytes:
        """What waits goes out. From here on upstream's events for the client's own request go on as they are;
        those of a later one are not needed any more."""
        self._given_up = True
        with self._proxy.fail_open("release"):
            return self._chunks(self._exchange.interrupted())
        return b""

    async def _finish(self) -> Deliver:
        if self._given_up:
            return Deliver()
        self._later = True
        with self._proxy.fail_open("decision"):
            return await self._decided()
        with self._proxy.fail_open("release"):
            return self._exchange.interrupted()
        return Deliver()

    async def _decided(self) -> Deliver:
        step = self._exchange.finish()
        while isinstance(step, Ask):
            step = await self._step(step)
        return step

    async def _broke_off(self, error: UpstreamError) -> None:
        """Upstream went away in the middle: what waits, then the error as upstream itself would tell it. The
        body is left unfinished, so that nobody takes it for a whole message."""
        if not self._given_up:
            await self._reply.piece(self._give_up())
        await self._reply.piece(sse.event(error_body(error)))

    def _chunks(self, step: Deliver) -> bytes:
        return b"".join(sse.event(chunk) for chunk in step.chunks)

    # What the exchange asks for

    async def _step(self, ask: Ask) -> Step:
        if ask.purpose in (Purpose.PROBE, Purpose.LABEL):
            return await self._probe(ask)
        try:
            async with self._ask(orjson.dumps(ask.body), _PROBE_DROPS) as response:
                if response.status != 200 or response.encoded:
                    return self._exchange.interrupted()
                if self._exchange.streams:
                    await self._generation(response)
                else:
                    self._exchange.receive_response(orjson.loads(await response.read()))
                self._waited_s += response.waited_s
            return Deliver() if self._given_up else self._exchange.finish()
        except UpstreamError as error:
            log.warning("%s", error)
            self._proxy.metrics.fail_open_total.labels(ask.purpose.value).inc()
            return self._exchange.interrupted()

    async def _probe(self, ask: Ask) -> Step:
        start = perf_counter()
        try:
            async with asyncio.timeout(self._proxy.probe_timeout_s):
                async with self._ask(orjson.dumps(ask.body), _PROBE_DROPS) as response:
                    answer = orjson.loads(await response.read())
            status = response.status
        except TimeoutError:
            return self._exchange.probe_failed("timeout")
        except UpstreamError as error:
            return self._exchange.probe_failed(error.reason)
        except orjson.JSONDecodeError:
            return self._exchange.probe_failed("malformed")
        finally:
            taken = perf_counter() - start
            self._waited_s += taken
            self._proxy.metrics.probe_seconds.observe(taken)
        if status != 200:
            return self._exchange.probe_failed(f"status_{status}")
        if not isinstance(answer, dict):
            return self._exchange.probe_failed("malformed")
        return self._exchange.probe_answered(answer)

    # What is told besides the body

    def _own_headers(self, *, decided: bool) -> Headers:
        mode = self._exchange.mode
        own: Headers = [(b"x-governor-mode", mode.value.encode())]
        if decided:
            decision = self._exchange.action.value if self._exchange.acts else Mode.OBSERVE.value
            own.append((b"x-governor-decision", decision.encode()))
        conversation = self._exchange.conversation.encode("latin-1", "replace")
        return [*own, (b"x-governor-conversation", conversation)]

    def _upstream_done(self, response: UpstreamResponse) -> None:
        self._waited_s += response.waited_s
        self._proxy.metrics.upstream_seconds.observe(response.waited_s)

    def _delivered(self) -> None:
        self._proxy.metrics.overhead_seconds.observe(perf_counter() - self._start - self._waited_s)
        if self._given_up:
            return
        if self._exchange.complete:
            self._review_later()
        else:
            self._record()

    def _review_later(self) -> None:
        """Judge what was only observed, and label what came of earlier calls, now that the client has its
        message. Where that asks nothing upstream it is done at once."""
        step: Step = Deliver()
        with self._proxy.fail_open("review"):
            step = self._exchange.review()
        if isinstance(step, Deliver):
            self._record()
        else:
            self._proxy.review(self._review(step))

    async def _review(self, step: Step) -> None:
        with self._proxy.fail_open("review"), suppress(UpstreamError):
            while isinstance(step, Ask):
                step = await self._step(step)
        self._record()

    def _record(self) -> None:
        with self._proxy.fail_open("record"):
            account(self._exchange, self._proxy.metrics)
            for record in self._exchange.records():
                self._proxy.records.put(record)
            kept = self._proxy.transcripts
            if kept is not None and (transcript := self._exchange.transcript) is not None:
                kept.put(transcript)


def account(exchange: Exchange, metrics: Metrics) -> None:
    """Count what became of one exchange."""
    for decision in exchange.decisions:
        metrics.count_call(decision.call.name, decision.action.value, decision.reason.value)
        if decision.proposed is not Action.PASS and not decision.withheld:
            metrics.let_through_total.labels(decision.reason.value).inc()
    for failure in exchange.probe_failures:
        metrics.probe_failures_total.labels(failure).inc()
    for _ in exchange.policy_errors:
        metrics.fail_open_total.labels("policy").inc()
    if exchange.missing_logprobs:
        metrics.missing_logprobs_total.inc()
    for purpose, cost in exchange.costs.items():
        for kind, tokens in cost.items():
            metrics.added_tokens_total.labels(purpose, kind.removesuffix("_tokens")).inc(tokens)
    pruning = exchange.pruning
    for call_id in pruning.new:
        metrics.pruned_results_total.labels(pruning.stubs[call_id].value).inc()
    metrics.pruned_tokens_total.inc(pruning.saved_tokens)
    metrics.recomputed_tokens_total.inc(pruning.recomputed_tokens)
    if exchange.decisions and exchange.entropy is not None:
        metrics.entropy.labels("before").observe(exchange.entropy)
    for record in exchange.completed_records():
        if record.entropy_after is not None:
            metrics.entropy.labels("after").observe(record.entropy_after)
        if record.entropy_reduction is not None:
            metrics.entropy_reduction.observe(record.entropy_reduction)
        if record.label is not None:
            metrics.labels_total.labels(record.label.value).inc()
        if record.entropy_reduction is not None and record.effect == ToolEffect.READ_ONLY:
            (value,) = judged([CallTurn.of_record(record)], REWARD)
            metrics.count_judgement(value)


async def refused(response: UpstreamResponse) -> bool:
    """Whether upstream does not like the request. vLLM tells some of it in a stream that begins with an
    error."""
    if response.status == 200 and response.content_type == EVENT_STREAM:
        return (await response.peek()).startswith(b'data: {"error"')
    return response.status in REFUSED
