"""A proxy with an upstream, through which one case after the other goes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import aiohttp
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from yarl import URL

from governor_server import upstream as connections
from governor_server.current import current
from governor_server.refusals import Refusals
from governor_server.tracing.tracing import Tracing
from tests.fuzz.cases import Case
from tests.fuzz.verdict import MAX_HELD_BYTES, Seen, wrong, wrong_framing
from tests.server.framings import Fate, Framed
from tests.server.scripted_upstream import Answer, Proxied, Received, ScriptedUpstream, proxied, scripted
from tests.server.two_tenants import Wire

DEADLINE_S = 60.0
"""Of one case. The longest that a case may wait for by its settings is a third of that."""
READ_TIMEOUT_S = 4.0
PROBE_TIMEOUT_S = 2.0
LAST_MOMENT_S = 2.0
"""How long the proxy waits here for the end of a body that has said `[DONE]`. On a busy machine upstream may
break off after the tenth of a second that it waits elsewhere, and the client's answer is whole then."""
EXPECTED = (
    "failing open in",
    "upstream http",
    "ASGI callable returned without completing response",
    "a request with tools is not governed",
)
"""Lines of the log that say what is to be said: garbage came, and the client has what it would have had; or
upstream broke off, and so does our answer."""


class Nowhere(SpanExporter):
    """Takes all spans, and forgets them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Complaints(logging.Handler):
    """What the log says of each case that should not be said, and how often it failed open where."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.of: dict[str, list[str]] = {}
        self.open: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        request = current.get()
        text = record.getMessage()
        first = text.partition("\n")[0]
        if first.startswith("failing open in"):
            frames = [line.strip() for line in text.splitlines() if line.startswith("  File ")]
            where = frames[-1].rpartition("/")[2] if frames else ""
            self.open[f"{first.removeprefix('failing open in ')} ({where})"] += 1
        if not first.startswith(EXPECTED) or "in trace" in first or record.exc_info:
            detail = logging.Formatter().format(record)
            self.of.setdefault(request.id if request is not None else "", []).append(detail)


@dataclass(slots=True)
class Played(ScriptedUpstream):
    """Answers the client's requests with those of `script`, and the governor's own with those of `later`."""

    later: deque[Answer] = field(default_factory=deque)
    given: list[Answer] = field(default_factory=list)

    def answer_to(self, request: Received) -> Answer:
        queue = self.script if request.header("x-request-id") is not None else self.later
        answer = queue.popleft() if queue else Answer([b"{}"])
        self.given.append(answer)
        return answer


@dataclass(slots=True)
class Lane:
    """One proxy and its upstream."""

    upstream: Played
    proxy: Proxied
    complaints: Complaints

    async def run(self, case: Case) -> str:
        """Play a case; returns what is wrong, "" if nothing is."""
        self.upstream.script = deque(case.first)
        self.upstream.later = deque(case.later)
        self.upstream.received.clear()
        self.upstream.given.clear()
        # What upstream refused in one case is nothing to the next one, which could not be played alone else.
        self.proxy.app.proxy.refusals = Refusals()
        before = self._withheld()
        try:
            async with asyncio.timeout(DEADLINE_S):
                seen = await self._ask(case)
                await self._settled()
        except TimeoutError:
            return f"no end after {DEADLINE_S:.0f} seconds"
        said = self.complaints.of.pop(case.headers["x-request-id"], [])
        if said:
            return "in the log: " + "\n".join(said)
        if seen is None:
            return ""
        acted = self._withheld() > before
        judge = wrong if case.framed is None else wrong_framing
        return judge(case, seen, self.upstream.received, self.upstream.given, acted)

    async def _ask(self, case: Case) -> Seen | None:
        return await (self._ask_as_usual(case) if case.framed is None else self._ask_framed(case.framed))

    async def _ask_framed(self, framed: Framed) -> Seen:
        async with Wire.to(self.proxy.url) as wire:
            wire.writer.write(framed.raw)
            if framed.fate is Fate.BREAKS_OFF:
                wire.end()
            try:
                seen = await wire.answer(head_only=framed.method == "HEAD")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                return Seen(0, [], b"", False, repr(error))
        return Seen(seen.status, [], seen.body, seen.whole)

    async def _ask_as_usual(self, case: Case) -> Seen | None:
        body, status = b"", 0
        headers: Mapping[str, str] = {}
        url = URL(f"{self.proxy.url}/v1/chat/completions")
        try:
            async with self.proxy.client.post(url, data=case.body, headers=case.headers) as response:
                status, headers = response.status, response.headers
                async for piece in response.content.iter_any():
                    body += piece
                    if case.leaves is not None and len(body) > case.leaves:
                        return None
        except aiohttp.ClientError as error:
            return Seen(status, list(headers.items()), body, False, "" if status else repr(error))
        return Seen(status, list(headers.items()), body, True)

    async def _settled(self) -> None:
        """Returns once nothing of the case runs any more: no place may be lost."""
        proxy = self.proxy.app.proxy
        while proxy.slots.running or proxy.slots.waiting or proxy.reviews:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _withheld(self) -> float:
        (metric,) = self.proxy.app.metrics.tool_calls.collect()
        return sum(
            sample.value
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["decision"] != "pass"
        )


@asynccontextmanager
async def lane(mode: str, complaints: Complaints) -> AsyncIterator[Lane]:
    """A lane that runs."""
    async with AsyncExitStack() as stack:
        stack.enter_context(patch.object(connections, "LAST_MOMENT_S", LAST_MOMENT_S))
        upstream = await stack.enter_async_context(scripted(kind=Played))
        proxy = await stack.enter_async_context(
            proxied(
                upstream,
                mode,
                tools={"read_only": ["lookup", "find*", "get_*"], "effectful": ["book"]},
                upstream={"read_timeout_s": READ_TIMEOUT_S},
                probe={"timeout_s": PROBE_TIMEOUT_S},
                experiment={"holdout": 0, "exploration": 0.1, "labels": 0.3},
                pruning={"policy": "low_value", "min_tokens": 0},
                limits={"max_held_bytes": MAX_HELD_BYTES},
            )
        )
        assert isinstance(upstream, Played)
        tracing = Tracing(
            Nowhere(),
            InMemoryMetricReader(),
            content=True,
            fail_open=lambda: proxy.app.proxy.fail_open("trace"),
        )
        proxy.app.proxy.tracing = tracing
        try:
            yield Lane(upstream, proxy, complaints)
        finally:
            tracing.close()
