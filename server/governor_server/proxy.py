"""The proxy: raw ASGI to the client, `Upstream` to the server, `Exchange` in between.

A chat completion that may be governed goes through an `Exchange`; everything else goes through untouched.
What the exchange decides is acted on here, and whatever fails here or in the core fails open: the client gets
what upstream sent.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from governor.conversation import AnsweredCall, answered_calls, reply_origins
from governor.exchange import Exchange, Explain, Purpose
from governor.governance import Governance
from governor.records import CallRecord
from governor.request import Json, untouched
from governor.transcript import Transcript
from governor.turn_record import TurnRecord
from governor_server import exact_json
from governor_server.access import PREFLIGHT, Access, Caller
from governor_server.api_errors import ApiError, Headers
from governor_server.asgi import (
    REQUEST_ID,
    ClientGone,
    Receive,
    Reply,
    Scope,
    Send,
    Upload,
    gone,
    header,
    read_body,
    target,
    until_gone,
)
from governor_server.balancer import Balancer
from governor_server.current import SANE_ID, CurrentRequest, current, current_trace, request_id
from governor_server.governed_chat import GovernedChat
from governor_server.keep_alive import Sleep
from governor_server.limits import (
    LimitSettings,
    Slots,
    bad_request,
    head_size,
    headers_too_large,
    not_proxied,
)
from governor_server.logs import fields
from governor_server.metrics import Metrics
from governor_server.refusals import Refusals
from governor_server.tenants import conversation_name, qualified
from governor_server.ungoverned import UngovernedRequests, other_api
from governor_server.upstream import Body, Upstream, UpstreamError, UpstreamResponse, requested

if TYPE_CHECKING:
    from governor_server.tracing.tracing import Tracing

MAX_RUNNING_REVIEWS = 64
"""Reviews of observed calls at the same time; others wait."""
MAX_REVIEWS = 512
"""With those that wait; past this many they are dropped and counted."""

NOT_PROXIED = frozenset({"CONNECT", "TRACE"})
"""One asks for a tunnel, the other to be shown the request as upstream got it, with upstream's key."""

PREFLIGHT_HEADERS = frozenset(
    {
        b"origin",
        b"access-control-request-method",
        b"access-control-request-headers",
        b"access-control-request-private-network",
        b"x-request-id",
    }
)
"""All that upstream gets of a browser's question that came without a key."""

PREFLIGHT_PLACES = {
    "max_concurrent_requests": 16,
    "max_queued_requests": 64,
    "max_concurrent_requests_per_tenant": None,
}
"""Few, and of their own: who has no key must not keep out who has one."""

READABLE: Headers = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"retry-after, x-request-id"),
]
"""With these a page may read an error of ours. They allow no request: upstream alone does, by its answer to
the browser's question; and they allow no cookies."""

log = logging.getLogger(__name__)


EXPLAIN = {"1": Explain.DECISIONS, "true": Explain.DECISIONS, "tokens": Explain.TOKENS}

Handler = Callable[[Scope, Caller, Receive, Reply], Coroutine[Any, Any, None]]


class Records(Protocol):
    """What the proxy needs of a record store, as `RecordStore` has it."""

    def find(
        self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = ""
    ) -> Mapping[str, CallRecord]: ...

    def owner(self, tenant: str, calls: Sequence[AnsweredCall], replies: Iterable[str] = ()) -> str: ...

    def began(self, conversation: str) -> float | None: ...

    def put(self, record: CallRecord) -> None: ...

    def latest(self, record: CallRecord) -> CallRecord: ...

    async def shared(self) -> None: ...

    async def expect(self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = "") -> None: ...


class Turns(Protocol):
    """Keeps what the turns of conversations took, for comparing them."""

    def put(self, turn: TurnRecord, /) -> None: ...


class Transcripts(Protocol):
    """Where the texts of conversations are kept, if they are."""

    def put(self, transcript: Transcript) -> None: ...


class Volatile(Protocol):
    """Which tools change their answers by themselves, as `VolatileTools` has it."""

    def of(self, tenant: str) -> frozenset[str]: ...

    def learn(self, tenant: str, tools: Iterable[str]) -> None: ...


@dataclass(slots=True)
class Proxy:
    """What all requests share. `governance` may be replaced while the proxy runs; `by_model` holds those of
    models that are governed otherwise, by tenant and model; by "" and model for tenants of whom nothing is
    said, and for all where `gates_by_tenant` is False.

    `clock` gives seconds since the epoch; `sleep` waits for some; `new_id` gives a name for a conversation
    that has none yet.
    """

    upstream: Upstream | Balancer
    governance: Governance
    records: Records
    metrics: Metrics
    access: Access
    limits: LimitSettings
    clock: Callable[[], float]
    new_id: Callable[[], str]
    probe_timeout_s: float = 10.0
    max_silence_s: float = 4.0
    sleep: Sleep = asyncio.sleep
    probe_when_observing: bool = True
    by_model: Mapping[tuple[str, str], Governance] = field(default_factory=dict)
    gates_by_tenant: bool = True
    transcripts: Transcripts | None = None
    volatile: Volatile | None = None
    turns: Turns | None = None
    tracing: Tracing | None = None
    refusals: Refusals = field(default_factory=Refusals)
    reviews: set[asyncio.Task[None]] = field(default_factory=set)
    slots: Slots = field(init=False)
    preflight_slots: Slots = field(init=False)
    ungoverned: UngovernedRequests = field(init=False)
    _last_reviews: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _review_places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = Slots(self.limits)
        self.preflight_slots = Slots(self.limits.model_copy(update=PREFLIGHT_PLACES))
        self.ungoverned = UngovernedRequests(self.metrics.count_ungoverned)
        self._review_places = asyncio.Semaphore(MAX_RUNNING_REVIEWS)

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

    async def _answer(self, scope: Scope, receive: Receive, send: Send, handler: Handler, route: str) -> None:
        start = perf_counter()
        request = CurrentRequest(request_id(header(scope, REQUEST_ID)), route)
        reply = Reply(send, request.id)
        current.set(request)
        if self.tracing is not None:
            request.trace = self.tracing.begin(scope, request.id, scope["path"] if route == "chat" else "")
        try:
            self._check_head(scope)
            caller = self.access.caller(scope)
            request.tenant = caller.tenant
            await handler(scope, caller, receive, reply)
        except ClientGone:
            reply.status = reply.status or 499
        except ApiError as error:
            await self._tell(error, reply, scope)
        except Exception as error:
            log_failure("an error in the proxy", error)
            failed = ApiError(500, "internal_error", "The proxy failed; its log says where.")
            await self._tell(failed, reply, scope)
        finally:
            self.metrics.requests.labels(route, str(reply.status or 499)).inc()
            if request.trace is not None:
                request.trace.end(reply.status or 499, request.tenant)
            if log.isEnabledFor(logging.INFO):
                log_answer(scope, request, reply, perf_counter() - start)

    def _check_head(self, scope: Scope) -> None:
        """Refuse what cannot be handed on, whoever asks. Raises `ApiError`."""
        if head_size(scope.get("raw_path") or b"", scope["headers"]) > self.limits.max_header_bytes:
            raise headers_too_large(self.limits.max_header_bytes)
        if scope["method"] in NOT_PROXIED:
            raise not_proxied(scope["method"])
        if not target(scope).startswith(b"/"):
            raise bad_request("The request's target is no path")

    async def _tell(self, error: ApiError, reply: Reply, scope: Scope) -> None:
        """To the client, unless its answer has begun: an unfinished body is how it learns of it then."""
        if (trace := current_trace()) is not None:
            trace.failed(error.type)
        if isinstance(error, UpstreamError):
            log.warning("%s", error)
            self.metrics.upstream_failures_total.labels(error.reason).inc()
        else:
            self.metrics.refused_requests_total.labels(error.type).inc()
        if not reply.status:
            more = list(READABLE) if header(scope, b"origin") else []
            if header(scope, b"expect"):
                # The client may send its body all the same or not: what comes next is not known.
                more.append((b"connection", b"close"))
            await reply.error(error, more)

    async def _chat(self, scope: Scope, caller: Caller, receive: Receive, reply: Reply) -> None:
        start = perf_counter()
        raw = await read_body(scope, receive, self.limits)
        await until_gone(gone(receive), self._governed(scope, caller, raw, reply, start))

    async def _governed(self, scope: Scope, caller: Caller, raw: bytes, reply: Reply, start: float) -> None:
        came = perf_counter()
        async with self.slots.place(caller.tenant):
            waited_s = perf_counter() - came
            chat: GovernedChat | None = None
            with self.fail_open("request"):
                if (exchange := await self._open(scope, caller, raw)) is not None:
                    chat = GovernedChat(
                        self, scope, caller, raw, exchange, reply, start=start, waited_s=waited_s
                    )
            await (chat.run() if chat else self._relay(scope, caller, raw, reply))

    async def _forward(self, scope: Scope, caller: Caller, receive: Receive, reply: Reply) -> None:
        upload = await Upload.begin(scope, receive, self.limits)
        try:
            await until_gone(upload.gone(), self._uploaded(scope, caller, upload, reply))
        except (ClientGone, UpstreamError):
            # A body of which the rest does not come breaks the request off, and an answer that has begun.
            if upload.failure is not None:
                raise upload.failure from None
            raise

    async def _uploaded(self, scope: Scope, caller: Caller, upload: Upload, reply: Reply) -> None:
        body = upload.body
        if scope["method"] == "POST" and (api := other_api(scope["path"])) is not None:
            body = self.ungoverned.watched(api, body)
        slots = self.preflight_slots if caller is PREFLIGHT else self.slots
        async with slots.place(caller.tenant):
            await self._relay(scope, caller, body, reply)

    async def _relay(self, scope: Scope, caller: Caller, body: Body, reply: Reply) -> None:
        headers = requested(scope["headers"], drop=caller.withheld)
        with_key = caller is not PREFLIGHT
        if not with_key:
            headers = [pair for pair in headers if pair[0] in PREFLIGHT_HEADERS]
        async with self.ask(scope["method"], target(scope), headers, body, with_key=with_key) as response:
            self.metrics.count_upstream(response.status)
            await reply.relay(response)

    def ask(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: Body,
        affinity: str = "",
        purpose: Purpose = Purpose.REQUEST,
        *,
        with_key: bool = True,
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """As `Upstream.request`, and in a span where the request that this is for is traced."""
        request = current.get()
        if request is None or request.trace is None:
            return self.upstream.request(method, target, headers, body, affinity, with_key=with_key)
        chat = request.route == "chat"
        return request.trace.asking(
            self.upstream,
            method,
            target,
            headers,
            body,
            affinity,
            purpose,
            request.model if chat else None,
            with_key=with_key,
        )

    async def _open(self, scope: Scope, caller: Caller, raw: bytes) -> Exchange | None:
        """The exchange for a request that may be governed, else None."""
        if header(scope, b"x-governor") == "off":
            self.ungoverned.add_chat(None, raw, off=True)
            return None
        try:
            body = exact_json.loads(raw)
        except ValueError:
            self.ungoverned.add_chat(None, raw, off=False)
            return None
        if (request := current.get()) is not None and isinstance(body, dict):
            request.model = str(body.get("model") or "")
        if untouched(body) is not None:
            self.ungoverned.add_chat(body, raw, off=False)
            return None
        return await self._exchange(scope, caller.tenant, body)

    async def _exchange(self, scope: Scope, tenant: str, body: Json) -> Exchange:
        calls = answered_calls(body["messages"])
        given = header(scope, b"x-governor-conversation")
        conversation = conversation_name(tenant, given) if given else ""
        await self.records.expect(tenant, calls, conversation)
        conversation = conversation or self.records.owner(tenant, calls, reply_origins(body["messages"]))
        conversation = conversation or qualified(tenant, self.new_id())
        model = str(body.get("model"))
        exchange = Exchange(
            body,
            self._governance(tenant, model),
            records=self.records.find(tenant, calls, conversation),
            history=calls,
            conversation=conversation,
            began=self.records.began(conversation),
            now=self.clock(),
            explain=EXPLAIN.get(header(scope, b"x-governor-explain").lower(), Explain.NO),
            probe_when_observing=self.probe_when_observing,
        )
        # At once, so that no other request whose history looks the same is taken for this one.
        for record in exchange.returned_records():
            self.records.put(record)
        if self.volatile is not None:
            with self.fail_open("record"):
                self.volatile.learn(tenant, exchange.changed_tools)
        return exchange

    def _governance(self, tenant: str, model: str) -> Governance:
        own = self.by_model.get((tenant, model)) if self.gates_by_tenant else None
        governance = own or self.by_model.get(("", model), self.governance)
        if self.volatile is None or not (learned := self.volatile.of(tenant)):
            return governance
        return replace(governance, catalog=governance.catalog.with_volatile(learned))

    def fail_open(self, where: str) -> FailOpen:
        """Counts an exception of the governor instead of raising it."""
        return FailOpen(self.metrics, where)

    def review(self, conversation: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run `work` beside the requests, after what runs for the same conversation. False where too much
        waits already."""
        if len(self.reviews) >= MAX_REVIEWS:
            self.metrics.fail_open_total.labels("review_queue").inc()
            return False
        task = asyncio.create_task(self._reviewed(self._last_reviews.get(conversation), work))
        self.reviews.add(task)
        self._last_reviews[conversation] = task

        def done(task: asyncio.Task[None]) -> None:
            self.reviews.discard(task)
            if self._last_reviews.get(conversation) is task:
                del self._last_reviews[conversation]

        task.add_done_callback(done)
        return True

    def is_reviewing(self, conversation: str) -> bool:
        """Whether something still runs beside the requests of a conversation."""
        return conversation in self._last_reviews

    async def _reviewed(
        self, earlier: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        if earlier is not None:
            await asyncio.wait({earlier})
        async with self._review_places:
            await work()


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
        log_failure(f"failing open in {self._where}", error)
        self._metrics.fail_open_total.labels(self._where).inc()
        return True


def log_answer(scope: Scope, request: CurrentRequest, reply: Reply, seconds: float) -> None:
    """The line of one request. The path is told as it came: so it has no end of a line in it."""
    method, path = scope["method"][:16], target(scope).partition(b"?")[0].decode("latin-1")[:256]
    status, decided = reply.status or 499, request.told()
    told: dict[str, Any] = {"method": method, "path": path, "route": request.route, "status": status}
    told |= {"seconds": round(seconds, 6), "decisions": request.decisions, "proposed": request.proposed}
    if reply.upstream_id != request.id and SANE_ID.fullmatch(reply.upstream_id):
        told["upstream_request_id"] = reply.upstream_id
    shown = f": {decided}" if decided else ""
    log.info("%s %s %d in %.3f s%s", method, path, status, seconds, shown, extra=fields(**told))


def log_failure(what: str, error: BaseException) -> None:
    """Where an exception came from, and its kind. Its words may be those of a prompt or a result, so that
    only the level `debug` tells them."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", what, type(error).__name__, frames)
    log.debug("%s", error)
