"""A message is judged, recorded and delivered the same, however upstream cut its calls into pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Mode, Reason
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.policies import Evidence, Judgement, ThresholdPolicy, Verdict
from tests.wire.generated import Generated, chat

Call = tuple[str, str, str]
NORWAY = ("c1", "lookup", '{"country": "Norway"}')
SPAIN = ("c2", "lookup", '{"country": "Spain"}')
FIND = ("c4", "find", "{}")
BOOK = ("c3", "book", '{"city": "Oslo"}')
CATALOG = ToolCatalog(read_only=("lookup", "find"), effectful=("book",))
TOOLS = ["lookup", "find", "book"]


@dataclass(frozen=True, slots=True)
class Only:
    """Withholds the calls with these ids, without a probe."""

    ids: frozenset[str]
    name: str = "only"

    def judge(self, evidence: Evidence) -> Judgement:
        return Verdict(evidence.call.id in self.ids, Reason.REPEATED_CALL, 0)


def chunk(delta: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    return {"id": "chatcmpl-1", "created": 5, "model": "atlas", "choices": [choice]}


END = chunk({}, finish_reason="tool_calls")


@dataclass(frozen=True, slots=True)
class Style:
    """How a server writes calls: its `index` (number, text or none), whether ids and names come with every
    piece, or with every piece another id."""

    index: str
    id: str
    name: str

    def pieces(self, place: int, call: Call, cuts: Sequence[int]) -> list[dict[str, Any]]:
        """The pieces of a call whose arguments are cut at `cuts`."""
        id, name, arguments = call
        ends = sorted({cut % (len(arguments) + 1) for cut in cuts} | {len(arguments)})
        texts = [arguments[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        found = []
        for number, text in enumerate(texts):
            function = {"arguments": text}
            if not number or self.name == "repeated":
                function["name"] = name
            piece: dict[str, Any] = {"type": "function", "function": function}
            if not number or self.id == "repeated":
                piece["id"] = id
            elif self.id == "empty":
                piece["id"] = ""
            elif self.id == "new":
                piece["id"] = f"{id}-{number}"
            if self.index != "none":
                piece["index"] = place if self.index == "number" else str(place)
            found.append(piece)
        return found


STYLES = st.one_of(
    st.builds(
        Style,
        st.sampled_from(["number", "text"]),
        st.sampled_from(["once", "repeated", "empty"]),
        st.sampled_from(["once", "repeated"]),
    ),
    st.builds(Style, st.sampled_from(["number", "text", "none"]), st.just("new"), st.just("once")),
    st.builds(Style, st.just("none"), st.just("repeated"), st.sampled_from(["once", "repeated"])),
    st.builds(Style, st.just("none"), st.sampled_from(["once", "empty"]), st.just("once")),
)


@st.composite
def streams(draw: st.DrawFn, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """A stream with `calls`, in one style, with any number of pieces in a delta; the role comes first, with
    the first call, or with all of them."""
    style = draw(STYLES)
    pieces = [
        piece
        for place, call in enumerate(calls)
        for piece in style.pieces(place, call, draw(st.lists(st.integers(0, 40), max_size=4)))
    ]
    role = draw(st.sampled_from(["first", "beside", "always"]))
    chunks = [chunk({"role": "assistant", "content": ""})] if role == "first" else []
    while pieces:
        count = draw(st.integers(1, len(pieces)))
        delta: dict[str, Any] = {"tool_calls": pieces[:count]}
        if role == "always" or (role == "beside" and not chunks):
            delta["role"] = "assistant"
        chunks.append(chunk(delta))
        pieces = pieces[count:]
    return [*chunks, END]


def pieces_in(chunks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All pieces of calls."""
    choices = [choice for one in chunks for choice in one["choices"]]
    return [piece for choice in choices for piece in choice["delta"].get("tool_calls") or ()]


def delivered(chunks: Sequence[Mapping[str, Any]]) -> list[Call]:
    """The calls as a client reads them that knows the styles above: by index where there is one, else by
    name."""
    calls: list[list[str]] = []
    for piece in pieces_in(chunks):
        function = piece["function"]
        place = int(piece["index"]) if "index" in piece else len(calls) - 1
        known = place < len(calls) and place >= 0
        if "index" not in piece and known and function.get("name"):
            known = piece.get("id") == calls[place][0]
            place += not known
        if not known:
            calls.append([piece["id"], function["name"], ""])
        calls[place][2] += function["arguments"]
    return [(id, name, arguments) for id, name, arguments in calls]


def judged(
    chunks: Sequence[Mapping[str, Any]], withheld: frozenset[str]
) -> tuple[Exchange, list[Mapping[str, Any]]]:
    """The exchange at its end, and what the client got."""
    governance = Governance(
        vocab_size=4096, mode=Mode.ENFORCE, policy=Only(withheld), catalog=CATALOG, action="notice"
    )
    exchange = Exchange(chat(stream=True, tools=TOOLS), governance, conversation="talk", now=5.0)
    got = [sent for one in chunks for sent in exchange.receive(one)]
    step = exchange.finish()
    if isinstance(step, Ask):
        for one in Generated(content="It is Oslo.", top=None).chunks():
            got += exchange.receive(one)
        step = exchange.finish()
    assert not isinstance(step, Ask)
    return exchange, [*got, *step.chunks]


CALLS = st.lists(st.sampled_from([NORWAY, SPAIN, BOOK, FIND]), min_size=1, max_size=4, unique=True)


@given(calls=CALLS, withheld=st.frozensets(st.sampled_from(["c1", "c2", "c4"])), draws=st.data())
def test_what_is_delivered_is_what_is_recorded(
    calls: Sequence[Call], withheld: frozenset[str], draws: st.DataObject
) -> None:
    """Each call once, with its whole arguments: those that were let pass reach the client, in order and
    whole, the others do not; decisions and records are those of the same message uncut."""
    source = draws.draw(streams(calls))
    exchange, got = judged(source, withheld)
    passed = [call for call in calls if call[0] not in withheld]
    assert delivered(got) == passed
    assert {frozenset(piece) for piece in pieces_in(got)} <= {frozenset(piece) for piece in pieces_in(source)}
    decided = {decision.call.id: decision.withheld for decision in exchange.decisions}
    assert decided == {call[0]: call[0] in withheld for call in calls}
    uncut = [
        chunk({"tool_calls": Style("number", "once", "once").pieces(place, call, [])[:1]})
        for place, call in enumerate(calls)
    ]
    whole, _ = judged([*uncut, END], withheld)
    assert exchange.new_records() == whole.new_records()


@given(calls=CALLS, withheld=st.frozensets(st.sampled_from(["c1", "c2", "c4"])), draws=st.data())
def test_the_role_is_told_as_often_as_upstream_told_it_and_no_chunk_is_empty(
    calls: Sequence[Call], withheld: frozenset[str], draws: st.DataObject
) -> None:
    """What is left of a chunk that a withheld call was taken out of says something, or is not sent."""
    _, got = judged(draws.draw(streams(calls)), withheld)
    choices = [choice for one in got for choice in one["choices"]]
    assert all(choice["finish_reason"] or any(choice["delta"].values()) for choice in choices)
    assert choices[0]["delta"].get("role") == "assistant"


@pytest.mark.parametrize("key", ["reasoning", "refusal", "function_call", "x_new"])
def test_a_withheld_call_leaves_no_empty_chunks(key: str) -> None:
    """Some servers write null into every delta for what is not there."""
    pieces = Style("number", "once", "once").pieces(0, NORWAY, [3, 9])
    source = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": None, key: None, "tool_calls": [piece]}) for piece in pieces),
        chunk({key: None}, finish_reason="tool_calls"),
    ]
    _, got = judged(source, frozenset({"c1"}))
    assert [one["choices"][0]["delta"] for one in got] == [
        {"role": "assistant", "content": ""},
        {"content": "It"},
        {"content": " is"},
        {"content": " Oslo."},
        {},
    ]


@pytest.mark.parametrize(
    "mixed",
    [
        [{"index": 0, "id": "c1", "name": "lookup"}, {"index": 0, "id": "c3", "name": "book"}],
        [{"index": 0, "id": "c1", "name": "lookup"}, {"index": 0, "id": "c2", "name": "lookup"}],
        [{"index": 0, "id": "c1", "name": "look"}, {"index": 0, "name": "up"}],
        [{"id": "c1", "name": "lookup"}, {"id": "c1", "name": "book"}],
    ],
    ids=["two tools at one place", "two calls at one place", "a name in two pieces", "two tools with one id"],
)
def test_calls_that_cannot_be_told_apart_are_not_judged(mixed: list[dict[str, Any]]) -> None:
    """No decision and no record is made of them, and the client gets what upstream sent."""
    pieces: list[dict[str, Any]] = [
        {
            **{key: value for key, value in one.items() if key != "name"},
            "function": {"name": one["name"], "arguments": "{}"},
        }
        for one in mixed
    ]
    source = [*(chunk({"tool_calls": [piece]}) for piece in pieces), END]
    exchange = Exchange(
        chat(stream=True, tools=TOOLS),
        Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=Only(frozenset({"c1"})), catalog=CATALOG),
    )
    got: list[Mapping[str, Any]] = list(exchange.receive(source[0]))
    with pytest.raises(Exception, match="two calls"):
        exchange.receive(source[1])
    got += exchange.interrupted().chunks
    assert got == source[:1]
    assert not exchange.new_records()


def test_arguments_that_are_an_object_are_not_judged() -> None:
    """They are no text, so that they may be read in more than one way; they pass as they are."""
    piece = {"index": 0, "id": "c1", "function": {"name": "lookup", "arguments": {"country": "Norway"}}}
    source = [chunk({"role": "assistant", "tool_calls": [piece]}), END]
    exchange = Exchange(
        chat(stream=True, tools=TOOLS),
        Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=Only(frozenset({"c1"})), catalog=CATALOG),
    )
    got: list[Mapping[str, Any]] = [sent for one in source for sent in exchange.receive(one)]
    with pytest.raises(Exception, match="no text"):
        exchange.finish()
    assert [*got, *exchange.interrupted().chunks] == source
    assert not exchange.new_records()


# The head of a message


SILENT = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}


@pytest.mark.parametrize("before", [[SILENT], [{**SILENT, "id": None}, {"choices": []}], []])
def test_what_follows_a_notice_is_the_same_message(before: list[dict[str, Any]]) -> None:
    """Some servers begin with a chunk without choices, whose id and model are empty."""
    source = [*before, *Generated(calls=[NORWAY], top=None).chunks(usage=True)]
    _, got = judged(source, frozenset({"c1"}))
    heads = {(one["id"], one["created"], one["model"]) for one in got if one["choices"]}
    assert heads == {("chatcmpl-1", source[-1]["created"], "atlas")}
    assert list(got[: len(before)]) == before


def test_a_head_that_is_told_late_is_taken_from_where_it_is() -> None:
    """Each of its fields from the first chunk that has it."""
    first, *rest = Generated(calls=[NORWAY], top=None).chunks()
    source = [{**first, "id": "", "model": "", "created": 0}, {**rest[0], "model": ""}, *rest[1:]]
    _, got = judged(source, frozenset({"c1"}))
    assert (got[-1]["id"], got[-1]["model"]) == ("chatcmpl-1", "atlas")


# Usage


def counted(generated: Generated, prompt: int) -> list[dict[str, Any]]:
    """The stream with what was used so far in every chunk."""
    chunks = generated.chunks(usage=True)
    for number, one in enumerate(chunks):
        done = min(number, len(chunks) - 2)
        one["usage"] = {"prompt_tokens": prompt, "completion_tokens": done, "total_tokens": prompt + done}
    return chunks


@pytest.mark.parametrize("action", ["answer", "notice"])
def test_usage_in_every_chunk_stays_in_every_chunk(action: Any) -> None:
    """What is generated after a withheld call is not in it: it never goes down, and ends as upstream's own
    last word on the client's request. What the governor added is told beside it."""
    governance = Governance(
        vocab_size=4096, mode=Mode.ENFORCE, policy=Only(frozenset({"c1"})), catalog=CATALOG, action=action
    )
    body = chat(
        stream=True, tools=["lookup"], stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    exchange = Exchange(body, governance, conversation="talk")
    source = counted(Generated(content="Hm.", calls=[NORWAY], top=None), 100)
    later = counted(Generated(content="It is Oslo.", top=None), 130)
    got = [sent for one in source for sent in exchange.receive(one)]
    step = exchange.finish()
    assert isinstance(step, Ask)
    for one in later:
        got += exchange.receive(one)
    end = exchange.finish()
    assert not isinstance(end, Ask)
    got += end.chunks
    told = [one["usage"]["completion_tokens"] for one in got]
    assert told == sorted(told)
    assert got[-1]["usage"] == source[-1]["usage"]
    added = later[-1]["usage"]
    costs = {key: added[key] for key in ("prompt_tokens", "completion_tokens")}
    assert exchange.costs == {step.purpose.value: costs}


def test_usage_that_is_null_stays_null() -> None:
    """As OpenAI writes it in all chunks but the last."""
    source = [
        {**one, "usage": one.get("usage")} for one in Generated(calls=[NORWAY], top=None).chunks(usage=True)
    ]
    _, got = judged(source, frozenset({"c1"}))
    assert all("usage" in one for one in got[:-5])
    assert got[-1]["usage"] == source[-1]["usage"]


# Reasoning that the client does not want


THINKING = Generated(content="Let me look.", reasoning="Norway, hm.", calls=[NORWAY])
HIDDEN = {"include_reasoning": False}
MODES = pytest.mark.parametrize("mode", Mode)


def hiding(stream: bool, mode: Mode, **fields: Any) -> Exchange:
    governance = Governance(vocab_size=4096, mode=mode, policy=Only(frozenset()), catalog=CATALOG)
    return Exchange(chat(stream=stream, tools=TOOLS, **{**HIDDEN, **fields}), governance, conversation="talk")


@MODES
def test_reasoning_that_the_client_does_not_want_is_measured_and_not_streamed(mode: Mode) -> None:
    """vLLM leaves the logprobs out with it, so it is asked for all the same."""
    exchange = hiding(True, mode)
    assert exchange.request["include_reasoning"] is True
    got = [sent for one in THINKING.chunks(usage=True) for sent in exchange.receive(one)]
    step = exchange.finish()
    assert not isinstance(step, Ask)
    exchange.review()
    expected = replace(THINKING, reasoning="", top=None).chunks(usage=True)
    for chunk in expected:
        for choice in chunk["choices"]:
            # As vLLM 0.32 writes the deltas of a request that wants no reasoning.
            if choice["delta"] and "role" not in choice["delta"]:
                choice["delta"]["reasoning"] = None
    assert [*got, *step.chunks] == expected
    assert exchange.entropy is not None
    assert exchange.turn.reasoning == THINKING.reasoning


@MODES
def test_reasoning_that_the_client_does_not_want_is_not_in_the_response(mode: Mode) -> None:
    exchange = hiding(False, mode)
    exchange.receive_response(THINKING.response())
    step = exchange.finish()
    assert not isinstance(step, Ask)
    assert step.body == replace(THINKING, reasoning="", top=None).response()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("action", ["answer", "notice"])
def test_nor_is_that_of_what_takes_the_place_of_a_call(stream: bool, action: Any) -> None:
    """The generation after a withheld call is asked for in the same way, and shown in the same way."""
    governance = Governance(
        vocab_size=4096, mode=Mode.ENFORCE, policy=Only(frozenset({"c1"})), catalog=CATALOG, action=action
    )
    tools = ["lookup"] if action == "answer" else TOOLS
    exchange = Exchange(chat(stream=stream, tools=tools, **HIDDEN), governance, conversation="talk")
    got: list[Mapping[str, Any]] = []
    for generation in (THINKING, Generated(content="It is Oslo.", reasoning="Well.")):
        if stream:
            got += [sent for one in generation.chunks() for sent in exchange.receive(one)]
        else:
            exchange.receive_response(generation.response())
        step = exchange.finish()
        if isinstance(step, Ask):
            assert step.body["include_reasoning"] is True
    assert not isinstance(step, Ask)
    shown = str([*got, *step.chunks, step.body])
    assert "Oslo" in shown
    assert not any(word in shown for word in ("hm", "Well", "'logprobs': {"))


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "top_logprobs": 2},
        {"return_token_ids": True},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "x"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_where_the_answer_would_be_another_one_reasoning_stays_off(fields: dict[str, Any]) -> None:
    """vLLM leaves a client without reasoning without the tokens' data as well, and begins a guided answer at
    the first token."""
    assert hiding(True, Mode.OBSERVE, **fields).request["include_reasoning"] is False


def test_the_probe_does_not_ask_for_less_reasoning() -> None:
    governance = Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=ThresholdPolicy(), catalog=CATALOG)
    exchange = Exchange(chat(tools=TOOLS, **HIDDEN), governance, conversation="talk")
    exchange.receive_response(THINKING.response())
    step = exchange.finish()
    assert isinstance(step, Ask)
    assert "include_reasoning" not in step.body


def test_what_the_client_has_read_is_not_told_again_with_the_calls() -> None:
    """A chunk may carry role, text and a call. Where what should have taken the place of the call fails after
    the client had some of it, the call goes out after all, and the text once."""
    piece = Style("number", "once", "once").pieces(0, NORWAY, [])[-1]
    beside = {"role": "assistant", "content": "Let me look.", "tool_calls": [piece]}
    governance = Governance(
        vocab_size=4096, mode=Mode.ENFORCE, policy=Only(frozenset({"c1"})), catalog=CATALOG, action="notice"
    )
    exchange = Exchange(chat(stream=True, tools=TOOLS), governance, conversation="talk")
    got = [sent for one in (chunk(beside), END) for sent in exchange.receive(one)]
    assert isinstance(exchange.finish(), Ask)
    for one in Generated(content="It is Oslo.", top=None).chunks()[:3]:
        got += exchange.receive(one)
    deltas = [one["choices"][0]["delta"] for one in (*got, *exchange.interrupted().chunks)]
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    assert "".join(delta.get("content") or "" for delta in deltas).count("Let me look.") == 1
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [[piece]]
