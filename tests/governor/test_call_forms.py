"""Every entry of `tool_calls` is a call, in the answer and in the history, whatever its form: what is not
understood may have done anything, and is never withheld."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from governor.calls import CallForm, ToolCall, ToolCatalog, ToolEffect, tool_names
from governor.conversation import executed_calls
from governor.decision import Action, Mode, Reason
from governor.exchange import Ask, Deliver, Exchange, Purpose
from governor.governance import Governance
from governor.policies import RulesPolicy
from governor.request import Untouched, untouched
from governor.results import Outcome
from governor.rules import Budgets, RuleSettings
from tests.wire.generated import Generated, chat, tool

BOTH = pytest.mark.parametrize("stream", [False, True])
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
ALL = ToolCatalog(read_only=("*",), effectful=("apply_patch",))
NONE_LEFT = RulesPolicy(RuleSettings(Budgets(per_conversation=0)))
ENFORCE = Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=NONE_LEFT, catalog=ALL, action="answer")
REPEATS = replace(ENFORCE, policy=RulesPolicy())
LOOKUP = {"name": "lookup", "arguments": '{"country": "Norway"}'}
READ = {"id": "r1", "type": "function", "function": LOOKUP}

NOT_UNDERSTOOD: tuple[Any, ...] = (
    {"id": "c1", "type": "function", "function": {"name": "", "arguments": "{}"}},
    {"id": "c1", "type": "function", "function": {"name": None, "arguments": "{}"}},
    {"id": "c1", "type": "function", "function": {"arguments": "{}"}},
    {"id": "c1", "type": "function", "function": None},
    {"id": "c1", "type": "function"},
    {"id": "c1", "type": "custom", "custom": {"input": "*** Begin Patch"}},
    {"id": "c1", "type": "custom", "custom": None},
    {"id": "c1", "type": "mcp", "name": "lookup", "arguments": "{}"},
    {"id": "c1", "type": "web_search", "web_search": {"query": "Oslo"}},
    {"id": "c1", "type": "code_interpreter", "code_interpreter": {"input": "1"}},
    {"id": "c1"},
)
PATCH = {"id": "c1", "type": "custom", "custom": {"name": "apply_patch", "input": "*** Begin Patch"}}
EFFECTFUL = (*NOT_UNDERSTOOD, PATCH, {"id": "c1", "type": "custom", "custom": {"name": " ", "input": ""}})


def answer(*entries: Any, finish_reason: str = "tool_calls", **message: Any) -> dict[str, Any]:
    """A whole response with these entries as its calls."""
    response = Generated(content="Well.").response()
    choice = response["choices"][0]
    choice["message"] |= {"tool_calls": list(entries), **message} if entries else message
    choice["finish_reason"] = finish_reason
    return response


def chunks(*entries: Any, finish_reason: str = "tool_calls", **delta: Any) -> list[dict[str, Any]]:
    first, *_, last = Generated(content="Well.").chunks()
    indexed = [{"index": index, **entry} for index, entry in enumerate(entries)]
    first["choices"][0]["delta"] |= {"tool_calls": indexed, **delta} if entries else delta
    last["choices"][0]["finish_reason"] = finish_reason
    return [first, last]


def passed(stream: bool, governance: Governance, *entries: Any, history: Any = (), **more: Any) -> Exchange:
    """The exchange after an answer with these calls, which is asserted to reach the client as it came."""
    body = chat(QUESTION, *history, stream=stream)
    exchange = Exchange(body, governance, conversation="talk")
    if stream:
        sent = chunks(*entries, **more)
        got = [part for chunk in sent for part in exchange.receive(chunk)]
        step = exchange.finish()
        assert isinstance(step, Deliver)
        deltas = [part["choices"][0]["delta"] for part in (*got, *step.chunks)]
        assert [d for d in deltas if d] == [d for c in sent if (d := c["choices"][0]["delta"])]
    else:
        response = answer(*entries, **more)
        exchange.receive_response(response)
        step = exchange.finish()
        assert isinstance(step, Deliver)
        assert step.body is not None
        assert step.body["choices"][0]["message"] == response["choices"][0]["message"]
    return exchange


# In the answer


@BOTH
@pytest.mark.parametrize("entry", EFFECTFUL, ids=str)
def test_a_call_that_is_not_understood_is_never_withheld(stream: bool, entry: Any) -> None:
    """`*` matches real names only, and what is effectful is so as a custom tool too."""
    exchange = passed(stream, ENFORCE, entry)
    assert [decision.reason for decision in exchange.decisions] == [Reason.EFFECTFUL_TOOL]
    assert [record.effect for record in exchange.new_records()] == ["effectful"]


@BOTH
@pytest.mark.parametrize("entry", EFFECTFUL, ids=str)
def test_nor_is_a_repeat_beside_one(stream: bool, entry: Any) -> None:
    """It may change what the repeated call would say."""
    history = [{"role": "assistant", "tool_calls": [READ]}, result("r1")]
    again = {**READ, "id": "r2"}
    exchange = passed(stream, REPEATS, again, entry, history=history)
    assert [decision.action for decision in exchange.decisions] == [Action.PASS] * 2


@BOTH
def test_a_custom_tool_that_only_reads_is_judged(stream: bool) -> None:
    """And the model reads of a call that was withheld in the form in which it made it."""
    entry = {"id": "c1", "type": "custom", "custom": {"name": "grep", "input": "Oslo *.md"}}
    governance = replace(ENFORCE, action="notice")
    exchange = Exchange(chat(QUESTION, tools=["grep"], stream=stream), governance, conversation="talk")
    if stream:
        for chunk in chunks(entry):
            exchange.receive(chunk)
    else:
        exchange.receive_response(answer(entry))
    step = exchange.finish()
    assert isinstance(step, Ask)
    assert step.purpose is Purpose.CONTINUATION
    assert step.body["messages"][-2]["tool_calls"] == [entry]
    assert step.body["messages"][-1]["tool_call_id"] == "c1"


def test_custom_inputs_are_compared_as_they_are() -> None:
    """They are no JSON: whitespace may mean something to the tool. Nor must they parse to be whole."""
    one, other = (ToolCall("c", 0, "f", text, CallForm.CUSTOM) for text in ('{"a": 1}', '{"a":1}'))
    assert one.signature != other.signature
    assert one.signature == replace(one, id="d").signature
    assert ToolCall("c", 0, "f", "*** Begin Patch", CallForm.CUSTOM).is_whole


@BOTH
def test_a_legacy_call_in_the_answer_passes(stream: bool) -> None:
    """Upstream answers in a form that was not asked for: the call is seen, and left alone."""
    exchange = passed(stream, ENFORCE, finish_reason="function_call", function_call=LOOKUP)
    (decision,) = exchange.decisions
    assert (decision.action, decision.reason) == (Action.PASS, Reason.EFFECTFUL_TOOL)
    assert (decision.call.name, decision.call.arguments) == (LOOKUP["name"], LOOKUP["arguments"])


# In the history


def result(id: Any = None, content: str = "Oslo", **fields: Any) -> dict[str, Any]:
    identity = {} if id is None else {"tool_call_id": id}
    return {"role": "tool", "content": content, **identity, **fields}


def reasons(*messages: Any, tools: Any = ("lookup",)) -> list[str]:
    """Why the call of READ, made again after these messages, is withheld or passes."""
    exchange = Exchange(chat(QUESTION, *messages, tools=tools), REPEATS, conversation="talk")
    exchange.receive_response(answer({**READ, "id": "again"}))
    step = exchange.finish()
    assert isinstance(step, Ask) is any(decision.withheld for decision in exchange.decisions)
    return [decision.reason.value for decision in exchange.decisions]


def said(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(entries), **fields}


READ_BEFORE = (said(READ), result("r1"))


def test_a_repeat_is_one_where_nothing_stands_between() -> None:
    assert reasons(*READ_BEFORE) == ["repeated_call"]


@pytest.mark.parametrize("entry", [*EFFECTFUL, None, "lookup", 3, []], ids=str)
def test_after_what_may_have_had_an_effect_it_is_none(entry: Any) -> None:
    """Whether it has a result or not, and whatever else the message calls."""
    for between in (said(entry), said({**READ, "id": "r2"}, entry)):
        assert reasons(*READ_BEFORE, between) == ["no_rule"]
        assert reasons(*READ_BEFORE, between, result("c1")) == ["no_rule"]


@pytest.mark.parametrize("calls", [PATCH, {"id": "c1"}, "book", 7], ids=str)
def test_calls_that_are_no_list_are_one(calls: Any) -> None:
    assert reasons(*READ_BEFORE, {"role": "assistant", "content": None, "tool_calls": calls}) == ["no_rule"]


LEGACY_BOOK = {
    "role": "assistant",
    "content": None,
    "function_call": {"name": "apply_patch", "arguments": "{}"},
}


def test_a_legacy_call_has_its_effect_too() -> None:
    """An effectful one between two equal reads means that the second one is no repeat."""
    told = {"role": "function", "name": "apply_patch", "content": "done"}
    assert reasons(*READ_BEFORE, LEGACY_BOOK, told) == ["no_rule"]
    assert reasons(*READ_BEFORE, LEGACY_BOOK) == ["no_rule"]


def test_a_legacy_read_is_a_read() -> None:
    """Its result is found by the name."""
    asked = {"role": "assistant", "content": None, "function_call": LOOKUP}
    told = {"role": "function", "name": "lookup", "content": "Oslo"}
    assert reasons(asked, told) == ["repeated_call"]
    assert reasons(asked) == ["no_rule"]
    assert reasons(asked, {**told, "content": "Error: unavailable"}) == ["no_rule"]


def outcomes(*messages: Mapping[str, Any]) -> list[tuple[str, str, Outcome]]:
    return [(done.call.id, done.result, done.outcome) for done in executed_calls(messages, ALL)]


def entry(id: Any, city: str, **fields: Any) -> dict[str, Any]:
    identity = {} if id is None else {"id": id}
    return {**identity, "type": "function", "function": {"name": "lookup", "arguments": city}, **fields}


def test_results_without_ids_are_those_of_the_calls_in_order() -> None:
    calls = said(entry(None, "1"), entry(None, "2"))
    assert outcomes(calls, result(content="a"), result(content="b")) == [
        ("", "a", Outcome.OK),
        ("", "b", Outcome.OK),
    ]
    named = result(content="b", name="other")
    assert [done[1] for done in outcomes(said(entry("x", "1")), named)] == ["", "b"]


def test_equal_ids_in_one_message_are_answered_in_order() -> None:
    calls = said(entry("x", "1"), entry("x", "2"))
    done = outcomes(calls, result("x", "a"), result("x", "b"))
    assert [told for _, told, _ in done] == ["a", "b"]


def test_ids_that_begin_anew_are_those_of_the_newest_message() -> None:
    turns = [said(entry("x", "1")), result("x", "a"), said(entry("x", "2")), result("x", "b")]
    assert [told for _, told, _ in outcomes(*turns)] == ["a", "b"]
    assert [told for _, told, _ in outcomes(*turns[:3])] == ["a", ""]


def test_of_two_results_for_one_call_the_last_counts() -> None:
    assert [told for _, told, _ in outcomes(said(entry("x", "1")), result("x", "a"), result("x", "b"))] == [
        "b"
    ]


def test_a_result_before_its_call_is_that_of_an_unknown_one() -> None:
    """The call itself has none, so it is no repeat when it is made again."""
    assert reasons(result("r1"), said(READ)) == ["no_rule"]
    done = executed_calls([result("r1"), said(READ)], ALL)
    assert [(d.effect, d.outcome) for d in done] == [
        (ToolEffect.UNKNOWN, Outcome.OK),
        (ToolEffect.READ_ONLY, Outcome.PENDING),
    ]


# The request


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_no_pattern_matches_a_name_that_is_none(name: str) -> None:
    assert ToolCatalog(read_only=("*", "?*", "", " ")).effect(name) is ToolEffect.EFFECTFUL


@pytest.mark.parametrize("name", ["a.b", "a/b", "a b", "größe", "Lookup", "mcp__x__y", "工具"])
def test_any_other_name_is_one(name: str) -> None:
    assert ToolCatalog(read_only=("*",)).effect(name) is ToolEffect.READ_ONLY
    assert ToolCatalog(read_only=(name,)).effect(name) is ToolEffect.READ_ONLY
    assert ToolCatalog(read_only=(name,)).effect(name.swapcase() + "x") is ToolEffect.UNKNOWN


def test_custom_tools_have_names_and_hints_too() -> None:
    custom = {
        "type": "custom",
        "custom": {"name": "grep", "format": {"type": "text"}, "annotations": {"readOnlyHint": True}},
    }
    assert tool_names([custom, tool("lookup"), {"type": "web_search"}]) == ("grep", "lookup", "")
    assert ToolCatalog().with_tools([custom]).effect("grep") is ToolEffect.READ_ONLY


def test_beside_a_hosted_tool_no_answer_takes_a_calls_place() -> None:
    """Answering without tools would keep the model from it too."""
    body = chat(QUESTION, *READ_BEFORE)
    body["tools"].append({"type": "web_search"})
    exchange = Exchange(body, REPEATS, conversation="talk")
    exchange.receive_response(answer({**READ, "id": "r2"}))
    step = exchange.finish()
    assert isinstance(step, Ask)
    assert step.purpose is Purpose.CONTINUATION


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "lookup"}]},
        {"functions": [{"name": "lookup"}], "function_call": "auto"},
        {"function_call": {"name": "lookup"}},
    ],
)
def test_a_legacy_request_is_left_alone(fields: dict[str, Any]) -> None:
    """With a reason of its own, so that an operator sees that it is not governed."""
    assert untouched({"messages": [QUESTION], **fields}) is Untouched.LEGACY_FUNCTIONS
    assert untouched(chat(QUESTION, **fields)) is Untouched.LEGACY_FUNCTIONS


@pytest.mark.parametrize("fields", [{"functions": []}, {"functions": None, "function_call": None}])
def test_an_empty_legacy_field_changes_nothing(fields: dict[str, Any]) -> None:
    assert untouched(chat(QUESTION, **fields)) is None


def test_of_the_allowed_tools_form_only_a_forced_call_is_left_alone() -> None:
    """`auto` among some of the tools leaves the model the choice."""
    for mode, reason in (("auto", None), ("required", Untouched.FORCED_CALL), (None, Untouched.FORCED_CALL)):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": []}}
        assert untouched(chat(QUESTION, tool_choice=choice)) is reason
    assert untouched(chat(QUESTION, tool_choice={"type": "allowed_tools"})) is Untouched.FORCED_CALL
    assert untouched(chat(QUESTION, tool_choice={"type": "custom"})) is Untouched.FORCED_CALL


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_tool_calls_is_the_clients_business(parallel: bool) -> None:
    body = chat(QUESTION, parallel_tool_calls=parallel)
    assert untouched(body) is None
    assert Exchange(body, REPEATS).request["parallel_tool_calls"] is parallel
