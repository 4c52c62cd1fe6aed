"""The fuzzer itself: it finds what is wrong, and a short round of it finds nothing."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest

from governor_server.console import Console
from governor_server.governed_chat import GovernedChat
from tests.fuzz import __main__ as command
from tests.fuzz import mutations
from tests.fuzz.cases import Case, case
from tests.fuzz.verdict import Seen, wrong
from tests.server.scripted_upstream import ABORT, CLOSE, EVENTS, HANG, JSON, Answer, Received
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


ERROR = b'{"error": {"message": "no", "type": "bad"}}'
REFUSAL = Answer([ERROR], 400)
LATE_REFUSAL = Answer.stream(b": thinking\n\ndata: " + ERROR + b"\n\n")


def judged_again(seen: Seen, *asked: tuple[bytes | None, Answer], stream: bool = False) -> str:
    """The verdict where upstream was asked several times: for the client's own request where the body is
    None."""
    own = json.dumps(chat(stream=stream)).encode()
    played = Case("1:1", own, {}, [], [])
    received = [
        Received("POST", "/v1/chat/completions", [("x-request-id", "1")], own if body is None else body)
        for body, _ in asked
    ]
    return wrong(played, seen, received, [answer for _, answer in asked], False)


def seen_of(answer: Answer) -> Seen:
    """A client that gets all of an answer."""
    return Seen(
        answer.status, [], b"".join(piece for piece in answer.pieces if isinstance(piece, bytes)), True
    )


@pytest.mark.parametrize("own", [Answer.whole(BARE), Answer.whole(CALLING), Answer([ERROR], 404)])
def test_what_upstream_refuses_is_judged_by_the_answer_to_the_clients_own_request(own: Answer) -> None:
    """To the last byte, logprobs and errors too: what was refused is nothing to the client."""
    assert judged_again(seen_of(own), (b"{}", REFUSAL), (None, own)) == ""
    assert judged_again(seen_of(REFUSAL), (b"{}", REFUSAL), (None, own)) != ""
    assert judged_again(Seen(own.status, [], b"{}", True), (b"{}", REFUSAL), (None, own)) != ""


@pytest.mark.parametrize(
    "kept",
    [
        Answer([ERROR], 401),
        Answer([ERROR], 429),
        Answer([ERROR], 503, [JSON, ("retry-after", "7")]),
        Answer.whole(CALLING),
    ],
)
def test_asking_again_what_was_not_refused_is_wrong(kept: Answer) -> None:
    """A key, a limit, an overload, and an answer."""
    own = Answer.whole(BARE)
    assert (
        judged_again(seen_of(own), (b"{}", kept), (None, own))
        == "upstream was asked again, and had not refused"
    )
    assert (
        judged_again(seen_of(own), (b"{}", kept))
        != "upstream refused what was added, and was not asked again"
    )


def test_asking_again_after_content_reached_the_client_is_wrong() -> None:
    events, own = stream_bytes(BARE.chunks()[:3], done=False), Answer.stream(BARE)
    broken = Answer([stream_bytes(CALLING.chunks()[:3], done=False), ABORT], 200, [EVENTS], length=False)
    seen = Seen(200, [], events + seen_of(own).body, True)
    assert judged_again(seen, (b"{}", broken), (None, own), stream=True) != ""
    whole = Answer.stream(CALLING)
    assert "had not refused" in judged_again(seen_of(own), (b"{}", whole), (None, own), stream=True)


def test_asking_something_else_too_often_or_not_at_all_is_wrong() -> None:
    """Once more, and byte for byte what the client asked."""
    own = Answer.whole(BARE)
    seen = seen_of(own)
    assert "is not what the client asked" in judged_again(seen, (b"{}", REFUSAL), (b"{ }", own))
    assert "asked 3 times" in judged_again(seen, (b"{}", REFUSAL), (None, REFUSAL), (None, own))
    assert "own request twice" in judged_again(seen, (None, REFUSAL), (None, own))
    assert "was not asked again" in judged_again(seen_of(REFUSAL), (b"{}", REFUSAL))
    assert judged_again(seen_of(REFUSAL), (None, REFUSAL)) == ""


def test_what_broke_without_a_word_may_be_sent_anew() -> None:
    """On a connection that was about to be closed."""
    own, reset = Answer.whole(BARE), Answer([ABORT])
    assert judged_again(seen_of(own), (None, reset), (None, own)) == ""
    assert judged_again(seen_of(own), (b"{}", reset), (b"{}", REFUSAL), (None, own)) == ""


def test_an_error_after_the_head_is_told_as_an_event() -> None:
    """Only there, and it is upstream's."""
    told = b"data: " + ERROR.replace(b": ", b":") + b"\n\ndata: [DONE]\n\n"
    own = Answer([ERROR], 404)
    asked = ((b"{}", LATE_REFUSAL), (None, own))
    assert judged_again(Seen(200, [], b": thinking\n\n" + told, True), *asked, stream=True) == ""
    assert judged_again(Seen(200, [], told, True), *asked, stream=True) != ""
    other = told.replace(b"no", b"yes")
    assert judged_again(Seen(200, [], b": thinking\n\n" + other, True), *asked, stream=True) != ""


async def test_a_proxy_that_asks_again_in_its_own_words_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's request written anew is not the client's."""
    real = GovernedChat._ask

    def planted(self: GovernedChat, body: bytes, *more: Any) -> Any:
        return real(self, body + b" " * self._unchanged, *more)

    monkeypatch.setattr(GovernedChat, "_ask", planted)
    monkeypatch.setattr(command, "OUT", tmp_path)
    fuzz = command.Fuzz(20261130, 250.0, Console(StringIO()), [625, 1397])
    await fuzz.run()
    assert set(fuzz.findings) == {"what upstream was asked again is not what the client asked"}


async def test_a_short_round_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make fuzz` goes on for longer."""
    monkeypatch.setattr(command, "OUT", tmp_path)
    fuzz = command.Fuzz(7, 250.0, Console(StringIO()), range(10))
    await fuzz.run()
    assert (fuzz.played, fuzz.findings) == (20, [])
