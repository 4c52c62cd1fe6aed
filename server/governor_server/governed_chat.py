"""One governed request on its way through the proxy: upstream is asked, the exchange decides, the client gets
what it says. Whatever fails here or in the core fails open: the client gets what upstream sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from governor.decision import Mode, Reason
from governor.exchange import Ask, Deliver, Exchange, Purpose, Step
from governor.request import Json
from governor_server import answers, exact_json, sse
from governor_server.access import Caller
from governor_server.accounting import account
from governor_server.api_errors import Headers
from governor_server.asgi import EVENT_STREAM, Reply, Scope, target, unbuffered
from governor_server.balancer import NEVER_SENT
from governor_server.current import current
from governor_server.keep_alive import KeepAlive
from governor_server.logprobs_filter import LogprobsFilter
from governor_server.logs import fields
from governor_server.refusals import (
    FAILING,
    TO_THE_CLIENTS,
    Addition,
    Key,
    Refused,
    ends_in_error,
    flaw,
    refuses,
    shows,
)
from governor_server.upstream import UpstreamError, UpstreamResponse, requested

if TYPE_CHECKING:
    from governor_server.proxy import Proxy

MAX_MEASURED_BYTES = 512 * 1024 * 1024
"""Of one stream that is read for its tokens: several hundred thousand tokens with 20 logprobs each. What
comes after is handed on unread, so that an answer without end does not fill the memory."""

_LENGTH = frozenset({b"content-length"})
_ENCODING = frozenset({b"accept-encoding"})
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
        self._parsed: Callable[[bytes], Any] = answers.whole if exchange.view.logprobs else answers.parsed
        self._filter = LogprobsFilter(exchange.view)
        self._may_fail = proxy.fail_open("chunk")
        self._added: Addition | None = None
        self._unchanged = False
        self._may_ask_again = False
        self._opening = b""
        self._unread_answer = False
        self._evidence: list[tuple[Key, str]] = []
        self._keep_alive = KeepAlive(
            reply,
            proxy.max_silence_s,
            proxy.sleep,
            holds=lambda: self._later or bool(self._held or self._opening),
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
        """Ask upstream, and give the client what the exchange says. As long as the client got nothing of an
        answer to what was added, its own request is asked instead."""
        body = await self._admitted()
        self._may_ask_again = self._added is not None
        try:
            await self._exchanged(body)
        except UpstreamError as error:
            if not self._may_ask_again or error.reason in NEVER_SENT:
                raise
            await self._ask_again(error.reason)
        finally:
            self._learn_from_evidence()

    def _ask(
        self, body: bytes, drop: frozenset[bytes], purpose: Purpose = Purpose.REQUEST
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        headers = requested(self._scope["headers"], drop=drop | self._caller.withheld)
        return self._proxy.ask(
            "POST", target(self._scope), headers, body, self._exchange.conversation, purpose
        )

    async def _admitted(self) -> bytes:
        """The client's request as it goes upstream."""
        if not self._exchange.view.shows_all and not self._allows(Addition.LOGPROBS):
            self._leave_alone()
            return self._raw
        with self._proxy.fail_open("admission"):
            step: Step = (
                self._exchange.admission()
                if self._allows(Addition.STUBS)
                else Ask(Purpose.REQUEST, self._exchange.request)
            )
            while isinstance(step, Ask) and step.purpose is Purpose.PROBE:
                step = await self._probe(step)
            if isinstance(step, Ask) and self._exchange.changes_request:
                pruned = bool(self._exchange.pruning.stubs)
                self._added = Addition.STUBS if pruned else Addition.LOGPROBS
                return exact_json.dumps(step.body)
        return self._raw

    async def _exchanged(self, body: bytes) -> None:
        async with self._ask(body, frozenset() if self._unchanged else _REWRITTEN) as response:
            try:
                await self._take(response)
            except Refused:
                self._waited_s += response.waited_s
                raise
        if self._added is not None and self._exchange.complete:
            self._note(self._added)

    async def _take(self, response: UpstreamResponse) -> None:
        self._proxy.metrics.count_upstream(response.status)
        if self._may_ask_again and refuses(response):
            raise Refused(f"status_{response.status if response.status < 600 else 'other'}")
        streamed = response.content_type == EVENT_STREAM
        if self._reply.status and not (response.status == 200 and streamed and not response.encoded):
            await self._tell_in_stream(response)
        elif not 200 <= response.status < 300:
            self._may_ask_again = False
            await self._reply.relay(response)
        elif not self._unchanged and not response.decode() and self._may_ask_again:
            raise Refused("encoded")
        elif response.encoded or (streamed is not self._exchange.streams and self._added is None):
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
            self._unread_answer = True
            await self._reply.relay(response)
        else:
            try:
                await (self._stream(response) if streamed else self._whole(response))
            finally:
                # A client may be gone as soon as it has its message; what came of it is to be known still.
                if self._kept:
                    self._delivered()

    # The client's own request

    async def _ask_again(self, how: str) -> None:
        """What was added is refused, `how` says in which way: the client's own request is what counts."""
        assert self._added is not None
        key = self._key(self._added)
        self._added, self._may_ask_again = None, False
        self._leave_alone()
        status = 0
        try:
            # A head that is out says nothing of a compression.
            drop = _ENCODING if self._reply.status else frozenset()
            async with self._ask(self._raw, drop) as response:
                status = response.status
                if self._reply.status:
                    response.decode()
                await self._take(response)
        except UpstreamError as error:
            self._proxy.refusals.refused(key, FAILING)
            if not status and self._reply.status:
                await self._reply.piece(sse.event(error.body))
            raise
        if self._exchange.complete or self._unread_answer:
            self._proxy.metrics.fail_open_total.labels("refused").inc()
            # The size is that of this one request, and says nothing of the next one.
            if how != "status_413":
                self._evidence.append((key, how))
        elif status >= 500 or status == 200:
            self._proxy.refusals.refused(key, FAILING)

    def _leave_alone(self) -> None:
        """The client's own bytes go upstream, and all that comes back is the client's."""
        self._unchanged = True
        self._exchange.unmeasured()
        self._parsed = answers.whole
        self._opening, self._held, self._measured, self._given_up = b"", 0, 0, False

    async def _tell_in_stream(self, response: UpstreamResponse) -> None:
        """The client has the comments of a stream that came to nothing: what its own request led to can only
        be told in it. A body that calls itself something else may be a stream all the same."""
        if response.status == 200 and not response.encoded:
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
            self._unread_answer = True
            async for piece in response.pieces():
                await self._reply.piece(piece)
            await self._reply.end()
            return
        raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
        try:
            told = sse.event({"error": orjson.loads(raw)["error"]})
        except (orjson.JSONDecodeError, KeyError, TypeError):
            told = sse.event(Refused(f"status_{response.status}").body)
        await self._reply.end(told + b"data: [DONE]\n\n")

    def _key(self, addition: Addition) -> Key:
        server = self._proxy.upstream.serving(self._exchange.conversation)
        return Key(self._caller.tenant, self._exchange.model, server, addition)

    def _allows(self, addition: Addition) -> bool:
        return self._proxy.refusals.allows(self._key(addition))

    def _note(self, addition: Addition, how: str = "") -> None:
        """Upstream took an addition, or refused it; what that says depends on whether the client's own
        request is answered."""
        self._evidence.append((self._key(addition), how))

    def _learn_from_evidence(self) -> None:
        evidence, self._evidence = self._evidence, []
        for key, how in evidence:
            if not how:
                self._proxy.refusals.accepted(key)
                continue
            self._proxy.metrics.count_refusal(key.addition, how, key.model)
            if self._exchange.complete or key.addition in TO_THE_CLIENTS:
                self._proxy.refusals.refused(key, how)

    # A whole response

    async def _whole(self, response: UpstreamResponse) -> None:
        raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
        if not response.at_end:
            self._proxy.metrics.fail_open_total.labels("held_bytes").inc()
            await self._relay_filtered(response)
            return
        parsed = read(raw, self._parsed)
        if self._may_ask_again and (how := flaw(parsed)):
            raise Refused(how)
        self._may_ask_again = False
        self._upstream_done(response)
        self._later = True
        step: Step = Deliver()
        if self._exchange.streams:
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
        else:
            with self._proxy.fail_open("response"):
                self._exchange.receive_response(parsed)
                self._generated()
                step = await self._decided()
            if not isinstance(step, Deliver) or step.body is None:
                with self._proxy.fail_open("release"):
                    step = self._exchange.interrupted()
        body = b""
        with self._proxy.fail_open("body"):
            # Of a body that nobody could read there is nothing to deliver but itself.
            if isinstance(step, Deliver) and parsed and step.body:
                body = raw if step.body is parsed else exact_json.dumps(step.body)
        body = body or self._unasked_left_out(raw, parsed)
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        await self._keep()
        await self._reply.whole(response.status, [*headers, *self._own_headers(decided=True)], body)
        self._delivered()

    def _unasked_left_out(self, raw: bytes, parsed: Any) -> bytes:
        """A body of which the core makes nothing, as the client asked for it."""
        view = self._exchange.view
        if view.shows_all:
            return raw
        if not isinstance(parsed, dict):
            return self._filter.unread(raw, raw)
        shown = view.response(parsed)
        return raw if shown is parsed else exact_json.dumps(shown)

    async def _relay_filtered(self, response: UpstreamResponse) -> None:
        """A body too large to be read: as it comes, without what the client did not ask for."""
        if self._exchange.view.shows_all:
            await self._reply.relay(response)
            return
        self._may_ask_again = False
        await self._reply.begin(
            response.status, [pair for pair in response.headers if pair[0] not in _LENGTH]
        )
        async for piece in response.pieces():
            await self._reply.piece(self._filter.feed(piece))
        await self._reply.end(self._filter.feed(b"", end=True))

    # A stream

    async def _stream(self, response: UpstreamResponse) -> None:
        headers = [pair for pair in response.headers if pair[0] not in _LENGTH]
        headers = unbuffered([*headers, *self._own_headers(decided=False)])
        self._reply.prepare(response.status, headers)
        if not self._exchange.streams:
            self._given_up = True
            self._proxy.metrics.fail_open_total.labels("unreadable").inc()
        done = b""
        try:
            done = await self._generation(response)
            await self._settled(response)
            if self._may_ask_again and not self._exchange.complete:
                raise Refused("empty")
            self._may_ask_again = False
            self._upstream_done(response)
            if not self._given_up:
                self._generated()
            for_client = self._chunks(await self._finish())
        except UpstreamError as error:
            if not self._may_ask_again:
                await self._broke_off(error, done)
            raise
        finally:
            self._keep_alive.end()
        await self._keep()
        await self._reply.end(self._opening + for_client + done)
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
            if out and self._exchange.streams and not self._may_ask_again:
                await self._reply.open()
            await self._speak(b"".join(out))
        rest = reader.rest()
        if not self._given_up and (rest or not self._exchange.complete):
            self._proxy.metrics.upstream_failures_total.labels("truncated").inc()
        return b"" if self._later else self._unread(rest, end=True)

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
            return self._without_data(event.raw)
        if self._given_up and self._exchange.view.shows_all:
            return b"" if self._later else event.raw
        parsed = read(event.data, self._parsed)
        if self._may_ask_again and (how := not_yet(parsed)):
            raise Refused(how)
        if self._given_up:
            return self._unasked(parsed, event)
        with self._may_fail:
            chunk = answers.chunk(event, parsed)
            if passed := self._exchange.receive(chunk):
                self._held = 0
                return self._opened(passed, b"".join(map(answers.written, passed)))
            return self._waits(len(event.raw))
        return self._give_up() + self._unasked(parsed, event)

    def _without_data(self, raw: bytes) -> bytes:
        """A comment goes on at once. Of another event without data nobody knows what it says: it may be an
        error that is told in a field of its own."""
        if sse.is_comment(raw):
            return self._unread(raw)
        if self._may_ask_again and sse.ends_event(raw):
            self._opening += self._unread(raw)
            return b""
        return b"" if self._later else self._unread(raw)

    def _opened(self, passed: Sequence[Json], written: bytes) -> bytes:
        """Until something of a message comes, all else waits for it: if an error comes instead, the client's
        own request is asked."""
        self._may_ask_again = self._may_ask_again and not any(map(shows, passed))
        out = self._opening + written
        self._opening = out if self._may_ask_again else b""
        if self._opening:
            self._keep_alive.begin()
        return b"" if self._may_ask_again else out

    def _unasked(self, parsed: Any, event: sse.Event) -> bytes:
        """An event that the governor makes nothing of, without what the client did not ask for."""
        if self._later:
            return b""
        if not isinstance(parsed, dict):
            return self._filter.unread(event.raw, event.data or b"")
        shown = self._exchange.shown(answers.chunk(event, parsed))
        return b"" if shown is None else self._opened((shown,), answers.written(shown))

    def _unread(self, raw: bytes, *, end: bool = False) -> bytes:
        """Bytes of a stream that are no event with data: a comment, one that has no end, or a piece of one
        that is too large to be kept. `end`: nothing more belongs to it."""
        if self._exchange.view.shows_all:
            return raw
        whole = end or sse.ends_event(raw)
        return self._filter.unread(raw, b"") if whole else self._filter.feed(raw)

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
        self._given_up, self._may_ask_again, self._held = True, False, 0
        opening, self._opening = self._opening, b""
        with self._proxy.fail_open("release"):
            return opening + self._chunks(self._exchange.interrupted())
        return opening

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
        addition = Addition(ask.purpose.value)
        if not self._allows(addition):
            return self._exchange.interrupted(Reason.UPSTREAM_REFUSES)
        try:
            async with self._ask(exact_json.dumps(ask.body), _PROBE_DROPS, ask.purpose) as response:
                if response.status != 200 or not response.decode():
                    if refuses(response) or response.encoded:
                        self._note(addition, f"status_{response.status}")
                    return self._exchange.interrupted()
                if self._exchange.streams:
                    await self._generation(response)
                    await self._settled(response)
                else:
                    raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
                    self._exchange.receive_response(self._parsed(raw))
                self._waited_s += response.waited_s
                self._generated()
            ended = self._exchange.turn.finish_reason is not None
            self._note(addition, "" if ended else "empty")
            return Deliver() if self._given_up else self._exchange.finish()
        except UpstreamError as error:
            log.warning("%s", error)
            self._note(addition, error.reason)
            self._proxy.metrics.fail_open_total.labels(ask.purpose.value).inc()
            return self._exchange.interrupted()

    async def _probe(self, ask: Ask) -> Step:
        if not self._allows(Addition.PROBE):
            return self._exchange.probe_refused()
        start = perf_counter()
        answer: Any = None
        failure = ""
        try:
            async with asyncio.timeout(self._proxy.probe_timeout_s):
                async with self._ask(exact_json.dumps(ask.body), _PROBE_DROPS, ask.purpose) as response:
                    response.decode()
                    raw = await response.read_up_to(self._proxy.limits.max_held_bytes)
                    answer = read(raw, orjson.loads)
                    if self._trace is not None and answer is not None:
                        self._trace.answered(answer)
        except TimeoutError:
            failure = "timeout"
        except UpstreamError as error:
            failure = error.reason
        finally:
            taken = perf_counter() - start
            self._waited_s += taken
            self._proxy.metrics.probe_seconds.observe(taken)
        if failure:
            self._note(Addition.PROBE, failure)
            return self._exchange.probe_failed(failure)
        if response.status != 200:
            failure = f"status_{response.status}"
            if refuses(response):
                self._note(Addition.PROBE, failure)
            return self._exchange.probe_failed(failure)
        self._note(Addition.PROBE, flaw(answer))
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
        self._learn_from_evidence()
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


def read(raw: bytes, parse: Callable[[bytes], Any]) -> Any:
    """The JSON in `raw`; None where it is none."""
    try:
        return parse(raw)
    except (ValueError, TypeError, KeyError):
        return None


def not_yet(parsed: Any) -> str:
    """What keeps the events of a stream that has not shown anything from becoming a message; "" if nothing
    does so far."""
    if not isinstance(parsed, dict):
        return "unreadable"
    return "error_event" if parsed.get("error") or ends_in_error(parsed) else ""
