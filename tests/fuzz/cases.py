"""One request of a client and what upstream does with it, from a seed and a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any, Final

from tests.fuzz import mutations
from tests.server.framings import ARRIVING, CUT, REFUSED, Framed, Request, framed
from tests.server.scripted_upstream import ABORT, CLOSE, EVENTS, HANG, JSON, Answer, Piece
from tests.wire import recorded as wire
from tests.wire.generated import Generated, chat, made
from tests.wire.recorded import HERE, Recorded

RECORDINGS: Final = tuple(
    sorted(path.stem for path in HERE.glob("*.txt") if path.read_bytes().startswith(b"# REQUEST"))
)
FOLLOWING: Final = 12
"""Answers that lie ready for what the governor asks beyond the client's request."""

recorded = cache(wire.recorded)

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
SPAIN = ("c2", "lookup", '{"country": "Spain"}')
BOOK = ("c3", "book", '{"city": "Oslo"}')
GENERATED: Final = (
    Generated(content="Let me look.", calls=[NORWAY]),
    Generated(calls=[NORWAY, SPAIN]),
    Generated(reasoning="Hm.", content="Both.", calls=[NORWAY, BOOK]),
    Generated(content="Oslo → Ærø 🎈", sure=0.4),
    Generated(content='{"name": "lookup", "arguments": {}}'),
)
PROBES: Final = (
    Generated(content="Oslo"),
    Generated(content="Oslo", sure=0.93),
    Generated(content="?", sure=0.3),
)


CHAT: Final = "/v1/chat/completions"
TARGETS: Final = (
    CHAT,
    CHAT,
    CHAT,
    "//v1/chat/completions",
    "/v1/chat%2Fcompletions",
    "/v1/embeddings",
    "/v1/a;b?c",
)
METHODS: Final = ("POST", "POST", "POST", "PUT", "GET", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Case:
    """`body` is the client's, `first` upstream's answer to it, `later` those to whatever is asked beside it.
    The client leaves after `leaves` bytes of the answer, if that is a number."""

    name: str
    body: bytes
    headers: dict[str, str]
    first: Sequence[Answer]
    later: Sequence[Answer]
    leaves: int | None = None
    framed: Framed | None = None
    """As it stands on the wire, where it is sent in a framing of its own."""
    target: str = CHAT

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, to be read by people."""
        return {
            "name": self.name,
            "body": self.body.decode("latin-1"),
            "headers": self.headers,
            "leaves": self.leaves,
            "framed": None if self.framed is None else [self.framed.name, self.framed.raw.decode("latin-1")],
            "first": [_told(answer) for answer in self.first],
            "later": [_told(answer) for answer in self.later],
        }


def _told(answer: Answer) -> dict[str, Any]:
    pieces = [piece.decode("latin-1") if isinstance(piece, bytes) else str(piece) for piece in answer.pieces]
    before = [piece.decode("latin-1") if isinstance(piece, bytes) else str(piece) for piece in answer.before]
    return {"status": answer.status, "headers": answer.headers, "before": before, "pieces": pieces}


def case(seed: int, number: int) -> Case:
    """The same for the same two numbers."""
    random = Random(f"{seed}:{number}")
    request, answer = _pair(random)
    body = json.dumps(request).encode()
    if random.random() < 0.4:
        body = mutations.body(random, body)
    headers = {"content-type": "application/json", "x-request-id": f"{seed}.{number}"}
    if random.random() < 0.1:
        headers["x-governor"] = random.choice(("off", "on"))
    if random.random() < 0.2:
        headers["x-governor-explain"] = random.choice(("1", "tokens", "?"))
    if random.random() < 0.3:
        headers["x-governor-conversation"] = random.choice(("talk", "é" * 40, "a" * 400, " ", "\t"))
    first = [_mishap(random, answer) for _ in range(2)]
    later = [_later(random) for _ in range(FOLLOWING)]
    leaves = random.randrange(2000) if random.random() < 0.08 else None
    return _framed(Case(f"{seed}:{number}", body, headers, first, later, leaves))


def _framed(case: Case) -> Case:
    """The same case, or one whose request is sent as its client frames it. Drawn apart, so that the numbers
    of the others stay what they were."""
    random = Random(f"{case.name}:framing")
    if case.leaves is not None or random.random() > 0.15:
        return case
    method, target = random.choice(METHODS), random.choice(TARGETS)
    name = random.choice(tuple(random.choice((ARRIVING, ARRIVING, REFUSED, CUT))))
    request = framed(name, Request(method, target, case.headers, case.body), random)
    return replace(case, framed=request, target=target)


def _pair(random: Random) -> tuple[dict[str, Any], Answer]:
    if random.random() < 0.5:
        recording = recorded(random.choice(RECORDINGS))
        return recording.request, _of(recording)
    streamed = random.random() < 0.6
    generated = replace(random.choice(GENERATED), top=random.choice((20, 20, 20, 2, None)))
    messages = [{"role": "user", "content": "What is the capital of Norway?"}]
    for turn in range(random.choice((0, 0, 1, 3))):
        messages += made((f"o{turn}", random.choice(("lookup", "find", "book")), '{"q": 1}'))
    fields: dict[str, Any] = {"stream": streamed}
    if random.random() < 0.3:
        fields |= {"logprobs": True, "top_logprobs": random.choice((0, 5, 20))}
    request = chat(*messages, tools=("lookup", "find", "book"), **fields)
    return request, Answer.stream(generated, usage=True) if streamed else Answer.whole(generated)


def _of(recording: Recorded) -> Answer:
    answer = Answer.of(recording)
    # The recordings have no end of their last event where the file ended.
    if not answer.length and not recording.body.endswith(b"\n\n"):
        return replace(answer, pieces=[recording.body + b"\n"])
    return answer


def _later(random: Random) -> Answer:
    """For a probe, which is whole, or an answer, which may be a stream: a wrong kind is a mishap, too."""
    generated = random.choice((*PROBES, *PROBES, *GENERATED))
    streamed = random.random() < 0.25
    return _mishap(random, Answer.stream(generated, usage=True) if streamed else Answer.whole(generated))


def _mishap(random: Random, answer: Answer) -> Answer:
    """The answer, often with something wrong."""
    raw = b"".join(piece for piece in answer.pieces if isinstance(piece, bytes))
    if random.random() < 0.55:
        raw = mutations.body(random, raw) if answer.length else mutations.stream(random, raw)
    pieces: list[Piece] = list(mutations.cut(random, raw))
    status, headers, length = answer.status, answer.headers, answer.length
    if random.random() < 0.1:
        end = HANG if random.random() < 0.1 else random.choice((ABORT, CLOSE))
        pieces.insert(random.randrange(len(pieces) + 1), end)
    if random.random() < 0.1:
        pieces.insert(random.randrange(len(pieces) + 1), random.choice((0.001, 0.02)))
    if random.random() < 0.07:
        status = random.choice((200, 400, 404, 422, 429, 500, 503))
    if random.random() < 0.04:
        headers = [random.choice((EVENTS, JSON, ("content-type", "text/plain")))]
    if random.random() < 0.05:
        headers = [*headers, ("x-request-id", random.choice(("theirs", "ü", "a b")))]
    if random.random() < 0.03:
        headers = [*headers, ("content-encoding", random.choice(("gzip", "identity")))]
    if random.random() < 0.1:
        length = not length
    before: list[Piece] = []
    if random.random() < 0.02:
        before = [
            random.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"SSH-2.0\r\n\r\n", b"\r\n", b"HTTP/1.1 200")),
            CLOSE,
        ]
        pieces = []
    return Answer(pieces, status, headers, length, before)
