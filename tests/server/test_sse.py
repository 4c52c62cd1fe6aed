"""Events are those of the specification, whatever fields and line ends a server likes."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Mode, Reason
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.policies import Evidence, Judgement, Verdict
from governor_server import answers, sse
from tests.wire.generated import Generated, chat

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from(
    [
        b"id: 7",
        b"id:8",
        b"event: chunk",
        b"retry: 3000",
        b": a comment",
        b":",
        b"x-new: 1",
        b"data-like: 2",
        b"id",
    ]
)


class Dispatched(NamedTuple):
    """What an event means to a client, but for its data: its fields in order, comments included."""

    fields: list[tuple[bytes, bytes]]
    data: bytes | None


def understood(stream: bytes) -> list[Dispatched]:
    """The events of a stream, read as the specification says and by none of the code under test."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    found: list[Dispatched] = []
    fields: list[tuple[bytes, bytes]] = []
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if fields or data:
                found.append(Dispatched(fields, b"\n".join(data) if data else None))
            fields, data = [], []
        elif name == b"data":
            data.append(value)
        else:
            fields.append((name, value))
    return found


@st.composite
def events(draw: st.DrawFn, data: bytes) -> bytes:
    """An event with that data, in one of the many ways to write it."""
    end = draw(ENDS)
    colon = draw(st.sampled_from([b"data:", b"data: "]))
    lines = [colon + line if line else draw(st.sampled_from([b"data", colon])) for line in data.split(b"\n")]
    before, after = draw(st.lists(FIELDS, max_size=3)), draw(st.lists(FIELDS, max_size=3))
    return end.join([*before, *lines, *after, b"", b""])


DATA = st.sampled_from([b'{"a":1}', b'{"a":\n1}', b"", b"[DONE]", b"two\nlines", b" x", b'{"a":\n\n1}'])


@given(st.lists(DATA.flatmap(events), min_size=1, max_size=5), st.booleans(), st.data())
def test_events_are_read_as_the_specification_says(
    raws: list[bytes], mark: bool, draws: st.DataObject
) -> None:
    """Several lines of data, no space after the colon, other fields, any line end, a byte order mark;
    wherever the network cut."""
    stream = (b"\xef\xbb\xbf" if mark else b"") + b"".join(raws) + b"data: end\n\n"
    places = draws.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    reader, found = sse.EventReader(), list[sse.Event]()
    for start, stop in zip([0, *places], [*places, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])
    assert b"".join(event.raw for event in found) == stream
    assert [event.data for event in found] == [event.data for event in understood(stream)]


@given(DATA.flatmap(events))
def test_an_event_that_is_written_again_keeps_its_other_fields(raw: bytes) -> None:
    """In their order, comments too, and with its own line ends."""
    (before,) = understood(raw)
    written = sse.rewritten(sse.Event(raw, before.data), {"new": 1})
    (after,) = understood(written)
    assert after.fields == before.fields
    assert json.loads(after.data or b"") == {"new": 1}
    assert set(re.findall(rb"\r\n|\n|\r", written)) == set(re.findall(rb"\r\n|\n|\r", raw))


class First:
    """Withholds the first call."""

    name = "first"

    def judge(self, evidence: Evidence) -> Judgement:
        return Verdict(evidence.call.id == "c1", Reason.REPEATED_CALL, 0)


GOVERNANCE = Governance(
    vocab_size=4096, mode=Mode.ENFORCE, policy=First(), catalog=ToolCatalog(read_only=("lookup",))
)
CALLING = Generated(
    content="Let me look.", calls=[("c1", "lookup", '{"a": 1}'), ("c2", "lookup", '{"b": 2}')]
)


@given(st.data())
def test_every_event_that_reaches_the_client_has_the_fields_it_came_with(draws: st.DataObject) -> None:
    """Those whose logprobs were taken out, and those of a call that moved up into the place of another."""
    exchange = Exchange(chat(stream=True), GOVERNANCE)
    fields: dict[int, Any] = {}
    out = b""
    for number, chunk in enumerate(CALLING.chunks(usage=True)):
        raw = draws.draw(events(json.dumps({**chunk, "n": number}).encode()))
        (event,) = understood(raw)
        fields[number] = event.fields
        came = answers.chunk(sse.Event(raw, event.data), answers.parsed(event.data or b""))
        out += b"".join(map(answers.written, exchange.receive(came)))
    step = exchange.finish()
    assert not isinstance(step, Ask)
    out += b"".join(map(answers.written, step.chunks))
    received = understood(out)
    assert len(received) > len(CALLING.calls)
    for event in received:
        assert event.fields == fields[json.loads(event.data or b"")["n"]]


@pytest.mark.parametrize("raw", [b": ping\n\n", b":\r\n\r\n", b": a\r: b\r\r"])
def test_a_comment_is_told_from_an_event(raw: bytes) -> None:
    assert sse.is_comment(raw)
    assert not sse.is_comment(b"retry: 1\n" + raw)


@given(DATA.flatmap(events), st.integers(1, 60))
def test_an_event_is_known_to_be_over_or_not(raw: bytes, cut: int) -> None:
    """Only then may something be put between two events."""
    assert sse.ends_event(raw)
    part = raw[: max(1, len(raw) - cut)]
    blank = re.search(rb"(\r\n|\n|\r(?!\n))(\r\n|\n|\r)$", part)
    assert sse.ends_event(part) is (blank is not None)
    assert not sse.ends_event(b"data: x")
    assert not sse.ends_event(b"data: x\r\n")
