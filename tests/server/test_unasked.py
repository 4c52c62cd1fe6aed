"""Whatever goes wrong, wherever: nothing that only the governor asked for reaches the client."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from governor.request import ClientView
from governor_server.app import GovernorApp, create_app
from governor_server.logprobs_filter import LogprobsFilter
from governor_server.settings import Settings
from governor_server.upstream import UpstreamResponse
from tests.server.bodies import assembled
from tests.wire.generated import Generated, chat, made, stream_bytes

CANARY = "nobody asked for this"
CALL = ("c1", "lookup", '{"country": "Norway"}')
GENERATIONS = (
    Generated(content="Oslo is the capital.", sure=0.6),
    Generated(calls=[CALL]),
    Generated(reasoning="Hm, think.", content='It says "logprobs": {"a": 1}.', calls=[CALL, CALL], top=20),
)
FORCED = Generated(content="Oslo")
QUESTION = {"role": "user", "content": "?"}
HISTORIES = ((QUESTION,), (QUESTION, *made(("c0", *CALL[1:]))))


def marked(body: Mapping[str, Any], asked: int | None) -> dict[str, Any]:
    """A body or chunk in which all that a client does not get that asked for `asked` alternatives (None: for
    no logprobs at all) says so."""
    found = copy.deepcopy(dict(body))
    for choice in found["choices"]:
        for token in (choice.get("logprobs") or {"content": ()})["content"]:
            unasked = [token] if asked is None else token["top_logprobs"][asked:]
            for entry in unasked:
                entry["bytes"] = CANARY
    return found


ODD: Sequence[Any] = (
    {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [{"bytes": CANARY}]}}, None]},
    {"choices": [{"delta": None, "logprobs": CANARY}]},
    {"choices": [{"delta": {"tool_calls": [{"function": {}}]}, "logprobs": {"content": [CANARY]}}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "other"}]}, "logprobs": {"a": CANARY}}]},
    {"choices": [{"index": 0, "logprobs": {"content": [{"token": 1, "top_logprobs": 3, "bytes": CANARY}]}}]},
    {"choices": [7]},
    {"error": {"message": "boom"}},
    [],
)
"""Events that should not be there; their logprobs are those of a client that asked for none."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an answer. `kind` happens at the share `at` of it."""

    kind: str
    at: float
    odd: int = 0


TOO_LARGE = "too large"
BROKEN = ("garbage", "ends", "breaks", "half gzip")
"""What may be cut in the middle of JSON, of which nobody can read the rest."""
FAULTS = (
    "none",
    "ends",
    "breaks",
    "garbage",
    "odd",
    "new ids",
    "other type",
    "other form",
    "gzip",
    "half gzip",
    TOO_LARGE,
)


@dataclass(frozen=True, slots=True)
class Sent:
    """What upstream sends; `breaks`: then its connection breaks."""

    body: bytes
    headers: Sequence[tuple[bytes, bytes]]
    breaks: bool = False
    pieces: int = 7


def faulty(events: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], fault: Fault, stream: bool) -> Sent:
    """An answer with a fault."""
    chunks: list[Any] = [*events]
    place = round(fault.at * len(chunks))
    if fault.kind == "odd":
        chunks.insert(place, ODD[fault.odd])
    if fault.kind == "new ids":
        chunks = [with_new_id(chunk, number) for number, chunk in enumerate(chunks)]
    stream = stream is not (fault.kind == "other form")
    body = stream_bytes(chunks) if stream else json.dumps(whole).encode()
    streamed = stream is not (fault.kind == "other type")
    content_type = b"text/event-stream" if streamed else b"application/json"
    headers = [(b"content-type", content_type)]
    at = outside_of_keys(body, round(fault.at * len(body)))
    if fault.kind in ("ends", "breaks"):
        body = body[:at]
    if fault.kind == "garbage":
        body = body[:at] + b'"}x\\{' + body[at:]
    if fault.kind.endswith("gzip"):
        body = gzip.compress(body)
        body = body[: round(fault.at * len(body))] if fault.kind == "half gzip" else body
        headers.append((b"content-encoding", b"gzip"))
    return Sent(body, headers, fault.kind == "breaks")


def with_new_id(chunk: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Some servers give each delta of a call an id of its own."""
    new = copy.deepcopy(dict(chunk))
    for choice in new["choices"]:
        for call in choice["delta"].get("tool_calls") or ():
            call["id"] = f"call-{number}"
    return new


def outside_of_keys(body: bytes, at: int) -> int:
    """A key that is broken itself is another one, of which nobody knows what it stands for."""
    for key in (b'"logprobs":', b'"top_logprobs":'):
        start = body.rfind(key, 0, at + len(key))
        if start >= 0 and start < at < start + len(key):
            return start
    return at


def can_be_read(line: bytes) -> bool:
    """Whether the most lenient client reads a line of a stream, or a body."""
    try:
        json.loads(line.removeprefix(b"data:").decode("utf-8", "replace"), strict=False)
    except ValueError:
        return False
    return True


class Stub:
    """An upstream without sockets: it answers what was added with `sent`, and forced answers and the client's
    own request as it should."""

    url = "http://stub"

    def __init__(self, sent: Sent, generated: Generated, stream: bool, refuses_forced: bool) -> None:
        self._sent, self._generated, self._stream = sent, generated, stream
        self._refuses_forced = refuses_forced

    def serving(self, affinity: str = "") -> str:
        return self.url

    @asynccontextmanager
    async def request(
        self, method: str, target: bytes, headers: Any, body: bytes = b"", affinity: str = "", **options: Any
    ) -> AsyncIterator[UpstreamResponse]:
        yield self._answer(json.loads(body))

    def _answer(self, request: Mapping[str, Any]) -> UpstreamResponse:
        if request.get("tool_choice") == "none" or "Withheld" in str(request["messages"]):
            status = 500 if self._refuses_forced else 200
            return self._response(self._plainly(FORCED, bool(request["stream"])), status)
        if request.get("top_logprobs") == 20:
            return self._response(self._sent)
        return self._response(self._plainly(replace(self._generated, top=None), self._stream))

    def _plainly(self, generated: Generated, stream: bool) -> Sent:
        return faulty(generated.chunks(), generated.response(), Fault("none", 0), stream)

    def _response(self, sent: Sent, status: int = 200) -> UpstreamResponse:
        headers = {name.decode(): value.decode() for name, value in sent.headers}
        stub = SimpleNamespace(
            status=status,
            raw_headers=tuple(sent.headers),
            headers=headers,
            content_type=headers["content-type"],
            content=Body(sent),
        )
        return UpstreamResponse(cast(aiohttp.ClientResponse, stub), self.url, 0.0)


class Body:
    """The body of an answer, in pieces."""

    def __init__(self, sent: Sent) -> None:
        size = max(1, len(sent.body) // sent.pieces)
        self._left = [sent.body[start : start + size] for start in range(0, len(sent.body), size)]
        self._breaks = sent.breaks

    def at_eof(self) -> bool:
        return not self._left and not self._breaks

    async def readany(self) -> bytes:
        if self._left:
            return self._left.pop(0)
        if self._breaks:
            raise aiohttp.ClientPayloadError
        return b""


def governor(mode: str, max_held_bytes: int) -> GovernorApp:
    """An application of its own; nothing of it is started."""
    configured: dict[str, Any] = {
        "store": {"path": ":memory:"},
        "tools": {"read_only": ["lookup"]},
        "experiment": {"holdout": 0, "exploration": 0, "labels": 0},
        "governance": {"mode": mode, "policy": "threshold"},
        "limits": {"max_held_bytes": max_held_bytes},
    }
    return create_app(
        Settings(**configured), upstream_url="http://stub", registry=CollectorRegistry(), call_start_id=7
    )


async def received(app: GovernorApp, body: bytes) -> bytes:
    """What a client gets."""
    out: list[bytes] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        out.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    await app.proxy.close()
    return b"".join(out)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
@given(
    at=st.floats(0, 1),
    odd=st.integers(0, len(ODD) - 1),
    asked=st.sampled_from([None, 0, 2]),
    generated=st.sampled_from(GENERATIONS),
    history=st.sampled_from(HISTORIES),
    refuses_forced=st.booleans(),
    pieces=st.integers(1, 40),
)
@settings(deadline=None, max_examples=20)
def test_nothing_that_the_governor_asked_for_reaches_the_client(
    mode: str,
    stream: bool,
    kind: str,
    at: float,
    odd: int,
    asked: int | None,
    generated: Generated,
    history: tuple[Any, ...],
    refuses_forced: bool,
    pieces: int,
) -> None:
    """An answer that ends or breaks, garbage, odd events, new ids, another type, compression, too much of it:
    at any place of a stream or a whole response, whatever the client asked for itself."""
    asked = None if kind == "odd" else asked
    wanted: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    fault = Fault(kind, at, odd)
    sent = faulty(
        [marked(chunk, asked) for chunk in generated.chunks(usage=True)],
        marked(generated.response(), asked),
        fault,
        stream,
    )
    app = governor(mode, 300 if kind == TOO_LARGE else 1 << 26)
    stub = Stub(replace(sent, pieces=pieces), generated, stream, refuses_forced)
    app.upstream = app.proxy.upstream = cast(Any, stub)
    body = asyncio.run(received(app, json.dumps(chat(*history, stream=stream, **wanted)).encode()))
    assert b"internal_error" not in body
    shown = b"".join(line for line in body.splitlines() if can_be_read(line)) if kind in BROKEN else body
    assert CANARY.encode() not in shown
    if asked is None:
        assert b'"logprobs":{' not in shown.replace(b" ", b"")


@given(
    at=st.floats(0, 1),
    broken=st.sampled_from([b"", b"\xff", b"\x01", b'"', b"{", b"}", b"]", b"\\", b",", b"NaN"]),
    cut=st.integers(0, 40),
    asked=st.sampled_from([None, 0, 2]),
    ends=st.sampled_from([b"\n\n", b"\r\n\r\n", b""]),
)
@settings(deadline=None, max_examples=200)
def test_an_event_that_nobody_can_read_goes_on_as_it_came(
    at: float, broken: bytes, cut: int, asked: int | None, ends: bytes
) -> None:
    """Byte for byte, wherever it is broken; and of one that a lenient client reads, only the logprobs are
    less."""
    source = marked(GENERATIONS[2].chunks()[2], asked)
    data = json.dumps(source).encode()
    place = outside_of_keys(data, round(at * len(data)))
    data = data[:place] + broken + data[place + cut :]
    wanted: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    raw = b"data: " + data + ends
    got = LogprobsFilter(ClientView.of(chat(**wanted), 20)).unread(raw, data)
    if can_be_read(raw.strip()):
        assert can_be_read(got.strip()) and got.endswith(ends)
    else:
        assert got == raw


@given(at=st.floats(0, 1), size=st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_what_is_broken_in_a_large_event_stays_in_it(at: float, size: int) -> None:
    """Its pieces are cut where the logprobs have no end, and what comes next is an event of its own."""
    data = json.dumps(GENERATIONS[0].chunks()[1]).encode()
    raw = b"data: " + data[: round(at * len(data))]
    filtering = LogprobsFilter(ClientView.of(chat(), 20))
    out = b"".join(filtering.feed(raw[start : start + size]) for start in range(0, len(raw), size))
    out += filtering.feed(b"\n\n", end=True)
    assert out.endswith(b"\n\n")
    assert filtering.feed(b"data: {}\n\n", end=True) == b"data: {}\n\n"


@pytest.mark.parametrize("asked", [None, 0, 2])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_an_event_that_is_too_large_brings_nothing_unasked(
    mode: str, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in pieces that nobody reads as events, and the events after it as they should."""
    monkeypatch.setattr("governor_server.sse.MAX_EVENT_BYTES", 3000)
    long = Generated(content=f"Let me {'x' * 2000} look.", calls=[CALL])
    wanted: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    sent = faulty([marked(chunk, asked) for chunk in long.chunks()], {}, Fault("none", 0), stream=True)
    app = governor(mode, 1 << 26)
    app.upstream = app.proxy.upstream = cast(Any, Stub(replace(sent, pieces=200), long, True, False))
    body = asyncio.run(received(app, json.dumps(chat(stream=True, **wanted)).encode()))
    assert CANARY.encode() not in body
    assert assembled(body).content.startswith(long.content)
    assert body.endswith(b"data: [DONE]\n\n")


@given(
    asked=st.sampled_from([None, 0, 1, 2, 20]),
    generated=st.sampled_from(GENERATIONS),
    size=st.integers(1, 2000),
)
@settings(deadline=None, max_examples=60)
def test_the_filter_leaves_what_the_view_leaves(asked: int | None, generated: Generated, size: int) -> None:
    """A body that was filtered in pieces is the JSON that it would have been if it had been read."""
    wanted: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    view = ClientView.of(chat(**wanted), 25)
    source = generated.response()
    raw = json.dumps(source).encode()
    filtering = LogprobsFilter(view)
    parts = [filtering.feed(raw[start : start + size]) for start in range(0, len(raw), size)]
    assert json.loads(b"".join(parts) + filtering.feed(b"", end=True)) == view.response(source)
