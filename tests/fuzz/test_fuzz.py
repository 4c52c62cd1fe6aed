"""The fuzzer itself: it finds what is wrong, and a short round of it finds nothing."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest

from governor_server.console import Console
from tests.fuzz import __main__ as command
from tests.fuzz import mutations
from tests.fuzz.cases import Case, case
from tests.fuzz.verdict import Seen, wrong
from tests.server.scripted_upstream import ABORT, CLOSE, EVENTS, HANG, Answer, Received
from tests.wire.generated import Generated, chat, stream_bytes

CALLING = Generated(content="Let me look.", calls=[("c1", "lookup", "{}")])
BARE = Generated(content="Let me look.", calls=[("c1", "lookup", "{}")], top=None)
ASKED = Received("POST", "/v1/chat/completions", [("x-request-id", "1")], b"{}")


def judged(body: bytes, answer: Answer, *, status: int = 200, whole: bool = True, **fields: Any) -> str:
    """The verdict on what a client saw of an answer to a governed request."""
    played = Case("1:1", json.dumps(chat(**fields)).encode(), {}, [answer], [])
    return wrong(played, Seen(status, [], body, whole), [ASKED], [answer], False)


def test_an_answer_as_upstream_sent_it_is_right() -> None:
    """With the logprobs that were asked for, and without those that were not."""
    answer = Answer.stream(CALLING, usage=True)
    sent = stream_bytes(CALLING.chunks(usage=True))
    assert judged(sent, answer, stream=True) == ""
    assert judged(stream_bytes(BARE.chunks(usage=True)), answer, stream=True) == ""
    assert judged(sent, answer, stream=True, logprobs=True, top_logprobs=20) == ""
    assert judged(json.dumps(BARE.response()).encode(), Answer.whole(CALLING)) == ""


def test_an_answer_of_which_something_is_missing_changed_or_moved_is_wrong() -> None:
    """Whatever the proxy may do to a stream, one of these."""
    answer = Answer.stream(CALLING, usage=True)
    chunks = BARE.chunks(usage=True)
    changed = json.loads(json.dumps(chunks))
    changed[2]["choices"][0]["delta"]["content"] = "Let you"
    for seen in (
        chunks[:-2] + chunks[-1:],
        [chunks[0], chunks[2], chunks[1], *chunks[3:]],
        [*chunks, chunks[-1]],
        changed,
    ):
        assert judged(stream_bytes(seen), answer, stream=True) != ""
    assert judged(stream_bytes(chunks, done=False), answer, stream=True).startswith("lacks b'data: [DONE]")
    assert judged(json.dumps(BARE.response() | {"id": "x"}).encode(), Answer.whole(CALLING)) != ""
    assert judged(b"{}", Answer.whole(CALLING), status=500) != ""


def test_what_is_broken_in_the_logprobs_alone_is_nothing_to_a_client_without_them() -> None:
    sent, bare = stream_bytes(CALLING.chunks(usage=True)), stream_bytes(BARE.chunks(usage=True))
    broken = Answer.stream(sent.replace(b'"logprob":', b'"logprob":\xff'))
    assert judged(bare, broken, stream=True) == ""
    assert judged(bare, broken, stream=True, logprobs=True) != ""
    elsewhere = Answer.stream(sent.replace(b'"delta":', b'"delta":\xff'))
    assert judged(bare, elsewhere, stream=True) != ""


def test_an_end_that_is_none_is_wrong() -> None:
    """A body may look whole only where upstream's was, and break off only where upstream's did."""
    events = stream_bytes(CALLING.chunks(), done=False)
    broken = Answer.stream(events, ABORT)
    error = b'data: {"error": {"message": "m", "type": "upstream_broken"}}\n\n'
    assert judged(events + error, broken, whole=False, stream=True) == ""
    assert "as if it were whole" in judged(events, broken, stream=True)
    assert "breaks off" in judged(events, Answer.stream(CALLING), whole=False, stream=True)


@pytest.mark.parametrize("length", [False, True])
def test_a_stream_may_break_off_once_its_message_has_its_end(length: bool) -> None:
    """`[DONE]` alone is none; how long the body should have been does not matter."""
    chunks = CALLING.chunks()
    whole, ended = stream_bytes(chunks), stream_bytes(chunks[:-1])
    assert judged(whole, Answer([whole, CLOSE, b"x"], 200, [EVENTS], length), stream=True) == ""
    assert "as if it were whole" in judged(
        ended, Answer([ended, CLOSE, b"x"], 200, [EVENTS], length), stream=True
    )
    assert judged(ended, Answer([ended, HANG, b"x"], 200, [EVENTS], length), stream=True) == ""


def test_a_case_is_the_same_for_the_same_numbers() -> None:
    """Else what was found could not be played again."""
    assert case(1, 2) == case(1, 2)
    assert case(1, 2) != case(1, 3)


def test_mutations_change_what_they_are_given() -> None:
    """Mostly; one that never did would test nothing."""
    body, stream = json.dumps(CALLING.response()).encode(), stream_bytes(CALLING.chunks())
    for given, way in ((body, mutations.body), (stream, mutations.stream), (stream, mutations.octets)):
        assert sum(way(Random(seed), given) != given for seed in range(50)) > 40
    assert b"".join(mutations.cut(Random(1), stream)) == stream


async def test_a_short_round_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make fuzz` goes on for longer."""
    monkeypatch.setattr(command, "OUT", tmp_path)
    fuzz = command.Fuzz(7, 250.0, Console(StringIO()), range(10))
    await fuzz.run()
    assert (fuzz.played, fuzz.findings) == (20, [])
