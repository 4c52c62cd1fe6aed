"""Ways in which bodies and streams go wrong. All of them draw from the `Random` that they are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2**53, 2**70, 1e308, -0.0, 0.5),
    *(
        "",
        "x",
        "null",
        "\x00",
        "\u2028",
        "🎈",
        "</tool_call>",
        "<tool_call>",
        "[DONE]",
        "data: {}\n\n",
        "a" * 3000,
    ),
    *([], {}, [[]], [None], [{}], {"": ""}, {"index": -1}, {"content": []}, [["x"]]),
)
"""Values that stand where others are expected."""

WORDS = (
    b"data:",
    b"data: [DONE]\n\n",
    b"\n\n",
    b"\r\n\r\n",
    b"event: x\n",
    b": c\n\n",
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"}",
)


def odd(random: Random) -> Any:
    """One of them, of which nobody else has a part."""
    return json.loads(json.dumps(random.choice(ODD)))


def place(random: Random, value: Any) -> tuple[Any, Any] | None:
    """A container somewhere in a JSON value, and one of its keys; None where there is none."""
    found = None
    while value and isinstance(value, dict | list) and (found is None or random.random() < 0.8):
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        found = value, key
        value = value[key]
    return found


def value(random: Random, given: Any) -> Any:
    """A JSON value of which up to three parts are others, elsewhere, gone or there twice."""
    given = json.loads(json.dumps(given))
    for _ in range(random.randint(1, 3)):
        if (found := place(random, given)) is None:
            return odd(random)
        container, key = found
        what = random.randrange(5)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, list):
            container.insert(random.randrange(len(container) + 1), container[key])
        elif what == 2:
            other, its = place(random, given) or found
            container[key] = json.loads(json.dumps(other[its]))
        elif what == 3 and isinstance(container, dict):
            container[str(random.choice(("index", "id", "role", "content", "tool_calls", "x")))] = odd(random)
        else:
            container[key] = odd(random)
    return given


def octets(random: Random, given: bytes) -> bytes:
    """Up to three places where bytes are others, more, fewer or there twice."""
    body = bytearray(given)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(body) + 1)
        until = min(len(body), at + random.choice((1, 1, 2, 8, 64)))
        what = random.randrange(5)
        if what == 0:
            del body[at:until]
        elif what == 1:
            body[at:at] = body[at:until]
        elif what == 2:
            body[at:at] = random.choice(WORDS)
        elif what == 3 and at < len(body):
            body[at] ^= 1 << random.randrange(8)
        elif what == 4 and random.random() < 0.3:
            del body[at:]
    return bytes(body)


def events(random: Random, given: bytes) -> bytes:
    """A stream whose events are gone, there twice, in another order, of another body, or joined otherwise."""
    listed = [event + b"\n\n" for event in given.split(b"\n\n") if event]
    for _ in range(random.randint(1, 4)):
        if not listed:
            break
        at = random.randrange(len(listed))
        what = random.randrange(7)
        if what == 0:
            del listed[at]
        elif what == 1:
            listed.insert(random.randrange(len(listed) + 1), listed[at])
        elif what == 2:
            other = random.randrange(len(listed))
            listed[at], listed[other] = listed[other], listed[at]
        elif what == 3:
            listed.insert(
                at,
                random.choice(
                    (
                        b": ping\n\n",
                        b"event: x\ndata: {}\n\n",
                        b"data: []\n\n",
                        b"data: 1\n\n",
                        b"data:\n\n",
                        b"\n\n",
                        b'data: {"error": {"message": "m"}}\n\n',
                    )
                ),
            )
        elif what == 4:
            listed[at] = listed[at].replace(b"\n", b"\r\n")
        elif listed[at].startswith(b"data: {"):
            listed[at] = _event(random, listed[at])
    return b"".join(listed)


def _event(random: Random, event: bytes) -> bytes:
    try:
        parsed = json.loads(event[6:])
    except ValueError:
        return event
    return (
        b"data: " + json.dumps(value(random, parsed), ensure_ascii=random.random() < 0.5).encode() + b"\n\n"
    )


def body(random: Random, given: bytes) -> bytes:
    """A JSON body, by its bytes or by its values."""
    if random.random() < 0.3:
        return octets(random, given)
    try:
        return json.dumps(value(random, json.loads(given))).encode()
    except ValueError:
        return octets(random, given)


def stream(random: Random, given: bytes) -> bytes:
    """A stream, by its bytes or by its events."""
    ways: list[Callable[[Random, bytes], bytes]] = [octets, events, events, events]
    return random.choice(ways)(random, given)


def cut(random: Random, given: bytes) -> list[bytes]:
    """The same bytes in up to eight pieces."""
    ends = sorted({random.randrange(len(given) + 1) for _ in range(random.randrange(8))} | {0, len(given)})
    return [given[start:end] for start, end in zip(ends, ends[1:], strict=False)]
