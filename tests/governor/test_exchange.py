"""One governed request, streamed and whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Action, Mode, Reason
from governor.exchange import Ask, Deliver, Exchange, Explain, Purpose, Step
from governor.governance import Governance
from governor.notices import NOTICE_CONFIDENT, NOTICE_REPEATED
from governor.policies import Evidence, Judgement, RulesPolicy, ThresholdPolicy, Verdict
from governor.records import CallRecord
from governor.request import ClientView
from tests.wire.assembled import Assembled
from tests.wire.generated import Generated, chat, made
from tests.wire.recorded import recorded

NORWAY = ("c1", "lookup", '{"country": "Norway", "field": "capital"}')
SWEDEN = ("c2", "lookup", '{"country": "Sweden", "field": "capital"}')
BOOK = ("c3", "book", '{"city": "Oslo"}')
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
OSLO = Generated(content="Oslo", id="chatcmpl-probe")
UNSURE = Generated(content="Oslo", sure=0.4, id="chatcmpl-probe")
CATALOG = ToolCatalog(read_only=("lookup", "find*"), effectful=("book",))
ENFORCE = Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=ThresholdPolicy(), catalog=CATALOG)
OBSERVE = replace(ENFORCE, mode=Mode.OBSERVE)
BOTH = pytest.mark.parametrize("stream", [False, True])


class Broken:
    """A policy with a bug."""

    name = "broken"

    def judge(self, evidence: Evidence) -> Judgement:
        raise ZeroDivisionError


@dataclass(frozen=True, slots=True)
class Only:
    """Withholds the calls with these ids, without a probe."""

    ids: frozenset[str]
    name: str = "only"

    def judge(self, evidence: Evidence) -> Judgement:
        return Verdict(evidence.call.id in self.ids, Reason.REPEATED_CALL, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an exchange: the message, what was asked upstream, and the raw pieces for the client.

    `early` are the chunks that the client had before upstream was done with its request.
    """

    exchange: Exchange
    message: Assembled
    asked: Sequence[Ask]
    early: Sequence[Mapping[str, Any]] = ()
    late: Sequence[Mapping[str, Any]] = ()
    body: Mapping[str, Any] | None = None


def drive(
    exchange: Exchange, first: Generated, *later: Generated | None, probe: Generated | str = OSLO
) -> Outcome:
    """Run an exchange to its end: `later` are the generations that it asks for (None: upstream fails),
    `probe` the answer to every probe, or the reason why there is none."""
    asked: list[Ask] = []
    rest = list(later)
    early = feed(exchange, first)
    late: list[Mapping[str, Any]] = []
    step = exchange.finish()
    while isinstance(step, Ask):
        asked.append(step)
        if step.purpose is Purpose.PROBE:
            step = probed(exchange, probe)
        elif (generation := rest.pop(0)) is None:
            step = exchange.interrupted()
        else:
            late += feed(exchange, generation)
            step = exchange.finish()
    assert not rest, "a generation was not asked for"
    return outcome(exchange, step, asked, early, late)


def feed(exchange: Exchange, generation: Generated) -> list[Mapping[str, Any]]:
    if not exchange.streams:
        exchange.receive_response(generation.response())
        return []
    return [sent for chunk in generation.chunks(usage=True) for sent in exchange.receive(chunk)]


def probed(exchange: Exchange, probe: Generated | str) -> Step:
    return (
        exchange.probe_failed(probe) if isinstance(probe, str) else exchange.probe_answered(probe.response())
    )


def outcome(
    exchange: Exchange, step: Deliver, asked: list[Ask], early: list[Any], late: list[Any]
) -> Outcome:
    if not exchange.streams:
        assert step.body is not None
        return Outcome(exchange, Assembled.of_response(step.body), asked, body=step.body)
    late = [*late, *step.chunks]
    return Outcome(exchange, Assembled.of_chunks([*early, *late]), asked, early, late)


def start(stream: bool, governance: Governance = ENFORCE, *messages: Any, **more: Any) -> Exchange:
    """An exchange about `messages`; `more` goes to the request, or to the exchange if it is of its
    arguments."""
    own = {key: more.pop(key) for key in ("records", "explain", "probe_when_observing") if key in more}
    body = chat(*messages, stream=stream, **more)
    return Exchange(body, governance, conversation="talk", now=5.0, **own)


def message_of(generation: Generated) -> Assembled:
    """What the client would have had without a governor, but for logprobs."""
    return replace(Assembled.of_response(generation.response()), tokens=())


# Passing


@BOTH
@pytest.mark.parametrize(
    "generation",
    [
        Generated(content="Oslo."),
        Generated(content="Let me look.", calls=[NORWAY]),
        Generated(reasoning="Where is it?", calls=[NORWAY, SWEDEN]),
        Generated(content="I book.", calls=[BOOK]),
        Generated(content="Osl", finish_reason="length"),
    ],
)
@pytest.mark.parametrize("governance", [OBSERVE, ENFORCE])
@pytest.mark.parametrize("asked", [None, 0, 2, 20])
def test_what_passes_is_what_upstream_sent(
    stream: bool, generation: Generated, governance: Governance, asked: int | None
) -> None:
    """Field by field, as if the governor were not there, whatever logprobs the client asked for."""
    fields: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    passed = drive(start(stream, governance, tools=["lookup", "book"], **fields), generation, probe=UNSURE)
    expected = replace(generation, top=asked)
    if stream:
        assert [*passed.early, *passed.late] == expected.chunks(usage=True)
    else:
        assert passed.body == expected.response()


@pytest.mark.parametrize("name", ["chat_tools_auto", "chat_after_tool", "chat_tools_none", "reason_auto"])
def test_recorded_responses_pass(name: str) -> None:
    """What vLLM really sends differs from its original in the logprobs alone."""
    response = recorded(name).response
    exchange = start(False)
    exchange.receive_response(response)
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_failed("timeout")
    expected = {**response, "choices": [{**response["choices"][0], "logprobs": None}]}
    assert step.body == expected


@pytest.mark.parametrize("name", ["chat_tools_auto_stream", "reason_auto_stream", "chat_tools_none_stream"])
@pytest.mark.parametrize("governance", [OBSERVE, ENFORCE])
def test_recorded_streams_pass(name: str, governance: Governance) -> None:
    """Every delta of vLLM's arrives, in order, and nothing of what was asked for on top."""
    chunks = recorded(name).chunks
    exchange = start(True, governance)
    received = [sent for chunk in chunks for sent in exchange.receive(chunk)]
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_failed("timeout")
    view = ClientView.of(chat(), 20)
    assert [*received, *step.chunks] == [seen for chunk in chunks if (seen := view.chunk(chunk))]


# Streaming


def test_text_goes_on_at_once_and_calls_wait() -> None:
    """Holding back more than the calls would make the time to the first token that of the whole answer."""
    generation = Generated(reasoning="Hm, yes.", content="Let me look.", calls=[NORWAY])
    exchange = start(True)
    for chunk in generation.chunks():
        delta = chunk["choices"][0]["delta"]
        sent = exchange.receive(chunk)
        assert bool(sent) is bool(delta.get("content") or delta.get("reasoning") or delta.get("role"))


def test_observing_holds_nothing_back() -> None:
    """Each chunk goes on when it comes, calls too."""
    generation = Generated(content="Let me look.", calls=[NORWAY], top=20)
    exchange = start(True, OBSERVE, logprobs=True, top_logprobs=20)
    assert all(exchange.receive(chunk) == (chunk,) for chunk in generation.chunks(usage=True))


def test_calls_that_may_not_be_withheld_do_not_wait() -> None:
    """The decision on a tool with effects is known from its name."""
    generation = Generated(calls=[BOOK])
    exchange = start(True, tools=["lookup", "book"])
    sent = [sent for chunk in generation.chunks()[:-1] for sent in exchange.receive(chunk)]
    assert "".join(_arguments(sent)) == BOOK[2]


def test_several_tokens_a_chunk_are_one_turn() -> None:
    """Speculative decoding sends more than one token at a time."""
    generation = Generated(content="Let me look.", calls=[NORWAY, SWEDEN])
    merged = _in_pairs(generation.chunks())
    one, two = start(True), start(True)
    for chunk in generation.chunks():
        one.receive(chunk)
    for chunk in merged:
        two.receive(chunk)
    assert isinstance(one.finish(), Ask)
    assert isinstance(two.finish(), Ask)
    one.probe_answered(UNSURE.response())
    two.probe_answered(UNSURE.response())
    assert one.new_records() == two.new_records()


def test_later_pieces_of_a_call_need_no_id() -> None:
    """They are put together by index: some servers repeat the id, some send an empty one."""
    exchange = start(True)
    for chunk in Generated(calls=[NORWAY, SWEDEN]).chunks():
        for call in chunk["choices"][0]["delta"].get("tool_calls", ()):
            call.setdefault("id", "")
        exchange.receive(chunk)
    exchange.finish()
    exchange.probe_answered(UNSURE.response())
    assert [(d.call.id, d.call.name, d.call.arguments) for d in exchange.decisions] == [NORWAY, SWEDEN]


# Answers


@BOTH
@pytest.mark.parametrize("content", ["", "\n", "Let me look.", "Let me look.\n"])
def test_a_confident_probe_becomes_the_answer(stream: bool, content: str) -> None:
    """Nothing more is generated, and the client sees an ordinary final message."""
    answered = drive(start(stream), Generated(reasoning="Hm.", content=content, calls=[NORWAY]))
    text = {"": "Oslo", "\n": "Oslo"}.get(content, "Let me look.\nOslo")
    assert answered.message == Assembled(text, "Hm.", (), "stop", (), frozenset({"chatcmpl-1"}))
    assert [ask.purpose for ask in answered.asked] == [Purpose.PROBE]
    assert answered.exchange.action is Action.ANSWER
    assert answered.exchange.decisions[0].reason is Reason.CONFIDENT_ANSWER


@BOTH
def test_an_answer_that_the_model_is_not_sure_of_is_not_given_in_its_name(stream: bool) -> None:
    """A policy may withhold a call that will bring nothing where the model does not know either: it is told,
    and may think, or ask again. Who chose the action `answer` gets it nevertheless."""
    bold = replace(ENFORCE, policy=ThresholdPolicy(margin=0.0, entropy=10.0))
    told = drive(start(stream, bold), Generated(calls=[NORWAY]), Generated(content="Oslo."), probe=UNSURE)
    assert told.exchange.decisions[0].action is Action.NOTICE
    assert [ask.purpose for ask in told.asked] == [Purpose.PROBE, Purpose.CONTINUATION]
    answered = drive(start(stream, replace(bold, action="answer")), Generated(calls=[NORWAY]), probe=UNSURE)
    assert answered.exchange.decisions[0].action is Action.ANSWER


@BOTH
def test_the_logprobs_of_an_answer_are_those_of_its_text(stream: bool) -> None:
    """A client that asked for logprobs gets none of the withheld call's."""
    asking = start(stream, logprobs=True, top_logprobs=2)
    answered = drive(asking, Generated(reasoning="Hm.", content="Well.", calls=[NORWAY]))
    assert answered.message.tokens == ("<think>", "Hm.", "</think>", "Well.", "Oslo", "<|im_end|>")


def test_the_probe_is_asked_on_the_same_prefix() -> None:
    """Messages and tools are the client's, so that the prefix cache serves it."""
    asked = drive(start(True, stop=["\n\n"]), Generated(calls=[NORWAY])).asked[0].body
    assert (asked["messages"], asked["tools"], asked["stop"]) == ([QUESTION], chat()["tools"], ["\n\n"])
    assert (asked["stream"], asked["tool_choice"]) == (False, "none")


@BOTH
def test_without_a_probe_the_answer_is_generated(stream: bool) -> None:
    """A rule withholds without a probe, and then the client's own sampling fields make the answer."""
    asking = start(stream, _repeats(), *_repeated(), temperature=0.7, max_tokens=9)
    answered = drive(asking, Generated(content="Again.", calls=[SWEDEN]), Generated(content="Oslo it is."))
    ask = answered.asked[0]
    assert ask.purpose is Purpose.ANSWER
    assert (ask.body["tool_choice"], ask.body["temperature"], ask.body["max_tokens"]) == ("none", 0.7, 9)
    assert ask.body["stream"] is stream
    assert ask.body["messages"] == asking.request["messages"]
    assert answered.message == Assembled("Again.\nOslo it is.", "", (), "stop", (), frozenset({"chatcmpl-1"}))
    assert answered.exchange.costs["answer"]["completion_tokens"] == 20


def test_a_generated_answer_does_not_reason_again() -> None:
    """A model that does arrives at the same call, and writes it as text because it may not make it."""
    probe = replace(ENFORCE.probe, chat_template_kwargs={"enable_thinking": False})
    asking = start(True, replace(_repeats(), probe=probe), *_repeated(), chat_template_kwargs={"style": 1})
    answered = drive(asking, Generated(calls=[SWEDEN]), Generated(content="Oslo it is."))
    assert answered.asked[0].body["chat_template_kwargs"] == {"style": 1, "enable_thinking": False}
    assert asking.request["chat_template_kwargs"] == {"style": 1}


def test_a_generated_answer_streams() -> None:
    """Its text goes on as it comes, and the client's usage stays that of its own request."""
    answering = start(True, _repeats(), *_repeated())
    feed(answering, Generated(calls=[SWEDEN]))
    assert isinstance(answering.finish(), Ask)
    sent = [answering.receive(chunk) for chunk in Generated(content="Oslo it is.", id="x").chunks(usage=True)]
    assert [len(chunks) for chunks in sent] == [0, 1, 1, 1, 0, 0]
    end = answering.finish()
    assert isinstance(end, Deliver)
    assert [chunk["choices"][0]["finish_reason"] for chunk in end.chunks[:-1]] == ["stop"]
    assert end.chunks[-1]["usage"]["prompt_tokens"] == 100
    assert {chunk["id"] for chunks in sent for chunk in chunks} == {"chatcmpl-1"}


@BOTH
@pytest.mark.parametrize(
    "failure", [None, Generated(content=" "), Generated(content='{"name": "lookup", "arguments": {}}')]
)
def test_an_answer_that_is_none_lets_the_calls_pass(stream: bool, failure: Generated | None) -> None:
    """An upstream failure, an empty answer or a call in disguise would be worse than the call."""
    generation = Generated(content="Again.", calls=[SWEDEN])
    failed = drive(start(stream, _repeats(), *_repeated()), generation, failure)
    assert failed.message.calls == (SWEDEN,)
    assert failed.message.finish_reason == "tool_calls"
    assert failed.message.content.strip() == "Again."
    assert [decision.action for decision in failed.exchange.decisions] == [Action.PASS]


@BOTH
@pytest.mark.parametrize("probe", [UNSURE, "timeout", Generated(content="")])
def test_without_a_confident_probe_the_call_passes(stream: bool, probe: Generated | str) -> None:
    """Uncertain, too slow or empty: the same for the client."""
    generation = Generated(content="Let me look.", calls=[NORWAY])
    passed = drive(start(stream), generation, probe=probe)
    assert passed.message == message_of(generation)
    assert passed.exchange.action is Action.PASS


# Notices


@BOTH
def test_with_other_tools_around_the_model_reads_a_notice(stream: bool) -> None:
    """A ban on all calls would withhold one with effects as well, which is never done."""
    noticing = start(stream, tools=["lookup", "book"])
    noticed = drive(
        noticing,
        Generated(content="Let me look.", calls=[NORWAY]),
        Generated(content="So I book.", calls=[BOOK]),
    )
    assert noticed.message == Assembled(
        "Let me look.\nSo I book.", "", (BOOK,), "tool_calls", (), frozenset({"chatcmpl-1"})
    )
    continuation = noticed.asked[1].body
    said, notice = continuation["messages"][-2:]
    assert said["tool_calls"][0]["function"] == {"name": "lookup", "arguments": NORWAY[2]}
    assert notice == {"role": "tool", "tool_call_id": "c1", "content": NOTICE_CONFIDENT}
    assert continuation["tools"] == noticing.request["tools"]
    assert [decision.action for decision in noticed.exchange.decisions] == [Action.NOTICE, Action.PASS]


@BOTH
def test_a_notice_tells_the_reason(stream: bool) -> None:
    """A repeated call is told where its result stands."""
    governance = replace(_repeats(), action="notice")
    noticed = drive(
        start(stream, governance, *_repeated()), Generated(calls=[SWEDEN]), Generated(content="Oslo.")
    )
    assert noticed.asked[0].body["messages"][-1]["content"] == NOTICE_REPEATED


@BOTH
def test_asking_again_passes(stream: bool) -> None:
    """A notice is advice: the model may insist."""
    governance = replace(ENFORCE, action="notice")
    insisting = drive(
        start(stream, governance), Generated(calls=[NORWAY]), Generated(calls=[("c9", *NORWAY[1:])])
    )
    assert insisting.message.calls == (("c9", *NORWAY[1:]),)
    assert [decision.reason for decision in insisting.exchange.decisions] == [
        Reason.CONFIDENT_ANSWER,
        Reason.ASKED_AGAIN,
    ]


@BOTH
def test_after_so_many_notices_calls_pass(stream: bool) -> None:
    """A model that wants one call after the other is not kept from all of them for ever."""
    governance = replace(ENFORCE, action="notice", max_notices=1)
    limited = drive(start(stream, governance), Generated(calls=[NORWAY]), Generated(calls=[SWEDEN]))
    assert limited.message.calls == (SWEDEN,)
    assert limited.exchange.decisions[-1].reason is Reason.NOTICE_LIMIT


@BOTH
def test_a_failed_continuation_lets_the_withheld_calls_pass(stream: bool) -> None:
    """Those withheld last; the client has a whole message in any case."""
    generation = Generated(content="Let me look.", calls=[NORWAY])
    failed = drive(start(stream, replace(ENFORCE, action="notice")), generation, None)
    assert failed.message == message_of(generation)
    assert [*failed.early, *failed.late] == (
        replace(generation, top=None).chunks(usage=True) if stream else []
    )


def test_a_continuation_that_breaks_off_lets_the_withheld_calls_pass() -> None:
    """Text of it may have been streamed already; the calls follow it."""
    exchange = start(True, replace(ENFORCE, action="notice"))
    received = feed(exchange, Generated(content="Let me look.", calls=[NORWAY]))
    exchange.finish()
    exchange.probe_answered(OSLO.response())
    for chunk in Generated(content="It is").chunks()[:-1]:
        received += exchange.receive(chunk)
    received += exchange.interrupted().chunks
    message = Assembled.of_chunks(received)
    assert (message.content, message.calls, message.finish_reason) == (
        "Let me look.\nIt is",
        (NORWAY,),
        "tool_calls",
    )


# Parallel calls


@BOTH
@pytest.mark.parametrize("withheld", [{"c1"}, {"c2"}, {"c1", "c2"}])
def test_of_parallel_calls_the_allowed_go_out(stream: bool, withheld: set[str]) -> None:
    """With their own ids and order, and without gaps in their indices."""
    calls = [NORWAY, SWEDEN, ("c4", "find_country", "{}"), BOOK]
    governance = replace(ENFORCE, policy=Only(frozenset(withheld)))
    asking = start(stream, governance, tools=["lookup", "book"], logprobs=True, top_logprobs=0)
    partial = drive(asking, Generated(content="All.", calls=calls))
    assert partial.message.calls == tuple(call for call in calls if call[0] not in withheld)
    assert partial.message.finish_reason == "tool_calls"
    actions = {decision.call.id: decision.action for decision in partial.exchange.decisions}
    assert actions == {id: Action.DROP if id in withheld else Action.PASS for id, _, _ in calls}
    assert ("Norway" in "".join(partial.message.tokens)) is ("c1" not in withheld)
    assert not partial.asked


@BOTH
def test_a_call_with_effects_goes_out_beside_a_withheld_one(stream: bool) -> None:
    """It streams at once although a governed call follows it."""
    partial = drive(start(stream, tools=["lookup", "book"]), Generated(calls=[BOOK, NORWAY]))
    assert partial.message.calls == (BOOK,)
    assert [decision.reason for decision in partial.exchange.decisions] == [
        Reason.EFFECTFUL_TOOL,
        Reason.CONFIDENT_ANSWER,
    ]


CALLS = st.lists(st.sampled_from([NORWAY, SWEDEN, BOOK, ("c5", "unheard_of", "{}")]), max_size=4, unique=True)
TEXTS = st.sampled_from(["", "\n", "Let me look.", "Yes.\n\n", "  leading"])


@given(
    calls=CALLS,
    content=TEXTS,
    reasoning=st.sampled_from(["", "Hm.", "So\n"]),
    withheld=st.sets(st.sampled_from(["c1", "c2", "d1"])),
    later=TEXTS,
    action=st.sampled_from(["auto", "notice"]),
    logprobs=st.booleans(),
)
def test_streamed_and_whole_are_the_same_message(
    calls: list[tuple[str, str, str]],
    content: str,
    reasoning: str,
    withheld: set[str],
    later: str,
    action: Any,
    logprobs: bool,
) -> None:
    """For the same generations: the same text, calls, ids, end, logprobs, decisions and records."""
    governance = replace(ENFORCE, policy=Only(frozenset(withheld)), action=action)
    first = Generated(content, reasoning, calls)
    again = Generated(later, reasoning, [("d1", "lookup", "{}")] if action == "notice" else ())
    last = Generated("Done.")
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 3} if logprobs else {}
    outcomes = []
    for stream in (False, True):
        exchange = start(stream, governance, tools=["lookup"] + ["book"] * (BOOK in calls), **fields)
        outcomes.append(_as_asked(exchange, [first, again, last]))
    whole, streamed = outcomes
    if whole.message.calls:
        # vLLM itself leaves blank text before a call out of a whole response, and sends it in a stream.
        assert streamed.message.content.strip() == whole.message.content.strip()
    else:
        assert streamed.message.content == whole.message.content
    assert replace(streamed.message, content="") == replace(whole.message, content="")
    assert streamed.exchange.decisions == whole.exchange.decisions
    assert streamed.exchange.records() == whole.exchange.records()


# Observing


@BOTH
def test_observing_judges_after_the_release(stream: bool) -> None:
    """The client has its call before the probe is asked, and the record says what enforcing would have
    done."""
    exchange = start(stream, OBSERVE)
    generation = Generated(content="Let me look.", calls=[NORWAY])
    passed = drive(exchange, generation)
    assert passed.message == message_of(generation)
    assert not passed.asked
    assert not exchange.acts
    review = exchange.review()
    assert isinstance(review, Ask)
    assert review.purpose is Purpose.PROBE
    assert not exchange.probe_answered(OSLO.response()).chunks  # type: ignore[union-attr]
    decision = exchange.decisions[0]
    assert (decision.action, decision.proposed) == (Action.PASS, Action.ANSWER)
    assert exchange.new_records()[0].probe_before is not None


def test_observing_without_probes_asks_nothing() -> None:
    """For an operator who wants no request upstream that no client made."""
    exchange = start(False, OBSERVE, probe_when_observing=False)
    drive(exchange, Generated(calls=[NORWAY]))
    assert isinstance(exchange.review(), Deliver)
    assert exchange.decisions[0].reason is Reason.NO_PROBE


@BOTH
def test_token_ids_are_those_of_one_generation(stream: bool) -> None:
    """A client that records them is only observed, even when enforcing."""
    generation = Generated(calls=[NORWAY])
    recording = drive(start(stream, return_token_ids=True), generation)
    assert recording.message == message_of(generation)


# Failing open


@BOTH
def test_a_broken_policy_lets_the_call_pass(stream: bool) -> None:
    """The exception is kept for the count."""
    generation = Generated(calls=[NORWAY])
    broken = drive(start(stream, replace(ENFORCE, policy=Broken())), generation)
    assert broken.message == message_of(generation)
    assert broken.exchange.decisions[0].reason is Reason.POLICY_ERROR
    assert [type(error) for error in broken.exchange.policy_errors] == [ZeroDivisionError]


@BOTH
def test_without_logprobs_the_call_passes(stream: bool) -> None:
    """Other servers may not have them; nothing is asked upstream then."""
    generation = Generated(calls=[NORWAY], top=None)
    unmeasured = drive(start(stream), generation)
    assert unmeasured.message == message_of(generation)
    assert unmeasured.exchange.missing_logprobs
    assert unmeasured.exchange.decisions[0].reason is Reason.NO_LOGPROBS
    assert not unmeasured.asked


def test_logprobs_of_another_shape_count_as_none() -> None:
    """A server may have its own idea of them."""
    response = Generated(calls=[NORWAY]).response()
    response["choices"][0]["logprobs"]["content"][0] = {"token": 5}
    exchange = start(False)
    exchange.receive_response(response)
    assert isinstance(exchange.finish(), Deliver)
    assert exchange.missing_logprobs
    assert exchange.decisions[0].reason is Reason.NO_LOGPROBS


@BOTH
@pytest.mark.parametrize("calls", [[NORWAY], [NORWAY, BOOK]])
def test_rules_need_no_logprobs(stream: bool, calls: list[tuple[str, str, str]]) -> None:
    """What they withhold is withheld without them too, alone or beside others."""
    governance = replace(ENFORCE, policy=Only(frozenset({"c1"})))
    generations = [Generated("Well.", calls=calls, top=None), Generated("Oslo.", top=None)]
    ruled = _as_asked(start(stream, governance), generations)
    assert ruled.message.calls == tuple(calls[1:])
    assert ruled.message.content == ("Well." if len(calls) > 1 else "Well.\nOslo.")


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": [0]},
        {"choices": [{"delta": {}, "logprobs": {"content": 5}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]},
    ],
    ids=["no choice", "logprobs that are none", "an index that is none"],
)
@pytest.mark.parametrize(
    "way", [{"action": "answer"}, {"action": "notice"}, {"policy": Only(frozenset({"c1"}))}], ids=str
)
def test_what_waits_beside_an_odd_chunk_is_released(odd: dict[str, Any], way: dict[str, Any]) -> None:
    """Where the decision, or what becomes of the calls, fails at that chunk, all of them go out as they
    came, before a notice's generation was begun or an answer taken for said."""
    *chunks, end = Generated(content="All.", calls=[NORWAY, SWEDEN]).chunks()
    source = [*chunks, odd, end, {"choices": [], "usage": {}}]
    exchange = start(True, replace(ENFORCE, **way), logprobs=True, top_logprobs=20)
    received = [sent for chunk in source for sent in exchange.receive(chunk)]
    try:
        step = exchange.finish()
        while isinstance(step, Ask):
            step = probed(exchange, OSLO) if step.purpose is Purpose.PROBE else exchange.interrupted()
    except Exception:
        step = exchange.interrupted()
    assert [*received, *step.chunks] == source
    assert not any(decision.withheld for decision in exchange.decisions)


@pytest.mark.parametrize("cut", range(12))
def test_a_stream_that_breaks_off_is_released_as_it_is(cut: int) -> None:
    """Wherever it breaks, the client has what upstream had sent, and no decision is taken."""
    chunks = Generated(content="Let me look.", calls=[NORWAY], top=20).chunks()[:cut]
    exchange = start(True, logprobs=True, top_logprobs=20)
    received = [sent for chunk in chunks for sent in exchange.receive(chunk)]
    end = exchange.finish()
    assert isinstance(end, Deliver)
    assert [*received, *end.chunks] == chunks
    assert not exchange.complete
    assert not exchange.decisions


@pytest.mark.parametrize("sent", [0, 2, -1])
def test_an_error_in_the_stream_arrives(sent: int) -> None:
    """After what waits, since that came before it."""
    error = {"error": {"message": "boom", "type": "InternalServerError", "param": None, "code": 500}}
    chunks = [*Generated(calls=[NORWAY], top=None).chunks()[:sent], error]
    exchange = start(True)
    received = [sent for chunk in chunks for sent in exchange.receive(chunk)]
    end = exchange.finish()
    assert isinstance(end, Deliver)
    assert [*received, *end.chunks] == chunks


# Records


@BOTH
def test_the_next_request_completes_the_record(stream: bool) -> None:
    """What the call led to is known one turn later: the entropy and the answer after its result."""
    first = drive(start(stream), Generated(content="Let me look.", calls=[NORWAY], sure=0.8), probe=UNSURE)
    (record,) = first.exchange.new_records()
    assert (record.call_id, record.conversation, record.created) == ("c1", "talk", 5.0)
    assert (record.entropy_after, record.probe_after) == (None, None)
    second = start(stream, ENFORCE, QUESTION, *made(NORWAY), records={"c1": record}, temperature=0)
    drive(second, Generated(content="Oslo"))
    (updated,) = second.records()
    assert updated.entropy_before == record.entropy_before
    assert updated.entropy_reduction is not None and updated.entropy_reduction > 0
    assert updated.gain is not None and updated.gain > 0
    assert updated.answer_changed is False
    assert CallRecord.from_dict(json.loads(json.dumps(updated.as_dict()))) == updated


def test_a_record_is_completed_once() -> None:
    """Later turns see the same result again; what followed it first is what it led to."""
    first = drive(start(False), Generated(calls=[NORWAY]), probe=UNSURE)
    (record,) = first.exchange.new_records()
    done = replace(record, entropy_after=1.0, probe_after=record.probe_before, outcome="ok", returned=5.0)
    again = start(False, ENFORCE, QUESTION, *made(NORWAY), records={"c1": done})
    drive(again, Generated(content="Oslo"))
    (kept,) = again.records()
    assert replace(kept, result="") == done


def test_a_missing_record_breaks_nothing() -> None:
    """The store may have lost it, or never had it."""
    exchange = start(False, ENFORCE, QUESTION, *made(NORWAY), records={})
    assert drive(exchange, Generated(content="Oslo")).message.content == "Oslo"
    assert exchange.records() == ()


# Explaining


@BOTH
def test_the_decision_is_explained_to_who_asks(stream: bool) -> None:
    """In the body, or in the last chunk of the stream, and JSON-ready."""
    explained = drive(start(stream, explain=Explain.TOKENS), Generated(content="Well.", calls=[NORWAY]))
    last = explained.late[-1] if stream else explained.body
    assert last is not None
    governor = json.loads(json.dumps(last["governor"]))
    assert governor["mode"] == "enforce"
    assert governor["decisions"][0]["action"] == "answer"
    assert governor["usage"]["probe"] == {"prompt_tokens": 100, "completion_tokens": 20}
    assert governor["entropy"]["segment"] == pytest.approx(explained.exchange.entropy)
    assert {
        "text": "Well.",
        "entropy": governor["entropy"]["segment"],
        "span": "content",
        "generation": 0,
    } in governor["tokens"]
    others = [*explained.early, *explained.late[:-1]]
    assert not any("governor" in chunk for chunk in others)


@BOTH
def test_who_asks_while_observing_waits_for_the_decision(stream: bool) -> None:
    """The explanation holds the probe, so it can only come after it; the text before it does not wait."""
    explained = drive(start(stream, OBSERVE, explain=Explain.DECISIONS), Generated(calls=[NORWAY]))
    last = explained.late[-1] if stream else explained.body
    assert last is not None
    assert last["governor"]["decisions"][0]["proposed"] == "answer"
    assert explained.message.calls == (NORWAY,)
    assert isinstance(explained.exchange.review(), Deliver)


def test_the_explanation_tells_what_earlier_results_were_worth() -> None:
    """The client reads the entropy reduction and the gain of the call that it just made."""
    first = drive(start(False), Generated(calls=[NORWAY], sure=0.8), probe=UNSURE)
    records = {"c1": first.exchange.new_records()[0]}
    again = [QUESTION, *made(NORWAY)]
    second = start(False, ENFORCE, *again, records=records, explain=Explain.DECISIONS, temperature=0)
    body = drive(second, Generated(content="Oslo")).body
    assert body is not None
    (result,) = body["governor"]["results"]
    assert (result["call_id"], result["tool"], result["answer_changed"]) == ("c1", "lookup", False)
    assert result["gain"] > 0


def _repeats() -> Governance:
    return replace(ENFORCE, policy=RulesPolicy())


def _repeated() -> list[dict[str, Any]]:
    """A history in which the call of SWEDEN was made, so that making it again is a repeat."""
    return [QUESTION, *made(("c0", *SWEDEN[1:]), results=["Stockholm"])]


def _as_asked(exchange: Exchange, generations: list[Generated]) -> Outcome:
    """Like `drive`, with as many of the generations as it asks for."""
    early, late, asked = feed(exchange, generations.pop(0)), [], []
    step = exchange.finish()
    while isinstance(step, Ask):
        asked.append(step)
        late += feed(exchange, generations.pop(0))
        step = exchange.finish()
    return outcome(exchange, step, asked, early, late)


def _arguments(chunks: Sequence[Mapping[str, Any]]) -> list[str]:
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    return [call["function"].get("arguments", "") for call in calls]


def _in_pairs(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same stream with two tokens a chunk, where both bring the same kind of delta."""
    merged: list[dict[str, Any]] = []
    for chunk in chunks:
        choice = chunk["choices"][0]
        before = merged[-1]["choices"][0] if merged else None
        if (
            before
            and before["delta"] == choice["delta"] == {}
            and before["logprobs"]
            and not choice["finish_reason"]
        ):
            before["logprobs"]["content"] += choice["logprobs"]["content"]
        else:
            merged.append(chunk)
    return merged
