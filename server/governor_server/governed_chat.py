"""One governed request on its way through the proxy: upstream is asked, the exchange decides, the client gets
what it says. Whatever fails here or in the core fails open: the client gets what upstream sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from governor.decision import Mode
from governor.exchange import Ask, Deliver, Exchange, Purpose, Step
from governor.request import Json
from governor_server import answers, exact_json, sse
from governor_server.access import Caller
from governor_server.accounting import account
from governor_server.api_errors import Headers
from governor_server.asgi import EVENT_STREAM, Reply, Scope, target, unbuffered
from governor_server.current import current
from governor_server.keep_alive import KeepAlive
from governor_server.logs import fields
from governor_server.upstream import UpstreamError, UpstreamResponse, requested

if TYPE_CHECKING:
    from governor_server.proxy import Proxy

REFUSED = frozenset({400, 422})
"""Upstream does not like the request. It may be what the governor added, so it is asked again without
that."""

MAX_MEASURED_BYTES = 512 * 1024 * 1024
"""Of one stream that is read for its tokens: several hundred thousand tokens with 20 logprobs each. What
comes after is handed on unread, so that an answer without end does not fill the memory."""

_LENGTH = frozenset({b"content-length"})
_REWRITTEN = frozenset({b"content-length", b"accept-encoding"})
_PROBE_DROPS = frozenset({b"content-length", b"accept-encoding", b"x-request-id"})

log = logging.getLogger(__name__)


class GovernedChat:
    """`start` is when the request came, by the clock of `perf_counter`; `waited_s` how much of the time since
    then it waited for its turn."""

    def __init__(
        self,
        proxy: Proxy,
        scope: Scope,
        caller: Caller,
        raw: bytes,
        exchange: Exchange,
        reply: Reply,
        *,
        start: float,
        waited_s: float,
    ) -> None:
        self._proxy = proxy
        self._scope = scope
        self._caller = caller
        self._raw = raw
        self._exchange = exchange
        self._reply = reply
        self._start = start
        self._waited_s = waited_s
        self._parsed: Callable[[bytes], Any] = answers.whole if exchange.shows_logprobs else answers.parsed
        self._may_fail = proxy.fail_open("chunk")
        self._keep_alive = KeepAlive(
            reply, proxy.max_silence_s, proxy.sleep, holds=lambda: self._later or bool(self._held)
        )
        self._held = 0
        self._measured = 0
        self._given_up = False
        self._later = False
        self._took_s = 0.0
        self._ended = 0.0
        self._spoke = False
        self._kept = False
        self._done = False
        self._request = current.get()
        self._trace = self._request.trace if self._request is not None else None

    async def run(self) -> None:
        """Ask upstream, and give the client what the exchange says."""
        async with self._ask(await self._admitted(), _REWRITTEN) as response:
            if not await refused(response):
                await self._take(response)
                return
        async with self._ask(self._raw, frozenset()) as response:
            if not await refused(response):
                self._proxy.metrics.fail_open_total.labels("refused").inc()
            self._proxy.metrics.count_upstream(response.status)
            await self._reply.relay(response)

    def _ask(
        self, body: bytes, drop: frozenset[bytes], purpose: Purpose = Purpose.REQUEST
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        headers = requested(self._scope["headers"], drop=drop | self._caller.withheld)
        return self._proxy.ask(
            "POST", target(self._scope), headers, body, self._exchange.conversation, purpose
        )

    async def _admitted(self) -> bytes:
        """The client's request as it goes upstream."""
        with self._proxy.fail_open("admission"):
            step: Step = self._exchange.admission()
            while isinstance(step, Ask) and step.purpose is Purpose.PROBE:
                step = await self._probe(step)
            if isinstance(step, Ask):
                return exact_json.dumps(step.body)
        return self._raw

    async def _take(self, response: UpstreamResponse) -> None:
        streamed = response.content_type == EVENT_STREAM
        self._proxy.metrics.count_upstream(response.status)
        if response.status != 200:
            await self._reply.relay(response)
        elif response.encoded or streamed is not self._exchange.streams:
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
            await self._reply.relay(response)
        else:
            try:
                await (self._stream(response) if streamed else self._whole(response))
            finally:
                # A client may be gone as soon as it has its message; what came of it is to be known still.
                if self._kept:
                    self._delivered()

    # A whole response

    async def _whole(self, response: UpstreamResponse) -> None:
        raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
        if not response.at_end:
            self._proxy.metrics.fail_open_total.labels("held_bytes").inc()
            await self._reply.relay(response)
            return
        self._upstream_done(response)
        self._later = True
        parsed: Json = {}
        step: Step = Deliver()
        with self._proxy.fail_open("response"):
            parsed = self._parsed(raw)
            self._exchange.receive_response(parsed)
            self._generated()
            step = await self._decided()
        if not isinstance(step, Deliver) or step.body is None:
            with self._proxy.fail_open("release"):
                step = self._exchange.interrupted()
        body = raw
        with self._proxy.fail_open("body"):
            # Of a body that nobody could read there is nothing to deliver but itself.
            if isinstance(step, Deliver) and parsed and step.body and step.body is not parsed:
                body = exact_json.dumps(step.body)
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        await self._keep()
        await self._reply.whole(response.status, [*headers, *self._own_headers(decided=True)], body)
        self._delivered()

    # A stream

    async def _stream(self, response: UpstreamResponse) -> None:
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        headers = unbuffered([*headers, *self._own_headers(decided=False)])
        await self._reply.begin(response.status, headers)
        done = b""
        try:
            done = await self._generation(response)
            await self._settled(response)
            self._upstream_done(response)
            if not self._given_up:
                self._generated()
            for_client = self._chunks(await self._finish())
        except UpstreamError as error:
            await self._broke_off(error, done)
            raise
        finally:
            self._keep_alive.end()
        await self._keep()
        await self._reply.end(for_client + done)
        self._delivered()

    async def _generation(self, response: UpstreamResponse) -> bytes:
        """Pass on what a stream shows at once; returns what is to come after all that waits: the bytes of the
        event that ended it, or of one that has no end."""
        reader = sse.EventReader()
        async for piece in response.pieces():
            out: list[bytes] = []
            self._measured += len(piece)
            if self._measured > MAX_MEASURED_BYTES and not self._given_up:
                out.append(self._overflow())
            for event in reader.feed(piece):
                if event.data is not None and sse.is_done(event.data):
                    await self._speak(b"".join(out))
                    return event.raw
                out.append(self._event(event))
            await self._speak(b"".join(out))
        rest = reader.rest()
        if not self._given_up and (rest or not self._exchange.complete):
            self._proxy.metrics.upstream_failures_total.labels("truncated").inc()
        return b"" if self._later else rest

    async def _settled(self, response: UpstreamResponse) -> None:
        """Returns once upstream is done with a stream of which nothing more is wanted. A connection that
        breaks after the end of the message has cost nothing; before that, whether `[DONE]` came or not, the
        answer broke off. Raises `UpstreamError`."""
        try:
            await response.settle()
        except UpstreamError:
            if not self._exchange.complete:
                raise

    async def _speak(self, body: bytes) -> None:
        if not self._exchange.acts:
            # The end of the message may be in this piece.
            await self._keep()
        if not body:
            return
        if not self._spoke:
            self._spoke = True
            self._proxy.metrics.time_to_first_token_seconds.observe(perf_counter() - self._start)
        self._keep_alive.sent(body)
        await self._reply.piece(body)

    def _event(self, event: sse.Event) -> bytes:
        """What the client gets for one event of upstream."""
        if event.data is None:
            return b"" if self._later and not sse.is_comment(event.raw) else event.raw
        if self._given_up:
            return b"" if self._later else self._unjudged(event)
        with self._may_fail:
            chunk = answers.chunk(event, self._parsed)
            if passed := self._exchange.receive(chunk):
                self._held = 0
                return b"".join(map(answers.written, passed))
            return self._waits(len(event.raw))
        return self._give_up() + (b"" if self._later else self._unjudged(event))

    def _unjudged(self, event: sse.Event) -> bytes:
        """An event that passes, without what the client did not ask for; as it is where nobody can read
        it."""
        try:
            chunk = self._exchange.shown(answers.chunk(event, self._parsed))
        except (AttributeError, TypeError, ValueError):
            return event.raw
        return b"" if chunk is None else answers.written(chunk)

    def _waits(self, size: int) -> bytes:
        """An event of `size` bytes is held back, or too much is by now."""
        if not self._exchange.holds:
            self._held = 0
            return b""
        self._held += size
        self._keep_alive.begin()
        return b"" if self._held <= self._proxy.limits.max_held_bytes else self._overflow()

    def _overflow(self) -> bytes:
        """More than is kept of one answer: the governor steps aside."""
        self._proxy.metrics.fail_open_total.labels("held_bytes").inc()
        return self._give_up()

    def _give_up(self) -> bytes:
        """What waits goes out. From here on upstream's events for the client's own request go on as they are;
        those of a later one are not needed any more."""
        self._given_up = True
        self._held = 0
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

    async def _broke_off(self, error: UpstreamError, done: bytes) -> None:
        """Upstream went away in the middle: what waits, then the error as upstream itself would tell it. The
        body is left unfinished, so that nobody takes it for a whole message; `done` is what upstream called
        its end all the same."""
        if not self._given_up:
            await self._reply.piece(self._give_up())
        await self._reply.piece(done + sse.event(error.body))

    def _chunks(self, step: Deliver) -> bytes:
        return b"".join(map(answers.written, step.chunks))

    # What the exchange asks for

    async def _step(self, ask: Ask) -> Step:
        if ask.purpose in (Purpose.PROBE, Purpose.LABEL):
            return await self._probe(ask)
        try:
            async with self._ask(exact_json.dumps(ask.body), _PROBE_DROPS, ask.purpose) as response:
                if response.status != 200 or response.encoded:
                    return self._exchange.interrupted()
                if self._exchange.streams:
                    await self._generation(response)
                    await self._settled(response)
                else:
                    raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
                    self._exchange.receive_response(self._parsed(raw))
                self._waited_s += response.waited_s
                self._generated()
            return Deliver() if self._given_up else self._exchange.finish()
        except UpstreamError as error:
            log.warning("%s", error)
            self._proxy.metrics.fail_open_total.labels(ask.purpose.value).inc()
            return self._exchange.interrupted()

    async def _probe(self, ask: Ask) -> Step:
        start = perf_counter()
        try:
            async with asyncio.timeout(self._proxy.probe_timeout_s):
                async with self._ask(exact_json.dumps(ask.body), _PROBE_DROPS, ask.purpose) as response:
                    answer = orjson.loads(await response.read_up_to(self._proxy.limits.max_held_bytes))
                    if self._trace is not None:
                        self._trace.answered(answer)
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

    def _generated(self) -> None:
        if self._trace is not None:
            self._trace.generated(self._exchange)

    def _delivered(self) -> None:
        if self._done:
            return
        self._done = True
        self._took_s = perf_counter() - self._start
        self._ended = self._proxy.clock()
        self._proxy.metrics.overhead_seconds.observe(self._took_s - self._waited_s)
        if not self._given_up:
            self._record_turn()
            self._begin_after()

    async def _keep(self) -> None:
        """Put the records of the message's calls before the client has them: a quick one is back before
        anything else is known of them. Waits for other processes to have them, too, for a moment."""
        if self._kept or self._given_up or not self._exchange.complete:
            return
        self._kept = True
        with self._proxy.fail_open("record"):
            if records := self._exchange.new_records():
                for record in records:
                    self._proxy.records.put(record)
                await self._proxy.records.shared()

    def _record_turn(self) -> None:
        """What the message took. It is recorded once more when what is asked after it is known, too."""
        with self._proxy.fail_open("record"):
            turn = self._exchange.turn_record(ended=self._ended, seconds=self._took_s)
            if turn is not None and self._proxy.turns is not None:
                self._proxy.turns.put(turn)

    def _begin_after(self) -> None:
        """Judge what was only observed, and label what came of earlier calls, now that the client has its
        message. Where that asks nothing upstream, and nothing runs for an earlier message, it is done at
        once."""
        if not self._exchange.complete:
            self._record()
        elif self._proxy.is_reviewing(self._exchange.conversation):
            self._review_later(None)
        elif isinstance(step := self._begin_review(), Ask):
            self._review_later(step)
        else:
            self._record()

    def _begin_review(self) -> Step:
        with self._proxy.fail_open("review"):
            self._exchange.recall(self._proxy.records.latest)
            if not self._later:
                # The client left before the end of its message was told.
                self._exchange.finish()
            return self._exchange.review()
        return Deliver()

    def _review_later(self, begun: Ask | None) -> None:
        if not self._proxy.review(self._exchange.conversation, lambda: self._review(begun)):
            self._record()

    async def _review(self, begun: Ask | None) -> None:
        with self._trace.reviewing() if self._trace is not None else nullcontext():
            step: Step = begun or self._begin_review()
            with self._proxy.fail_open("review"), suppress(UpstreamError):
                while isinstance(step, Ask):
                    step = await self._step(step)
            self._record()
            self._record_turn()
            if self._request is not None and self._request.decisions:
                told = fields(decisions=self._request.decisions, proposed=self._request.proposed)
                log.info("reviewed: %s", self._request.told(), extra=told)

    def _record(self) -> None:
        if self._request is not None:
            self._request.decided(self._exchange.decisions)
        if self._trace is not None:
            self._trace.decided(self._exchange)
        with self._proxy.fail_open("record"):
            account(self._exchange, self._proxy.metrics)
            for record in self._exchange.records():
                self._proxy.records.put(record)
            kept = self._proxy.transcripts
            if kept is not None and (transcript := self._exchange.transcript) is not None:
                kept.put(transcript)


async def refused(response: UpstreamResponse) -> bool:
    """Whether upstream does not like the request. vLLM tells some of it in a stream that begins with an
    error."""
    if response.status == 200 and response.content_type == EVENT_STREAM:
        return (await response.peek()).startswith(b'data: {"error"')
    return response.status in REFUSED
