"""The application: the proxy, and beside it the few routes of the governor's own."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from governor.decision import Mode
from governor.governance import Governance
from governor.outcomes import Effect, effect_of
from governor.standing import told
from governor_server.access import Access
from governor_server.api_errors import ApiError, described
from governor_server.asgi import Receive, Reply, Scope, Send, in_time
from governor_server.balancer import Balancer, Member, is_healthy
from governor_server.current import new_name
from governor_server.dashboard.routes import Dashboard, dashboard_routes, is_of_page, is_private
from governor_server.errors import SettingsError
from governor_server.extras import how_to_install
from governor_server.feedback import EFFECT, FEEDBACK, FeedbackStore, feedback_routes
from governor_server.gatekeeper import CALIBRATED, Gatekeeper
from governor_server.metrics import Metrics, process_registry
from governor_server.paths import is_chat
from governor_server.proxy import Proxy
from governor_server.readiness import until_ready
from governor_server.settings import Settings, TracingSettings
from governor_server.shared import Shared, lease_s
from governor_server.store import RecordStore
from governor_server.transcripts import TranscriptStore
from governor_server.turns import TurnStore
from governor_server.upstream import Upstream, UpstreamError
from governor_server.volatile import VolatileTools

if TYPE_CHECKING:
    from governor_server.tracing.tracing import Tracing

METRICS = "/metrics"
OPEN = frozenset({"/healthz", "/readyz"})
"""Routes that tell nothing but whether the proxy works."""
OPERATORS = frozenset(
    {
        "/governor/gates",
        "/governor/decisions",
        "/governor/refusals",
        "/governor/volatile",
        FEEDBACK,
        EFFECT,
    }
)
OWN = OPEN | OPERATORS | {METRICS}
READY_TIMEOUT_S = 2.0
VERSION = importlib.metadata.version("tool-governor")

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    upstream_url: str,
    registry: CollectorRegistry | None = None,
    call_start_id: int | None = None,
    vocab_size: int | None = None,
) -> GovernorApp:
    """The ASGI application that governs the server at `upstream_url`.

    `vocab_size` and `call_start_id` (the id of the token that opens a tool call) are the model's, where they
    are known; without the id, upstream is asked for it. Run it with a server that adds no `date` and `server`
    headers of its own: upstream's go on to the client.
    """
    return GovernorApp(
        settings, upstream_url, Metrics(registry or process_registry()), call_start_id, vocab_size
    )


class GovernorApp:
    """Dispatches: chat completions to be governed, the governor's own routes, the rest to upstream."""

    def __init__(
        self,
        settings: Settings,
        upstream_url: str,
        metrics: Metrics,
        call_start_id: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self.problem_at_start = ""
        self.access = Access(settings.auth, trusts_upstream=settings.upstream.api_key is None)
        self.upstream = self._balanced(upstream_url)
        url = settings.store.redis_url
        self.shared = Shared(url.get_secret_value(), metrics.store_errors_total.inc) if url else None
        self.store = RecordStore(
            settings.store.path,
            max_records=settings.store.max_records,
            ttl_s=settings.store.ttl_s,
            keep_text=settings.store.keep_text,
            shared=self.shared,
            on_error=metrics.store_errors_total.inc,
        )
        self.feedback = FeedbackStore(
            settings.store.path,
            max_items=settings.store.max_records,
            ttl_s=settings.store.ttl_s,
            shared=self.shared,
            on_error=metrics.store_errors_total.inc,
        )
        self.volatile = VolatileTools(
            settings.store.path,
            ttl_s=settings.store.ttl_s,
            shared=self.shared,
            on_error=metrics.store_errors_total.inc,
        )
        self.turns = TurnStore(
            settings.store.path,
            max_turns=settings.store.max_records,
            ttl_s=settings.store.ttl_s,
            shared=self.shared,
            on_error=metrics.store_errors_total.inc,
        )
        self.transcripts: TranscriptStore | None = None
        if settings.store.keep_conversations:
            self.transcripts = TranscriptStore(
                settings.store.path,
                max_turns=settings.store.max_records,
                ttl_s=settings.store.ttl_s,
                on_error=metrics.store_errors_total.inc,
            )
        metrics.watch(metrics.conversations, lambda: self.store.conversations)
        metrics.watch(metrics.volatile_tools, lambda: len(self.volatile))
        metrics.info.labels(VERSION, settings.governance.mode, settings.governance.policy).set(1)
        self._call_start_id = call_start_id
        self._call_start_unknown = call_start_id is None
        self._vocab_size = vocab_size
        self.proxy = Proxy(
            upstream=self.upstream,
            governance=self._governance(),
            records=self.store,
            turns=self.turns,
            metrics=metrics,
            access=self.access,
            limits=settings.limits,
            clock=time.time,
            new_id=new_name,
            probe_timeout_s=settings.probe.timeout_s,
            max_silence_s=settings.stream.max_silence_s,
            probe_when_observing=settings.observe.probe,
            transcripts=self.transcripts,
            volatile=self.volatile,
            gates_by_tenant=settings.auth.isolation == "full",
        )
        self.tracing = self.proxy.tracing = self._traced(settings.tracing)
        metrics.watch(metrics.running_requests, lambda: self.proxy.slots.running)
        metrics.watch(metrics.waiting_requests, lambda: self.proxy.slots.waiting)
        metrics.watch(metrics.paused_additions, lambda: self.proxy.refusals.paused)
        self.gatekeeper: Gatekeeper | None = None
        if settings.governance.policy == CALIBRATED:
            self.gatekeeper = Gatekeeper(
                settings.calibration,
                settings.governance.rules(),
                records=lambda: self.store.recent(settings.store.max_records),
                changed=self._govern,
                by_tenant=settings.auth.isolation == "full",
                shared=self.shared.gates(lease_s(settings.calibration.renew_s)) if self.shared else None,
                clock=time.time,
            )
            self.gatekeeper.load()
        self._govern()
        self.version = VERSION
        self.dashboard = Dashboard(self)
        self._own = own_routes(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "websockets are not proxied"})
        elif scope["method"] == "POST" and is_chat(scope["path"]):
            await self.proxy.chat(scope, receive, send)
        elif scope["path"] in OWN or is_of_page(scope["path"]):
            await self._own_route(scope, receive, send)
        else:
            await self.proxy.forward(scope, receive, send)

    async def _own_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The operator's routes need the operator; the metrics do where several clients use the proxy, since
        they tell of all of them together."""
        path = scope["path"]
        try:
            if path in OPERATORS or (path == METRICS and self.access.checked):
                self.access.check_admin(scope)
            elif is_private(path):
                self.dashboard.sessions.check(scope)
        except ApiError as error:
            self.metrics.refused_requests_total.labels(error.type).inc()
            await Reply(send).error(error)
        else:
            await self._own(scope, in_time(receive, self.settings.limits), send)

    def _traced(self, given: TracingSettings) -> Tracing | None:
        if given.endpoint is None:
            return None
        kind = tracing_kind()
        return kind.to(
            given.endpoint,
            sample=given.sample,
            content=given.content,
            fail_open=lambda: self.proxy.fail_open("trace"),
            dropped=self.metrics.dropped_spans_total.inc,
        )

    def _balanced(self, url: str) -> Upstream | Balancer:
        """The server at `url`, and its replicas if there are any."""
        given = self.settings.upstream
        every = [url, *(replica.url for replica in given.replicas)]
        main = Member(self._server(url, every))
        if not given.replicas:
            return main.upstream
        others = [Member(self._server(replica.url, every), replica.weight) for replica in given.replicas]

        def show(url: str, healthy: bool) -> None:
            self.metrics.upstream_up.labels(url).set(healthy)

        return Balancer([main, *others], given.health_interval_s, show)

    def _server(self, url: str, every: Sequence[str]) -> Upstream:
        given = self.settings.upstream
        return Upstream(
            url,
            api_key=given.api_key.get_secret_value() if given.api_key else None,
            connect_timeout_s=given.connect_timeout_s,
            read_timeout_s=given.read_timeout_s,
            pool_timeout_s=given.pool_timeout_s,
            max_connections=given.max_connections,
            same=every,
        )

    def compared(self) -> Effect:
        """What governing did, by all that is kept now. Takes a moment where much is kept: for threads."""
        return effect_of(
            self.turns.all(), self.feedback.scores(), self.settings.prices.build(), self.proxy.clock()
        )

    def drain(self) -> None:
        """Say from now on that no more requests should come."""
        self.draining = True
        self.dashboard.live.end_streams()

    async def check_upstream(self) -> str:
        """Why upstream cannot be asked, "" if it can: whether it answers its health check. What is to be
        learned from it is learned with the first answer."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                healthy = await is_healthy(self.upstream)
                if self._call_start_unknown:
                    await self._learn_call_start()
        except UpstreamError as error:
            return str(error)
        except TimeoutError:
            return f"upstream {self.upstream.url} did not answer within {READY_TIMEOUT_S:g} s"
        return "" if healthy else f"upstream {self.upstream.url} fails its health check (GET /health)"

    async def look_at_upstream(self) -> None:
        """Shows whether upstream answers. Several servers are looked at all the time."""
        if not self.settings.upstream.replicas:
            self.metrics.upstream_up.labels(self.upstream.url).set(not await self.check_upstream())

    def _governance(self) -> Governance:
        return self.settings.build_governance(self._call_start_id, self._vocab_size)

    def _govern(self) -> None:
        """Put in force what is configured, and the gates as they stand."""
        base = self._governance()
        if self.gatekeeper is None:
            self.proxy.governance = base
        else:
            self.proxy.governance = replace(base, mode=Mode.OBSERVE)
            self.proxy.by_model = self.gatekeeper.governances(base)
            for key, standing in self.gatekeeper.standings.items():
                self.metrics.show_gate(told(key), standing)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.upstream:
            self.problem_at_start = await self.check_upstream()
            waiting: asyncio.Task[None] | None = None
            if self.problem_at_start:
                waiting = asyncio.create_task(until_ready(self.problem_at_start, self.check_upstream))
            renewing = asyncio.create_task(self.gatekeeper.run()) if self.gatekeeper else None
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if waiting is not None:
                waiting.cancel()
            if renewing is not None and self.gatekeeper is not None:
                renewing.cancel()
                await asyncio.to_thread(self.gatekeeper.close)
            await self.dashboard.close()
            await self.proxy.close()
        self.store.close()
        self.feedback.close()
        self.volatile.close()
        self.turns.close()
        if self.transcripts is not None:
            self.transcripts.close()
        if self.tracing is not None:
            self.tracing.close()
        if self.shared is not None:
            self.shared.close()
        self.metrics.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _learn_call_start(self) -> None:
        """A ban on the id is surer than one on the text, so ask vLLM's tokenizer for it. Other servers have
        no such route, and are not asked again."""
        prompt = self.settings.call_start_token
        body = orjson.dumps({"prompt": prompt, "add_special_tokens": False})
        headers = [(b"content-type", b"application/json")]
        async with self.upstream.request("POST", b"/tokenize", headers, body) as response:
            answer = await response.read()
        if response.status >= 500 and response.status != 501:
            return  # It is still starting, or something in front of it says so.
        self._call_start_unknown = False
        with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            (self._call_start_id,) = orjson.loads(answer)["tokens"]
            self._govern()


def tracing_kind() -> type[Tracing]:
    """OpenTelemetry is imported where it is asked for. Raises `SettingsError` where it is not installed."""
    try:
        from governor_server.tracing.tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            f"tracing.endpoint needs OpenTelemetry ({error}): {how_to_install('otel')}"
        ) from None
    return Tracing


REFUSALS = described({401: "the key is missing or wrong", 403: "not from another machine without a key"})


async def _in_shape(_: Request, error: Exception) -> Response:
    """What FastAPI refuses, in the shape of all other errors."""
    status, text, headers = 422, "", None
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    elif isinstance(error, HTTPException):
        status, text, headers = error.status_code, error.detail, error.headers
    body = ApiError(status, "invalid_request_error", text).dumped()
    return Response(body, status, headers, media_type="application/json")


def own_routes(app: GovernorApp) -> FastAPI:
    """Health, metrics and decisions."""
    refused: dict[type[Exception] | int, Any] = {RequestValidationError: _in_shape, HTTPException: _in_shape}
    routes = FastAPI(title="tool-governor", openapi_url=None, exception_handlers=refused)
    # For the description: keys are checked before a route is found.
    bearer = HTTPBearer(auto_error=False, description="One of `auth.admin_keys`, where there are any.")
    key = [Depends(bearer)]

    @routes.get("/healthz")
    async def healthz() -> Mapping[str, str]:
        """Whether the process itself works: 200 as long as it can answer."""
        return {"status": "ok"}

    @routes.get("/readyz", responses={503: {"description": "not now"}})
    async def readyz(response: Response) -> Mapping[str, str]:
        """Whether requests should come: 200, or 503 with the reason while the proxy ends, or where upstream
        does not answer its health check within two seconds."""
        if app.draining:
            response.status_code = 503
            return {"status": "draining"}
        if problem := await app.check_upstream():
            response.status_code = 503
            return {"status": "upstream does not answer", "reason": problem}
        return {"status": "ok"}

    @routes.get(METRICS, response_class=PlainTextResponse, responses=REFUSALS, dependencies=key)
    async def metrics() -> Response:
        """What the governor counts, in the text format of Prometheus."""
        await app.look_at_upstream()
        body, content_type = app.metrics.render()
        return Response(body, media_type=None, headers={"content-type": content_type})

    @routes.get("/governor/gates", responses=REFUSALS, dependencies=key)
    async def gates() -> Mapping[str, Any]:
        """Where the calibrated gate of each model stands, with a sentence; empty under another policy."""
        return app.gatekeeper.report() if app.gatekeeper else {}

    @routes.get("/governor/refusals", responses=REFUSALS, dependencies=key)
    async def refusals() -> Mapping[str, Any]:
        """What upstream refused of what the governor adds to requests, and what is therefore left out for
        now: by tenant, model, server and addition. Of the process that answers, where there are several."""
        return {"refusals": app.proxy.refusals.report()}

    @routes.get("/governor/volatile", responses=REFUSALS, dependencies=key)
    async def volatile() -> Mapping[str, Any]:
        """The tools whose calls are never repeats: the patterns that are `configured`, and those `learned`,
        of each tenant, with the times in seconds since the epoch when they first and last gave another answer
        to the same call."""
        learned = [asdict(seen) for seen in app.volatile.all()]
        return {"configured": app.settings.tools.volatile, "learned": learned}

    @routes.get(
        "/governor/decisions",
        responses=REFUSALS | described({422: "no such parameter"}),
        dependencies=key,
    )
    async def decisions(conversation: str = "", limit: int = 100) -> Mapping[str, Any]:
        """The records of the newest `limit` calls, or of all calls of one `conversation`, oldest first: what
        was measured, what was decided and why, and the score that feedback gave the conversation."""
        found = app.store.of_conversation(conversation) if conversation else app.store.recent(limit)
        keep_text = app.settings.store.keep_text
        return {
            "decisions": [
                {**record.as_dict(keep_text=keep_text), "score": app.feedback.score(record.conversation)}
                for record in found
            ]
        }

    for router in (feedback_routes(app.feedback, app.compared), dashboard_routes(app.dashboard)):
        routes.include_router(router, responses=REFUSALS, dependencies=key)
    return routes
