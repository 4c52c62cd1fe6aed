"""A server in vLLM's place that replays recorded answers, with as little work as Python allows.

    python -m benchmarks.proxy.upstream --port 9000

Streams come as from an engine, which decodes in batches: every `--step` each stream that runs gets its
next event, in a write of its own. A token of which upstream says nothing but its logprobs takes its step also
where they were not asked for. An answer's ids are made of the request's field `user`, so that no two answers
are the same and a client can tell whose it got.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import orjson

from benchmarks.proxy.recordings import WORKLOADS, Kind, asked, events, identities
from benchmarks.proxy.serving import serve
from tests.wire.recorded import Recorded

HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length:"
LAST_CHUNK: Final = b"0\r\n\r\n"
STEP_S: Final = 0.005
"""Of a model of some billion parameters on a GPU."""
CALL_START: Final = {"count": 1, "max_model_len": 4096, "tokens": [8], "token_strs": None}


@dataclass(slots=True)
class Prepared:
    """A recording, ready to be written: a whole answer, or its stream's events as HTTP chunks, an empty one
    for a token that upstream says nothing of."""

    ids: Sequence[bytes]
    whole: bytes
    chunks: Sequence[bytes]

    @classmethod
    def of(cls, answer: Recorded, body: bytes | None = None) -> Prepared:
        """Of a whole answer."""
        return cls(identities(answer), _answer(200, answer.body if body is None else body), ())

    @classmethod
    def of_events(cls, answer: Recorded, events: Sequence[bytes]) -> Prepared:
        """Of a stream."""
        chunks = [b"%x\r\n%b\r\n" % (len(event), event) if event else b"" for event in events]
        return cls(identities(answer), b"", [*chunks, LAST_CHUNK])

    def marked(self, mark: bytes) -> tuple[bytes, Sequence[bytes]]:
        """`whole` and `chunks` with `mark` for their ids; as they are where it is empty."""
        whole, chunks = self.whole, self.chunks
        for id in self.ids if mark else ():
            whole = whole.replace(id, mark)
            chunks = [chunk.replace(id, mark) for chunk in chunks]
        return whole, chunks


def _answer(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


Answers = Mapping[tuple[Kind, bool, object], Prepared]
"""By who asks, whether for a stream, and with which `tool_choice`."""


def prepared() -> Answers:
    """The answers to all requests of the workloads. Whoever asks for no logprobs gets the recorded answer
    without them, as vLLM sends it then."""
    found: dict[tuple[Kind, bool, object], Prepared] = {}
    for workload in WORKLOADS:
        key = asked(workload.request)
        if workload.streams:
            found[Kind.MEASURED, *key] = Prepared.of_events(workload.answer, events(workload.answer))
            found[Kind.PLAIN, *key] = Prepared.of_events(workload.answer, workload.visible_events)
        else:
            found[Kind.MEASURED, *key] = Prepared.of(workload.answer)
            found[Kind.PLAIN, *key] = Prepared.of(workload.answer, workload.visible)
        if workload.probe is not None:
            found[Kind.PROBE, False, "none"] = Prepared.of(workload.probe)
    return found


@dataclass(slots=True)
class Engine:
    """What all connections share: the answers, and the batch of streams that get an event each every
    `step_s`."""

    answers: Answers
    step_s: float
    _batch: set[Connection] = field(default_factory=set)
    _next: asyncio.TimerHandle | None = None

    def answer(self, body: Mapping[str, Any]) -> Prepared | None:
        return self.answers.get((Kind.of(body), *asked(body)))

    def join(self, stream: Connection) -> None:
        """`stream` has more events to write."""
        self._batch.add(stream)
        # One may be due although nobody waits for it: the last stream's client left.
        if self._next is None:
            self._after(asyncio.get_running_loop().time())

    def leave(self, stream: Connection) -> None:
        self._batch.discard(stream)

    def _after(self, last: float) -> None:
        due = last + self.step_s
        self._next = asyncio.get_running_loop().call_at(due, self._step, due)

    def _step(self, due: float) -> None:
        self._next = None
        self._batch = {stream for stream in self._batch if stream.write_event()}
        if self._batch:
            self._after(due)


class Connection(asyncio.Protocol):
    """One client: a request, its answer, and the next request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._chunks: Sequence[bytes] = ()
        self._place = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = 0
        if (place := head.find(LENGTH)) >= 0:
            length = int(head[place + len(LENGTH) :].split(b"\r\n", 1)[0])
        start = end + len(HEAD_END)
        if len(self._buffer) < start + length:
            return
        body, self._buffer = self._buffer[start : start + length], b""
        self._asked(head.split(b" ", 2)[1], body)

    def connection_lost(self, error: Exception | None) -> None:
        self._engine.leave(self)

    def _asked(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/chat/completions":
            request = orjson.loads(body)
            prepared = self._engine.answer(request)
            if prepared is None:
                self._transport.write(_answer(404, b'{"error":{"message":"nothing was recorded for this"}}'))
                return
            whole, self._chunks = prepared.marked(str(request.get("user") or "").encode())
            if whole:
                self._transport.write(whole)
                return
            self._place = 0
            self._transport.write(STREAM_HEAD)
            if self.write_event():
                self._engine.join(self)
        elif path == b"/tokenize":
            self._transport.write(_answer(200, orjson.dumps(CALL_START)))
        else:
            self._transport.write(_answer(200, b"{}"))

    def write_event(self) -> bool:
        """Write the next event; returns whether there are more."""
        if chunk := self._chunks[self._place]:
            self._transport.write(chunk)
        self._place += 1
        return self._place < len(self._chunks)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--step",
        type=float,
        default=STEP_S,
        metavar="SECONDS",
        help="from one event of a stream to its next (default: %(default)s)",
    )
    arguments = parser.parse_args()
    engine = Engine(prepared(), arguments.step)
    serve(arguments.port, lambda: Connection(engine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
