"""The page, its files, and what it asks for."""

from __future__ import annotations

import asyncio
import html
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from governor.inspection import inspection
from governor.overview import REDUCTIONS, Overview, Talk, Tally, would_withhold
from governor.records import CallRecord
from governor.standing import Standing
from governor.transcript import Transcript
from governor_server.api_errors import described
from governor_server.dashboard.assets import GUARDS, LASTING, PRIVATE, Assets
from governor_server.dashboard.health import Health
from governor_server.dashboard.live import MOST_VIEWERS, Live
from governor_server.dashboard.sessions import PATH, Sessions
from governor_server.dashboard.whatif import Question, WhatIf, WhatIfFailed
from governor_server.feedback import InvalidFeedback, bounded_body
from governor_server.tenants import tenant_of

if TYPE_CHECKING:
    from governor_server.app import GovernorApp

API: Final = f"{PATH}/api/"
EVENTS: Final = f"{PATH}/events"
MOST_ROWS: Final = 200
RETRY_MS: Final = 2000
WRONG_KEY: Final = "This key is not known. `governor key` makes one."
NO_KEYS: Final = (
    "Without auth.admin_keys the dashboard answers to this machine only. `governor key` makes a key for the "
    "operator."
)
JSON: Final = "application/json"
log = logging.getLogger(__name__)

Only = Literal["", "withheld", "spared", "explored", "pruned"]
ONLY: Final[Mapping[str, Callable[[CallRecord], bool]]] = {
    "withheld": lambda record: not record.passed,
    "spared": would_withhold,
    "explored": lambda record: record.explored,
    "pruned": lambda record: bool(record.stub),
}


def is_of_page(path: str) -> bool:
    """Whether a path is the page's."""
    return path == PATH or path.startswith(f"{PATH}/")


def is_private(path: str) -> bool:
    """Whether a path tells what only the operator may know; the other paths look for themselves."""
    return path.startswith(API) or path == EVENTS


class Dashboard:
    """All that the page needs of the application."""

    def __init__(self, app: GovernorApp) -> None:
        self._app = app
        self._health = Health()
        self.assets = Assets()
        self.sessions = Sessions(app.access)
        self.live = Live(
            records=lambda: app.store.recent(app.settings.store.max_records),
            turns=app.turns.all,
            scores=app.feedback.scores,
            told=self._told,
            prices=app.settings.prices.build(),
            ask=app.look_at_upstream,
            clock=time.time,
        )
        self.whatif = WhatIf(self._question)

    async def close(self) -> None:
        """Let go of those who look."""
        self.whatif.close()
        await self.live.close()

    def _told(self, overview: Overview, now: float) -> Mapping[str, Any]:
        settings, keeper = self._app.settings, self._app.gatekeeper
        return {
            "version": self._app.version,
            "mode": settings.governance.mode,
            "policy": settings.governance.policy,
            "currency": settings.prices.currency,
            "max_harm": settings.calibration.max_harm,
            "confidence": settings.calibration.confidence,
            "holdout": settings.experiment.holdout,
            "read_only": bool(settings.tools.read_only),
            "gates": keeper.report() if keeper else None,
            "health": self._health.look(self._app.metrics.current(), now),
        }

    def _question(self) -> Question:
        app = self._app
        standings: dict[str, Standing] = {}
        for (_, model), standing in sorted((app.gatekeeper.standings if app.gatekeeper else {}).items()):
            standings.setdefault(model, standing)
        return Question(
            app.store.recent(app.settings.store.max_records),
            app.settings.governance,
            standings,
            app.settings.calibration.max_harm,
            app.settings.calibration.confidence,
        )

    def tools(self) -> dict[str, Any]:
        """JSON-ready: each tool's figures, and the edges of the distributions."""
        with self.live.overview() as overview:
            rows = [{"tool": tool, **tally.as_dict()} for tool, tally in overview.by_tool().items()]
        return {"edges": REDUCTIONS, "tools": rows}

    def conversations(self, text: str, arm: str, only: Only, start: int, many: int) -> dict[str, Any]:
        """JSON-ready: a row for each conversation that fits, last changed first."""
        words = text.casefold()

        def wanted(talk: Talk) -> bool:
            calls = talk.calls.values()
            return (
                (not arm or talk.arm == arm)
                and (not only or any(ONLY[only](call) for call in calls))
                and (not words or any(_mentions(call, words) for call in calls))
            )

        with self.live.overview() as overview:
            names, count = overview.newest(wanted, start, many)
            rows = [_row(name, overview.talks[name], overview.score_of(name)) for name in names]
        return {"conversations": rows, "count": count, "start": start}

    def conversation(self, name: str) -> dict[str, Any] | None:
        """JSON-ready: a conversation turn by turn, None where none of that name is kept."""
        app = self._app
        records = app.store.of_conversation(name)
        transcripts: Sequence[Transcript] = app.transcripts.turns(name) if app.transcripts else ()
        if not records and not transcripts:
            return None
        return {
            "conversation": name,
            "tenant": tenant_of(name),
            "arm": records[0].arm if records else "",
            "model": records[0].model if records else transcripts[0].model,
            "score": app.feedback.score(name),
            "keep_text": app.settings.store.keep_text,
            "keep_conversations": app.settings.store.keep_conversations,
            "turns": inspection(
                records,
                transcripts,
                keep_text=app.settings.store.keep_text or app.settings.store.keep_conversations,
            ),
        }

    def index(self) -> str:
        """The page itself."""
        return self.assets.page("index.html").replace("@SESSION@", "key" if self.sessions.by_key else "none")

    def sign_in(self, failure: str = "") -> str:
        """The page that asks for a key, or says why there is none to ask for."""
        shown = failure or ("" if self.sessions.by_key else NO_KEYS)
        page = self.assets.page("login.html")
        return page.replace("@FAILURE@", html.escape(shown)).replace(
            "@FORM@", "form" if self.sessions.by_key else "none"
        )


def dashboard_routes(dashboard: Dashboard) -> APIRouter:
    """The page at `/dashboard`, its files, and its API."""
    routes = APIRouter()
    sessions, live = dashboard.sessions, dashboard.live

    @routes.get(PATH)
    async def page(request: Request, failed: bool = False) -> Response:
        """The dashboard, for a browser. Where the operator has keys, it asks for one first; `failed`: the
        last one was wrong."""
        if sessions.admits(request.scope):
            return _html(dashboard.index(), 200)
        return _html(dashboard.sign_in(WRONG_KEY if failed else ""), 401 if sessions.by_key else 403)

    @routes.post(f"{PATH}/login")
    async def login(request: Request) -> Response:
        """Begins a session with the operator's key, which the form has as `key`. The session is a cookie for
        the dashboard alone, and ends after twelve hours or with the process."""
        try:
            form = parse_qs((await bounded_body(request)).decode("utf-8", "replace"))
        except (InvalidFeedback, ClientDisconnect):
            form = {}
        cookie = sessions.begin(form.get("key", [""])[0].strip(), request.scope)
        if cookie is None:
            return Response(status_code=303, headers={**PRIVATE, "location": "../dashboard?failed=true"})
        headers = {**PRIVATE, "location": "../dashboard", "set-cookie": cookie}
        return Response(status_code=303, headers=headers)

    @routes.post(f"{PATH}/logout")
    async def logout(request: Request) -> Response:
        """Ends the session."""
        headers = {**PRIVATE, "location": "../dashboard", "set-cookie": sessions.end(request.scope)}
        return Response(status_code=303, headers=headers)

    @routes.get(f"{PATH}/static/{{version}}/{{name}}")
    async def static(request: Request, version: str, name: str) -> Response:
        """A file of the page. `version` changes with the files, so that a browser may keep them."""
        asset = dashboard.assets.file(name)
        if asset is None or not (sessions.by_key or sessions.admits(request.scope)):
            return Response(status_code=404, headers=PRIVATE)
        headers = LASTING if version == dashboard.assets.version else {**GUARDS, "cache-control": "no-cache"}
        return Response(asset.body, media_type=None, headers={**headers, "content-type": asset.type})

    @routes.get(f"{API}overview", responses=described({503: "not known yet"}))
    async def overview() -> Response:
        """The figures of the overview: what the events bring, once."""
        body = await live.body()
        if not body:
            raise _refused(503, "nothing is known yet: ask again")
        return Response(body, 200, PRIVATE, JSON)

    @routes.get(EVENTS)
    async def events() -> Response:
        """The same figures as server-sent events, once a second while they change. Everybody who looks gets
        the same ones."""
        if live.viewers >= MOST_VIEWERS or live.closed:
            return Response(status_code=503, headers=PRIVATE)
        headers = {**PRIVATE, "x-accel-buffering": "no"}
        return StreamingResponse(_events(live), media_type="text/event-stream", headers=headers)

    # Each waits for a look, which a thread of its own makes, and leaves the counting to threads.
    @routes.get(f"{API}tools")
    async def tools() -> Response:
        """Each tool: how often it was called, withheld and of value, and how its results changed the
        entropy, as a distribution."""
        await live.body()
        return _json(await asyncio.to_thread(dashboard.tools))

    @routes.get(f"{API}conversations", responses=described({422: "no such parameter"}))
    async def conversations(
        text: str = "", arm: str = "", only: Only = "", start: int = 0, limit: int = 50
    ) -> Response:
        """The conversations, last changed first, `limit` of them (at most 200) from `start` on. `text` is
        part of the name or of a tool's name, `arm` is `governed`, `holdout` or `observed`, and `only` asks
        for those with a call that was `withheld`, `spared` (passed against the policy), `explored` or
        `pruned`."""
        many = min(max(limit, 1), MOST_ROWS)
        await live.body()
        return _json(await asyncio.to_thread(dashboard.conversations, text, arm, only, max(start, 0), many))

    # Not a coroutine, so that a thread waits for the disk.
    @routes.get(f"{API}conversation/{{name:path}}", responses=described({404: "no such conversation"}))
    def conversation(name: str) -> Response:
        """A conversation turn by turn: what was measured, each decision with its reason, the forced answers,
        and what would have been otherwise. Texts and the entropy of each token only where
        `store.keep_conversations` has them kept."""
        found = dashboard.conversation(name)
        if found is None:
            raise _refused(404, "no such conversation")
        return _json(found)

    @routes.get(f"{API}whatif", responses=described({503: "it could not be worked out"}))
    async def whatif() -> Response:
        """For a scale of bounds on the harm: which setting of each policy would be certified on the recorded
        conversations, and what it would have saved. Takes seconds, and is kept for a minute."""
        try:
            return _json(await dashboard.whatif.answer())
        except WhatIfFailed as error:
            log.warning("what if: %s", error)
            raise _refused(503, f"the answer could not be worked out: {error}") from None

    return routes


async def _events(live: Live) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async for body in live.bodies():
        yield b"event: tick\ndata: " + body + b"\n\n" if body else b": still here\n\n"


def _html(page: str, status: int) -> Response:
    return Response(page, status, PRIVATE, "text/html")


def _refused(status: int, text: str) -> HTTPException:
    return HTTPException(status, text, dict(PRIVATE))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), 200, PRIVATE, JSON)


def _mentions(call: CallRecord, words: str) -> bool:
    return words in call.conversation.casefold() or words in call.tool.casefold()


def _row(name: str, talk: Talk, score: float | None) -> dict[str, Any]:
    records = talk.records
    tally = Tally.of(records)
    before = [record.entropy_before for record in records if record.entropy_before is not None]
    after = [record.entropy_after for record in records if record.entropy_after is not None]
    return {
        "conversation": name,
        "arm": talk.arm,
        "began": records[0].created,
        "last": records[-1].created,
        "tools": list(dict.fromkeys(record.tool for record in records)),
        "calls": tally.calls,
        "withheld": tally.withheld,
        "spared": tally.spared,
        "pruned": tally.pruned,
        "changed": tally.changed,
        "labelled": tally.labelled,
        "entropy_first": before[0] if before else None,
        "entropy_last": after[-1] if after else None,
        "score": score,
    }
