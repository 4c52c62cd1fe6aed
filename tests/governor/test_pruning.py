"""What the model sees of a history, and above all what is left as it is."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import CallSignature, ToolCall, ToolCatalog
from governor.conversation import executed_calls
from governor.notices import NOTICE_REPEATED
from governor.pruning import (
    PruneSettings,
    Pruning,
    StubReason,
    estimated_tokens,
    is_stub,
    prune,
    stub_for,
)
from governor.results import Outcome

CATALOG = ToolCatalog(read_only=("lookup", "search"), effectful=("send",))

PAGE = "All the facts there are. " * 40
OTHER = "Other facts altogether. " * 40
EAGER = PruneSettings("low_value", min_tokens=1, batch_tokens=1, expected_turns=100)
PATIENT = replace(EAGER, expected_turns=0)


def asked(*calls: tuple[str, str], arguments: Any = None) -> dict[str, Any]:
    """An assistant message with calls, given as (id, name); each has arguments of its own unless told."""
    tool_calls = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": arguments or json.dumps({"of": id_})},
        }
        for id_, name in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


def told(id_: Any, content: Any = PAGE, **fields: object) -> dict[str, Any]:
    """A tool message."""
    return {"role": "tool", "tool_call_id": id_, "content": content, **fields}


def user(text: str = "Go on.") -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def said(text: str = "So it is.") -> dict[str, Any]:
    """An assistant message without calls: what came before it is not fresh any more."""
    return {"role": "assistant", "content": text}


def pruned(
    messages: Sequence[Any],
    *low_value: str,
    settings: PruneSettings = EAGER,
    stubs: Mapping[str, StubReason] | None = None,
) -> Pruning:
    """The pruning with these results labelled."""
    return prune(messages, CATALOG, settings, stubs=stubs or {}, low_value=set(low_value))


def contents(pruning: Pruning) -> list[Any]:
    """What stands in the tool messages: the text, or the reason of a stub of ours."""
    return [message["content"] for message in pruning.messages if message["role"] == "tool"]


def stub(reason: StubReason, text: str = PAGE) -> str:
    """The stub of a text."""
    return stub_for(reason, len(text))


def fresh(name: str = "lookup", content: Any = PAGE, **fields: object) -> list[dict[str, Any]]:
    """A conversation of one call whose result has just come."""
    return [user(), asked(("a", name)), told("a", content, **fields)]


# The stub


@pytest.mark.parametrize("reason", StubReason)
@given(size=st.integers(0, 10**9))
def test_a_stub_is_one_short_line_that_is_known_again(reason: StubReason, size: int) -> None:
    """A client may give it back to us with whitespace around it; it must never be a failure."""
    text = stub_for(reason, size)
    assert is_stub(f" {text}\n")
    assert "\n" not in text and str(size) in text
    assert estimated_tokens(text) <= 40
    [executed] = executed_calls([told("a", text)], CATALOG)
    assert executed.outcome is Outcome.OK


@pytest.mark.parametrize("reason", [StubReason.LOW_VALUE, StubReason.AGE])
def test_a_stub_whose_text_is_gone_says_how_to_get_it(reason: StubReason) -> None:
    """The same text above needs no such offer, and the rules would not keep it."""
    assert "Repeat the call with the same arguments" in stub_for(reason, 5)
    assert "Repeat" not in stub_for(StubReason.DUPLICATE, 5)


@given(st.text() | st.just(PAGE) | st.just(NOTICE_REPEATED))
def test_no_other_text_is_a_stub(text: str) -> None:
    """Nor is one that has a stub in it, or a number no result is as long as (Python refuses to read it)."""
    assert not is_stub(text)
    assert not is_stub(f"{stub(StubReason.AGE)} {text}x")
    assert not is_stub(stub_for(StubReason.AGE, 7).replace("7", "7" * 5000))


@pytest.mark.parametrize("name", ["min_tokens", "batch_tokens", "keep_last", "expected_turns"])
def test_settings_refuse_what_makes_no_sense(name: str) -> None:
    """At the start, not in a request."""
    wrong: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match=name):
        PruneSettings(**wrong)


# Fresh results


def test_a_fresh_result_of_low_value_is_pruned_at_once() -> None:
    """It is in no cache yet, so no batch is waited for and nothing is computed again."""
    pruning = pruned(fresh(), "a", settings=replace(PATIENT, batch_tokens=10**6))
    assert contents(pruning) == [stub(StubReason.LOW_VALUE)]
    assert pruning.stubs == {"a": StubReason.LOW_VALUE}
    assert pruning.new == {"a"}
    expected = estimated_tokens(PAGE) - estimated_tokens(stub(StubReason.LOW_VALUE))
    assert (pruning.saved_tokens, pruning.recomputed_tokens) == (expected, 0)


def test_a_result_without_a_label_stays() -> None:
    """And the messages are the client's own."""
    messages = fresh()
    assert pruned(messages, "b").messages is messages


def test_only_the_content_of_the_message_changes() -> None:
    """Call and result stay a pair, and fields that we do not know stay in their order."""
    messages = fresh("lookup", [{"type": "text", "text": PAGE}], extra=[1])
    messages[2] = {"name": "lookup", **messages[2]}
    pruning = pruned(messages, "a")
    assert pruning.messages[:2] == messages[:2]
    assert pruning.messages[0] is messages[0] and pruning.messages[1] is messages[1]
    expected = {**messages[2], "content": stub(StubReason.LOW_VALUE)}
    assert list(pruning.messages[2].items()) == list(expected.items())


@pytest.mark.parametrize("name", ["send", "mystery"])
def test_a_tool_that_is_not_known_to_be_read_only_is_never_pruned(name: str) -> None:
    """Not with a label, not as one of before, not by age."""
    sticky = {"a": StubReason.LOW_VALUE}
    for messages in (fresh(name), [*fresh(name), said()]):
        assert pruned(messages, "a", stubs=sticky).messages is messages
        aged = pruned(messages, stubs=sticky, settings=replace(EAGER, policy="age", keep_last=0))
        assert aged.messages is messages


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("Error: no such country. " + PAGE, {}),
        (PAGE, {"is_error": True}),
        (NOTICE_REPEATED, {}),
        ([{"type": "text", "text": PAGE}, {"type": "image_url", "image_url": {"url": "x"}}], {}),
        ([PAGE], {}),
        ("", {}),
        ("31 C", {}),
        (None, {}),
        (b"bytes", {}),
        (17, {}),
    ],
)
def test_errors_notices_images_and_what_is_short_stay(content: Any, fields: dict[str, Any]) -> None:
    """An error is what the model learns from; a picture has no length; a stub must not be longer."""
    for messages in (fresh("lookup", content, **fields), [*fresh("lookup", content, **fields), said()]):
        assert pruned(messages, "a", stubs={"a": StubReason.LOW_VALUE}).messages is messages


def test_a_result_as_long_as_its_stub_stays() -> None:
    """There is nothing to gain; one token more is a gain."""
    size = estimated_tokens(stub_for(StubReason.LOW_VALUE, 100)) * 4
    sticky = {"a": StubReason.LOW_VALUE}
    assert not pruned(fresh("lookup", "x" * size), "a", stubs=sticky).stubs
    longer = pruned(fresh("lookup", "x" * (size + 1)), "a")
    assert longer.stubs and longer.saved_tokens == 1


def test_min_tokens_spares_short_results_but_not_those_pruned_before() -> None:
    """A changed setting must not change an old prompt."""
    settings = replace(EAGER, min_tokens=estimated_tokens(PAGE) + 1)
    assert not pruned(fresh(), "a", settings=settings).stubs
    assert pruned(fresh(), settings=settings, stubs={"a": StubReason.LOW_VALUE}).stubs


def test_none_prunes_nothing_at_all() -> None:
    """Turned off is off, also for what was pruned before."""
    messages = fresh()
    off = PruneSettings()
    assert pruned(messages, "a", settings=off, stubs={"a": StubReason.AGE}) == Pruning(messages)


# The same text above


@pytest.mark.parametrize("above", ["lookup", "send"])
def test_a_fresh_result_that_already_stands_above_needs_no_label(above: str) -> None:
    """Whatever tool it came from, the model can read it there."""
    messages = [asked(("a", above)), told("a"), asked(("b", "search")), told("b")]
    pruning = pruned(messages)
    assert contents(pruning) == [PAGE, stub(StubReason.DUPLICATE)]
    assert pruning.stubs == {"b": StubReason.DUPLICATE}


def test_of_two_fresh_results_with_one_text_the_first_stays() -> None:
    """Parallel calls that found the same."""
    messages = [asked(("a", "lookup"), ("b", "search")), told("b"), told("a")]
    assert contents(pruned(messages)) == [PAGE, stub(StubReason.DUPLICATE)]


def test_a_stub_is_no_text_that_stands_above() -> None:
    """Otherwise the text would stand nowhere."""
    messages = [asked(("a", "lookup")), told("a"), asked(("b", "search")), told("b")]
    pruning = pruned(messages, stubs={"a": StubReason.LOW_VALUE})
    assert contents(pruning) == [stub(StubReason.LOW_VALUE), PAGE]


def test_an_older_result_is_not_pruned_as_the_same_text() -> None:
    """That is for fresh ones: the cache is paid for already."""
    messages = [asked(("a", "lookup")), told("a"), asked(("b", "search")), told("b"), said()]
    assert not pruned(messages).stubs


def test_what_a_stub_points_at_is_kept() -> None:
    """The label came later; what it would free is the only copy."""
    messages = [asked(("a", "lookup")), told("a"), asked(("b", "search")), told("b"), said()]
    sticky = {"b": StubReason.DUPLICATE}
    pruning = pruned(messages, "a", stubs=sticky)
    assert contents(pruning) == [PAGE, stub(StubReason.DUPLICATE)]
    # And where the client sends back what we made of its history.
    assert pruned(pruning.messages, "a", stubs=sticky).messages is pruning.messages


def test_a_stub_that_points_at_nothing_is_taken_back() -> None:
    """The client cut the beginning of its history: the text is not above any more."""
    messages = [asked(("b", "search")), told("b"), said()]
    assert pruned(messages, stubs={"b": StubReason.DUPLICATE}).messages is messages


# Repeats of pruned calls


def again(*between: Any) -> list[Any]:
    """A call that was pruned, and the same call made again."""
    same = '{"country": "Peru"}'
    return [
        asked(("a", "lookup"), arguments=same),
        told("a"),
        *between,
        asked(("b", "lookup"), arguments=same),
        told("b"),
    ]


SAME = CallSignature("lookup", '{"country":"Peru"}')


@pytest.mark.parametrize("end", [[], [said()]])
@pytest.mark.parametrize("reason", [StubReason.LOW_VALUE, StubReason.AGE])
def test_the_repeat_of_a_pruned_call_is_kept(reason: StubReason, end: list[Any]) -> None:
    """The stub promised the full text. A label on the repeat says the same as the first one, also later,
    and the same text in full elsewhere is not what was asked for."""
    messages = [asked(("z", "search")), told("z"), *again(), *end]
    pruning = pruned(messages, "b", stubs={"a": reason})
    assert contents(pruning) == [PAGE, stub(reason), PAGE]
    assert pruning.missing == frozenset()


def test_siblings_are_no_repeats_of_each_other() -> None:
    """Both calls were made before either was a stub."""
    messages = [asked(("a", "lookup"), ("b", "lookup"), arguments='{"x": 1}'), told("a"), told("b", OTHER)]
    pruning = pruned(messages, "a", "b")
    assert pruning.new == {"a", "b"}


def test_a_call_whose_text_is_gone_is_no_repeat_for_the_rules() -> None:
    """Its result must come in before the rule may speak again; a failure is none."""
    sticky = {"a": StubReason.LOW_VALUE}
    waiting = again()[:2]
    assert pruned(waiting, stubs=sticky).missing == {SAME}
    assert pruned(again()[:3], stubs=sticky).missing == {SAME}
    failed = [*again()[:-1], told("b", "Error: timeout")]
    assert pruned(failed, stubs=sticky).missing == {SAME}
    assert pruned(again(), stubs=sticky).missing == frozenset()
    assert pruned(waiting).missing == frozenset()


def test_the_newest_result_says_whether_a_text_is_gone() -> None:
    """What the model reads last is the offer to repeat the call."""
    messages = [*again(), said()]
    both = {"a": StubReason.AGE, "b": StubReason.AGE}
    assert pruned(messages, stubs=both).missing == {SAME}
    assert pruned(messages, stubs={"b": StubReason.AGE}).missing == {SAME}
    # A stub that points at the text of another call takes no offer back.
    elsewhere = [asked(("z", "search")), told("z"), *messages]
    pointing = {"a": StubReason.AGE, "b": StubReason.DUPLICATE}
    assert pruned(elsewhere, stubs=pointing).missing == {SAME}


def test_a_text_that_stands_above_is_not_gone() -> None:
    """A repeat of it is a repeat, so that a loop still ends."""
    pruning = pruned(again())
    assert pruning.stubs == {"b": StubReason.DUPLICATE}
    assert pruning.missing == frozenset()


def test_stubs_that_the_client_sends_are_known() -> None:
    """A client that keeps what the model saw, or a proxy before this one."""
    messages = [asked(("a", "lookup"), arguments='{"x":1}'), told("a", stub(StubReason.AGE)), said()]
    pruning = pruned(messages, "a", stubs={"a": StubReason.AGE})
    assert pruning.messages is messages
    assert pruning.stubs == {"a": StubReason.AGE}
    assert pruning.missing == {ToolCall("a", 0, "lookup", '{"x":1}').signature}


def test_a_result_that_only_reads_like_a_stub_unlocks_nothing() -> None:
    """A tool may write it to have itself called again; the record says that it was never pruned."""
    messages = [asked(("a", "lookup"), arguments='{"x":1}'), told("a", stub(StubReason.AGE)), said()]
    assert pruned(messages, "a").missing == frozenset()


# Older results


def chain(sizes: Sequence[int], end: str = "So it is.") -> list[Any]:
    """A conversation of one call after the other, whose results have so many characters each."""
    messages: list[Any] = [user()]
    for number, size in enumerate(sizes):
        messages += [asked((f"c{number}", "lookup")), told(f"c{number}", chr(97 + number % 26) * size)]
    return [*messages, said(end)]


def test_an_older_result_waits_until_a_batch_is_together() -> None:
    """Each edit costs the cache behind it, so there are few of them."""
    settings = replace(EAGER, batch_tokens=400)
    assert not pruned(chain([1000, 1000]), "c0", settings=settings).stubs
    assert pruned(chain([1000, 1000]), "c0", "c1", settings=settings).new == {"c0", "c1"}


def test_an_older_result_waits_while_much_of_worth_follows() -> None:
    """What it frees must make up for what is computed once more."""
    settings = replace(EAGER, expected_turns=3)
    assert not pruned(chain([1000, 9000]), "c0", settings=settings).stubs
    assert pruned(chain([9000, 1000]), "c0", settings=settings).new == {"c0"}


def test_a_candidate_far_above_does_not_hold_up_those_near_the_end() -> None:
    """It waits on its own."""
    pruning = pruned(
        chain([400, 20_000, 4000, 4000]), "c0", "c2", "c3", settings=replace(EAGER, expected_turns=3)
    )
    assert pruning.new == {"c2", "c3"}


def test_a_batch_is_counted_from_its_own_beginning() -> None:
    """What waits further above does not make the few tokens near the end a batch."""
    settings = replace(EAGER, batch_tokens=1000, expected_turns=3)
    assert not pruned(chain([8000, 80_000, 800]), "c0", "c2", settings=settings).stubs
    assert pruned(chain([8000, 80_000, 8000]), "c0", "c2", settings=settings).new == {"c2"}


def test_an_edit_that_only_breaks_even_waits() -> None:
    """As many tokens saved as computed again: the answer would only come later."""
    settings = replace(EAGER, expected_turns=1)
    again_ = estimated_tokens(stub_for(StubReason.LOW_VALUE, 999)) + estimated_tokens("So it is.")
    even = 4 * (again_ + estimated_tokens(stub_for(StubReason.LOW_VALUE, 999)))
    assert freed(even) == again_
    assert not pruned(chain([even]), "c0", settings=settings).stubs
    assert pruned(chain([even + 1]), "c0", settings=settings).stubs


def test_what_is_computed_again_is_what_follows_the_edit() -> None:
    """With the stubs, and up to the last assistant message: what comes after it was never in the cache."""
    messages = [*chain([9000, 400]), user("x" * 4000)]
    pruning = pruned(messages, "c0")
    behind = [
        stub_for(StubReason.LOW_VALUE, 9000),
        "lookup" + '{"of": "c1"}',
        "b" * 400,
        "So it is.",
    ]
    assert pruning.recomputed_tokens == sum(estimated_tokens(text) for text in behind)


def freed(size: int) -> int:
    """The tokens that a stub frees of a text of so many characters."""
    return estimated_tokens("x" * size) - estimated_tokens(stub_for(StubReason.LOW_VALUE, size))


@given(
    sizes=st.lists(st.sampled_from([8, 200, 400, 800, 1600, 6000]), min_size=1, max_size=7),
    labels=st.sets(st.integers(0, 6)),
    turns=st.sampled_from([0, 0.5, 1, 2, 3, 5]),
    batch=st.sampled_from([0, 50, 300, 1000]),
)
def test_the_edit_is_the_best_of_all_edits(
    sizes: list[int], labels: set[int], turns: float, batch: int
) -> None:
    """Each possible first edit is tried here, and its saving written out."""
    messages = chain(sizes)
    candidates = [n for n in sorted(labels) if n < len(sizes) and freed(sizes[n]) > 0]
    calls = estimated_tokens("lookup" + '{"of": "c0"}')
    net: dict[int, float] = {}
    for first in candidates:
        saving = sum(freed(sizes[n]) for n in candidates if n >= first)
        cached = sum(estimated_tokens("x" * size) for size in sizes[first:])
        cached += calls * (len(sizes) - first - 1) + estimated_tokens("So it is.")
        if saving >= batch:
            net[first] = turns * saving - (cached - saving)
    settings = PruneSettings("low_value", min_tokens=0, batch_tokens=batch, expected_turns=turns)
    pruning = pruned(messages, *(f"c{n}" for n in labels), settings=settings)
    best = max(net, key=lambda first: (net[first], first), default=None)
    chosen = [n for n in candidates if best is not None and net[best] > 0 and n >= best]
    assert pruning.new == {f"c{n}" for n in chosen}


def test_by_age_all_but_the_newest_are_pruned() -> None:
    """Whatever they said; but none that the model has not yet read."""
    settings = PruneSettings("age", min_tokens=1, keep_last=2)
    assert pruned(chain([400] * 5), settings=settings).new == {"c0", "c1", "c2"}
    assert not pruned(chain([400] * 2), settings=settings).new
    unread = [asked(("a", "lookup"), ("b", "lookup"), ("c", "lookup"))]
    unread += [told("a", OTHER), told("b"), told("c")]
    assert not pruned(unread, "a", settings=settings).new
    assert pruned([*unread, said()], settings=settings).new == {"a"}


# Histories of a strange kind


def test_a_shared_id_gets_no_stub_by_label() -> None:
    """Some engines number the calls of each message from 0: which of them the label means, nobody knows."""
    messages = [asked(("0", "lookup")), told("0"), asked(("0", "lookup")), told("0", OTHER)]
    assert not pruned(messages, "0").stubs
    assert not pruned([*messages, said()], "0").stubs
    # What was a stub while the id stood for one call stays one.
    assert contents(pruned(messages, stubs={"0": StubReason.LOW_VALUE})) == [
        stub(StubReason.LOW_VALUE),
        OTHER,
    ]


def test_an_id_that_an_effectful_call_shares_is_never_pruned() -> None:
    """The result may be that of either."""
    messages = [asked(("a", "send"), ("a", "lookup")), told("a"), said()]
    assert pruned(messages, "a", stubs={"a": StubReason.AGE}).messages is messages


def test_two_results_of_one_call_are_not_told_apart() -> None:
    """Neither is pruned by a label."""
    messages = [asked(("a", "lookup")), told("a"), told("a", OTHER), said()]
    assert not pruned(messages, "a").stubs


def test_a_result_without_its_call_stays() -> None:
    """The client cut its history in between, or sends the call after its result."""
    messages = [told("a"), asked(("a", "lookup")), user()]
    assert pruned(messages, "a", stubs={"a": StubReason.LOW_VALUE}).messages is messages


@pytest.mark.parametrize("text", ["\ud800 \x00\x07" * 250_000, "word " * 200_000, "\n" * 10**6])
def test_large_and_binary_results_are_pruned_like_others(text: str) -> None:
    """A file that was read by mistake is what pruning is for."""
    [content] = contents(pruned(fresh("lookup", text), "a"))
    assert content == stub(StubReason.LOW_VALUE, text)
    assert content.isascii()


def test_arguments_nested_too_deep_are_left_alone() -> None:
    """Their call cannot be read, so its result has none."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"in": deep}
    messages = [asked(("a", "lookup"), arguments=deep), told("a"), said()]
    assert pruned(messages, "a").messages is messages
    while deep:  # Piece by piece: taken down at once, it would overrun the stack.
        deep = deep.pop("in", None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(PAGE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
odd_calls = st.lists(
    json_values
    | st.fixed_dictionaries(
        {"id": json_values | st.just("a")},
        optional={
            "function": json_values
            | st.fixed_dictionaries({"name": st.just("lookup") | json_values, "arguments": json_values})
        },
    ),
    max_size=2,
)
odd_messages = st.lists(
    json_values
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "function"]) | json_values},
        optional={
            "content": json_values,
            "tool_calls": json_values | odd_calls,
            "tool_call_id": json_values | st.just("a"),
        },
    ),
    max_size=6,
)


@given(odd_messages, st.sampled_from(["low_value", "age"]))
def test_messages_of_any_shape_are_let_through(messages: list[Any], policy: Any) -> None:
    """Upstream says what is wrong with them, not we."""
    settings = replace(EAGER, policy=policy, keep_last=0)
    pruning = pruned(messages, "a", settings=settings, stubs={"a": StubReason.DUPLICATE})
    assert len(pruning.messages) == len(messages)


def steps_taken(calls: int) -> int:
    """How many functions are called to prune a conversation of so many calls, every second one labelled."""
    messages = chain([400 + n % 7 for n in range(calls)])
    taken = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal taken
        taken += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        pruning = pruned(messages, *(f"c{n}" for n in range(0, calls, 2)))
    finally:
        sys.setprofile(None)
    assert pruning.new
    return taken


def test_the_work_grows_with_the_conversation_and_not_with_its_square() -> None:
    """Twice the calls, twice the work."""
    assert steps_taken(2000) < 2.2 * steps_taken(1000)


# Laws


@dataclass(frozen=True)
class Story:
    """A conversation, the labels of its results, and how it is pruned."""

    messages: list[Any]
    labels: frozenset[str]
    late: frozenset[str]
    settings: PruneSettings

    def requests(self) -> Iterator[tuple[list[Any], frozenset[str]]]:
        """The messages and the labels of each request: all up to an assistant message, and the whole. Late
        labels are known to the last two alone."""
        ends = [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]
        ends.append(len(self.messages))
        for number, end in enumerate(ends):
            yield self.messages[:end], self.labels | (self.late if number >= len(ends) - 2 else frozenset())


results = st.sampled_from(
    [
        PAGE,
        PAGE,
        OTHER,
        PAGE * 9,
        OTHER * 5,
        "31 C",
        "",
        "Error: no",
        NOTICE_REPEATED,
        stub_for(StubReason.AGE, 9),
    ]
)
tools = st.sampled_from(["lookup", "lookup", "search", "send", "mystery"])


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Short conversations with parallel calls, repeats and equal texts; in some of them ids are shared."""
    shared = draw(st.integers(0, 4)) == 0
    messages: list[Any] = [user()]
    ids: list[str] = []
    for turn in range(draw(st.integers(1, 7))):
        here = [str(n) if shared else f"{turn}-{n}" for n in range(draw(st.integers(0, 3)))]
        ids += here
        calls = asked(*((id_, draw(tools)) for id_ in here))
        for call in calls["tool_calls"]:
            call["function"]["arguments"] = draw(st.sampled_from(['{"x": 1}', '{"x": 2}', "{}"]))
        messages.append(calls if here else said())
        messages += [told(id_, draw(results)) for id_ in here]
        if draw(st.booleans()):
            messages.append(user(draw(st.sampled_from(["Go on.", "And then? " * 60]))))
    some = st.frozensets(st.sampled_from(ids)) if ids else st.just(frozenset[str]())
    settings = PruneSettings(
        policy=draw(st.sampled_from(["low_value", "low_value", "age"])),
        min_tokens=draw(st.sampled_from([0, 64])),
        batch_tokens=draw(st.sampled_from([0, 300, 1000])),
        keep_last=draw(st.integers(0, 3)),
        expected_turns=draw(st.sampled_from([0.5, 2.0, 10.0])),
    )
    return Story(messages, draw(some), draw(some), settings)


def prunings(story: Story) -> Iterator[tuple[list[Any], frozenset[str], Pruning]]:
    """Each request with its labels and its pruning; the stubs are carried from one to the next."""
    stubs: dict[str, StubReason] = {}
    for messages, labels in story.requests():
        pruning = prune(messages, CATALOG, story.settings, stubs=stubs, low_value=labels)
        yield messages, labels, pruning
        stubs |= pruning.stubs


def changed(messages: Sequence[Any], pruning: Pruning) -> list[int]:
    """The places of the messages that the model sees otherwise than the client."""
    pairs = zip(messages, pruning.messages, strict=True)
    return [place for place, (before, after) in enumerate(pairs) if before is not after]


@given(stories())
def test_the_same_history_gives_the_same_prompt(story: Story) -> None:
    """Also where the client's objects are others; and the client's own are never touched."""
    original = copy.deepcopy(story.messages)
    again_ = replace(story, messages=original)
    assert [pruning for _, _, pruning in prunings(story)] == [pruning for _, _, pruning in prunings(again_)]
    assert story.messages == original


@given(stories())
def test_pruning_again_changes_nothing(story: Story) -> None:
    """The same request sent once more, and its pruned form sent in its place."""
    for messages, labels, pruning in prunings(story):
        for sent in (messages, pruning.messages):
            once_more = prune(sent, CATALOG, story.settings, stubs=pruning.stubs, low_value=labels)
            assert list(once_more.messages) == list(pruning.messages)
            assert once_more.stubs == pruning.stubs
            assert once_more.missing == pruning.missing
            assert (once_more.new, once_more.recomputed_tokens) == (frozenset(), 0)


@given(stories())
def test_what_is_a_stub_stays_one(story: Story) -> None:
    """As the conversation grows, each stub is there again, with the same words."""
    before: list[Any] = []
    for _, _, pruning in prunings(story):
        for old, new in zip(before, pruning.messages, strict=False):
            if old["role"] == "tool" and is_stub(old["content"]):
                assert new == old
        before = list(pruning.messages)


@given(stories())
def test_the_prompt_before_the_first_new_stub_is_that_of_the_turn_before(story: Story) -> None:
    """So the prefix cache serves it; and where nothing is computed again, it serves the whole."""
    before: Sequence[Any] = []
    for messages, _, pruning in prunings(story):
        ends = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        cached = ends[-1] + 1 if ends else 0
        new = [
            n for n in changed(messages, pruning) if messages[n]["tool_call_id"] in pruning.new and n < cached
        ]
        first = min(new, default=len(before))
        assert list(before[:first]) == list(pruning.messages[: len(before)][:first])
        assert (pruning.recomputed_tokens == 0) == (not new)
        before = pruning.messages


def tool_of(messages: Sequence[Any], place: int) -> str:
    """The tool whose result stands at a place: that of the last call before it with its id."""
    calls = [call for message in messages[:place] for call in message.get("tool_calls", ())]
    ids = [call["id"] for call in calls]
    last = len(ids) - 1 - ids[::-1].index(messages[place]["tool_call_id"])
    return str(calls[last]["function"]["name"])


@given(stories())
def test_pairs_stay_pairs_and_effects_stay_untouched(story: Story) -> None:
    """Roles and ids are the client's, and only results of read-only calls change, to something shorter."""
    for messages, _, pruning in prunings(story):
        for place in changed(messages, pruning):
            before, after = messages[place], pruning.messages[place]
            assert before["role"] == "tool"
            assert after == {**before, "content": after["content"]}
            assert is_stub(after["content"])
            assert estimated_tokens(after["content"]) < estimated_tokens(before["content"])
            assert tool_of(messages, place) in ("lookup", "search")


@given(stories())
def test_the_tokens_saved_are_those_of_the_texts_left_out(story: Story) -> None:
    """Counted on the messages; never less than nothing."""
    for messages, _, pruning in prunings(story):
        assert pruning.saved_tokens == sum(
            estimated_tokens(messages[place]["content"])
            - estimated_tokens(pruning.messages[place]["content"])
            for place in changed(messages, pruning)
        )
        assert pruning.saved_tokens >= 0
        assert pruning.new <= pruning.stubs.keys()


@given(stories())
def test_a_stub_that_points_above_has_its_text_there(story: Story) -> None:
    """In full, in what the model sees. The stubs that the story came with point nowhere."""
    for messages, _, pruning in prunings(story):
        for place in changed(messages, pruning):
            if pruning.messages[place]["content"] == stub(StubReason.DUPLICATE, messages[place]["content"]):
                above = [message.get("content") for message in pruning.messages[:place]]
                assert messages[place]["content"] in above
