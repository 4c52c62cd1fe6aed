"""A server in vLLM's place that replays recorded answers, with as little work as Python allows.

    python -m benchmarks.proxy.upstream --port 9000

Streams come as from an engine: one event at a time, each in a write of its own, `--tokens-per-second` of them
shared by the streams that run, and none sooner than `--least-pause` after the one before it. A token of which
upstream says nothing but its logprobs takes its time also where they were not asked for. An answer's ids are
made of the request's field `user`, so that no two answers are the same and a client can tell whose it got.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
import uvloop

from benchmarks.proxy.recordings import WORKLOADS, Kind, asked, events, identities
from tests.wire.recorded import Recorded

HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length:"
LAST_CHUNK: Final = b"0\r\n\r\n"
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
    """What all connections share: the answers, and the pace. `token_s` 0: as fast as it can, but for
    `least_pause_s` between two events of a stream."""

    answers: Answers
    token_s: float
    least_pause_s: float = 0.0
    streaming: int = 0

    def answer(self, body: Mapping[str, Any]) -> Prepared | None:
        return self.answers.get((Kind.of(body), *asked(body)))


class Connection(asyncio.Protocol):
    """One client: a request, its answer, and the next request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._engine.streaming -= 1

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
            self._engine.streaming += 1
            self._transport.write(STREAM_HEAD)
            self._next()
        elif path == b"/tokenize":
            self._transport.write(_answer(200, orjson.dumps(CALL_START)))
        else:
            self._transport.write(_answer(200, b"{}"))

    def _next(self) -> None:
        if chunk := self._chunks[self._place]:
            self._transport.write(chunk)
        self._place += 1
        if self._place == len(self._chunks):
            self._timer = None
            self._engine.streaming -= 1
            return
        pause = max(self._engine.least_pause_s, self._engine.token_s * self._engine.streaming)
        self._timer = self._loop.call_later(pause, self._next)


async def serve(port: int, engine: Engine) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        default=1000.0,
        help="events that all streams get together; 0: as fast as it can (default: %(default)s)",
    )
    parser.add_argument(
        "--least-pause", type=float, default=0.0, help="seconds from event to event of a stream (default: 0)"
    )
    arguments = parser.parse_args()
    token_s = 1 / arguments.tokens_per_second if arguments.tokens_per_second else 0.0
    uvloop.run(serve(arguments.port, Engine(prepared(), token_s, arguments.least_pause)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
