"""Requests as clients may frame them, well or badly, as bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Final


class Fate(Enum):
    """What must become of a request."""

    ARRIVES = "arrives"
    """Upstream gets it, with all of its body."""
    REFUSED = "refused"
    """Upstream never hears of it."""
    BREAKS_OFF = "breaks off"
    """Its end never comes: upstream gets none of it, or a part that it can tell from a whole."""


@dataclass(frozen=True, slots=True)
class Framed:
    """A request on the wire. `body` is what upstream must get of one that arrives."""

    name: str
    method: str
    raw: bytes
    body: bytes
    fate: Fate = Fate.ARRIVES
    keeps: bool = True
    """Whether its connection may be used again after it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants to ask, not yet framed."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def head(self, *lines: str, version: str = "1.1", end: str = "\r\n") -> bytes:
        named = [f"{name}: {value}" for name, value in self.headers.items()]
        start = f"{self.method} {self.target} HTTP/{version}"
        return end.join([start, "host: governor", *named, *lines, "", ""]).encode("latin-1")


Framing = Callable[[Request, Random], tuple[bytes, Fate]]

JAVA: Final = (
    "connection: Upgrade, HTTP2-Settings",
    "upgrade: h2c",
    "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
"""What the HttpClient of Java 11 and later adds to each request by default."""


def announced(request: Request) -> str:
    return f"content-length: {len(request.body)}"


def chunks(body: bytes, random: Random, extension: bytes = b"") -> bytes:
    """The body in chunks of any size, without the last one."""
    out = b""
    while body:
        size = random.choice((1, 7, 100, 5000))
        piece, body = body[:size], body[size:]
        out += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    return out


def by_length(*lines: str, version: str = "1.1") -> Framing:
    def framed(request: Request, _: Random) -> tuple[bytes, Fate]:
        return request.head(*lines, announced(request), version=version) + request.body, Fate.ARRIVES

    return framed


def by_chunks(
    *lines: str, last: bytes = b"0\r\n\r\n", extension: bytes = b"", coding: str = "chunked"
) -> Framing:
    def framed(request: Request, random: Random) -> tuple[bytes, Fate]:
        head = request.head(*lines, f"transfer-encoding: {coding}")
        return head + chunks(request.body, random, extension) + last, Fate.ARRIVES

    return framed


def refused(*lines: str, version: str = "1.1", end: str = "\r\n", body: bytes | None = None) -> Framing:
    """A head with these lines, where `{}` stands for the length of the body."""

    def framed(request: Request, _: Random) -> tuple[bytes, Fate]:
        filled = [line.replace("{}", str(len(request.body))) for line in lines]
        sent = request.body if body is None else body
        return request.head(*filled, version=version, end=end) + sent, Fate.REFUSED

    return framed


def cut_length(request: Request, random: Random) -> tuple[bytes, Fate]:
    head = request.head(f"content-length: {len(request.body) + random.choice((1, 100, 100_000))}")
    return head + request.body, Fate.BREAKS_OFF


def cut_chunks(request: Request, random: Random) -> tuple[bytes, Fate]:
    last = random.choice((b"", b"0\r\n", b"5\r\nab", b"zz\r\n", b"0\r\nx: y"))
    return request.head("transfer-encoding: chunked") + chunks(request.body, random) + last, Fate.BREAKS_OFF


def length_behind(request: Request, random: Random) -> tuple[bytes, Fate]:
    """A length among the trailers, where upstream may have been asked already."""
    last = b"0\r\ncontent-length: 3\r\nx-nonce: other\r\n\r\n"
    return request.head("transfer-encoding: chunked") + chunks(request.body, random) + last, Fate.BREAKS_OFF


def cut_head(request: Request, _: Random) -> tuple[bytes, Fate]:
    return request.head(announced(request))[:-3], Fate.BREAKS_OFF


def bad_method(method: str) -> Framing:
    def framed(request: Request, _: Random) -> tuple[bytes, Fate]:
        other = Request(method, request.target, request.headers, request.body)
        return other.head(announced(request)) + request.body, Fate.REFUSED

    return framed


def bad_target(target: str) -> Framing:
    def framed(request: Request, _: Random) -> tuple[bytes, Fate]:
        other = Request(request.method, target, request.headers, request.body)
        return other.head(announced(request)) + request.body, Fate.REFUSED

    return framed


def absolute(request: Request, _: Random) -> tuple[bytes, Fate]:
    other = Request(request.method, f"http://elsewhere:1{request.target}", request.headers, request.body)
    return other.head(announced(request)) + request.body, Fate.ARRIVES


ARRIVING: Final[Mapping[str, Framing]] = {
    "length": by_length(),
    "length, close": by_length("connection: close"),
    "length, keep-alive": by_length("connection: keep-alive"),
    "length that is named as a neighbour's": by_length("connection: content-length"),
    "HTTP/1.0": by_length(version="1.0"),
    "HTTP/1.0, keep-alive": by_length("connection: keep-alive", version="1.0"),
    "expect": by_length("expect: 100-continue"),
    "expect, chunked": by_chunks("expect: 100-continue"),
    "te": by_length("te: trailers", "connection: te"),
    "chunked": by_chunks(),
    "Chunked": by_chunks(coding="Chunked"),
    "chunked, extensions": by_chunks(extension=b';a=b;c="d"'),
    "chunked, trailers": by_chunks(
        "trailer: x-nonce",
        last=b"0\r\nx-nonce: other\r\nx-behaviour: ?\r\nauthorization: Bearer other\r\n\r\n",
    ),
    "offer of Java": by_length(*JAVA),
    "offer of Java, chunked": by_chunks(*JAVA),
    "offer of Java, close": by_length("connection: close, Upgrade", "upgrade: h2c"),
    "offer of Java, HTTP/1.0": by_length(*JAVA, version="1.0"),
    "offer of a websocket": by_length(
        "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: eA=="
    ),
    "offer of TLS": by_chunks("connection: keep-alive, UPGRADE", "upgrade: TLS/1.2, HTTP/1.1"),
    "offer without a connection": by_length("upgrade: h2c"),
    "absolute": absolute,
}

REFUSED: Final[Mapping[str, Framing]] = {
    "CONNECT": bad_method("CONNECT"),
    "TRACE": bad_method("TRACE"),
    "a method of nobody": bad_method("BREW"),
    "a method in small letters": bad_method("post"),
    "asterisk": bad_target("*"),
    "asterisk before a host": bad_target("*@127.0.0.1:9/v1/models"),
    "authority": bad_target("elsewhere:443"),
    "another scheme": bad_target("file:///etc/passwd"),
    "length and chunked": refused("content-length: {}", "transfer-encoding: chunked"),
    "chunked and length": refused("transfer-encoding: chunked", "content-length: {}"),
    "two lengths": refused("content-length: {}", "content-length: {}"),
    "two lengths that differ": refused("content-length: {}", "content-length: 0"),
    "two lengths in one": refused("content-length: {}, {}"),
    "length with a sign": refused("content-length: +{}"),
    "length below zero": refused("content-length: -1"),
    "length in hexadecimal": refused("content-length: 0x{}"),
    "length that is empty": refused("content-length: "),
    "length without end": refused("content-length: 9" + "9" * 40),
    "space before the colon": refused("content-length : {}"),
    "a folded line": refused("x-folded: a", " b", "content-length: {}"),
    "lines without CR": refused("content-length: {}", end="\n"),
    "gzip": refused("transfer-encoding: gzip"),
    "identity": refused("transfer-encoding: identity", "content-length: {}"),
    "gzip, chunked": refused("transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "gzip and chunked": refused("transfer-encoding: gzip", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
    "chunked twice": refused("transfer-encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunked behind a tab": refused("transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "HTTP/9.9": refused("content-length: {}", version="9.9"),
}

CUT: Final[Mapping[str, Framing]] = {
    "length cut short": cut_length,
    "chunks cut short": cut_chunks,
    "chunks with a length behind them": length_behind,
    "head cut short": cut_head,
}

FRAMINGS: Final[Mapping[str, Framing]] = {**ARRIVING, **REFUSED, **CUT}
CLOSING: Final = frozenset({"length, close", "HTTP/1.0", "HTTP/1.0, keep-alive", "offer of Java, close"})


def framed(name: str, request: Request, random: Random) -> Framed:
    """A request in one of the `FRAMINGS`."""
    raw, fate = FRAMINGS[name](request, random)
    keeps = fate is Fate.ARRIVES and name not in CLOSING and "HTTP/1.0" not in name
    return Framed(name, request.method, raw, request.body, fate, keeps)


METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TARGETS: Final = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/models?x=1",
    "//v1/chat/completions",
    "/v1/a%2Fb",
)
INNER: Final = (
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-nonce: smuggled\r\n\r\n",
    b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\nx-nonce: smuggled\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n" + b'{"nonce":"smuggled"}',
)
"""Bodies that would be a request, or an answer, to whoever takes them for one."""


ODD_HEADERS: Final[Sequence[Mapping[str, str]]] = (
    {},
    {},
    {"content-encoding": "gzip"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"proxy-connection": "keep-alive", "keep-alive": "timeout=5, max=1"},
    {"te": "gzip, deflate", "trailer": "x-sum"},
    {"x-content-length": "5", "content_length": "5"},
    {"x-transfer-encoding": "chunked", "transfer_encoding": "chunked"},
    {"x-http-method-override": "CONNECT", "x-original-url": "/governor/decisions"},
    {"range": "bytes=0-1", "if-none-match": "*"},
    {"cookie": "a=b; c=d", "x-empty": "", "x-name": "\xc3\xa6 \xff"},
    {"origin": "https://page.example", "access-control-request-method": "POST"},
    {"accept-encoding": "gzip, br", "user-agent": "a" * 3000},
)


def draw(random: Random, headers: Mapping[str, str], bodies: Sequence[bytes] = INNER) -> Framed:
    """Any method and framing with any body."""
    headers = {**headers, **random.choice(ODD_HEADERS)}
    name = random.choice(tuple(random.choice((ARRIVING, ARRIVING, ARRIVING, REFUSED, CUT))))
    body = random.choice((b"", b"{}", b"x" * 70_000, b"y" * random.randrange(1, 3000), *bodies))
    request = Request(random.choice(METHODS), random.choice(TARGETS), headers, body)
    return framed(name, request, random)
