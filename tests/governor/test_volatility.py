"""Tools that change their answers by themselves: how they are found, and that their calls are no repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolCatalog, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import Reason
from governor.exchange import Exchange
from governor.governance import Governance
from governor.policies import Evidence, RulesPolicy, Verdict
from governor.policies.threshold import ThresholdPolicy
from governor.probe import ProbeAnswer
from governor.pruning import PruneSettings, prune
from governor.results import Outcome, Patterns
from governor.rules import Budgets, RuleSettings
from governor.volatility import changed_tools

SURE = ProbeAnswer("pending", True, 0.0, 0.0, 1.0, 0.0, 1, 1)


def done(
    result: str,
    outcome: Outcome = Outcome.OK,
    *,
    name: str = "status",
    arguments: str = "{}",
    effect: ToolEffect = ToolEffect.READ_ONLY,
    users: int = 0,
) -> ExecutedCall:
    """An executed call."""
    return ExecutedCall(ToolCall("a", 0, name, arguments), result, outcome, effect, users)


def test_another_answer_to_the_same_call_makes_a_tool_volatile() -> None:
    """Other calls in between, or other arguments as well, do not matter."""
    history = [done("pending"), done("31 C", name="weather"), done("done"), done("31 C", name="weather")]
    assert changed_tools(history) == {"status"}


@pytest.mark.parametrize(
    "between",
    [
        done("sent", name="send", effect=ToolEffect.EFFECTFUL),
        done("?", name="run", effect=ToolEffect.UNKNOWN),
        done("", Outcome.PENDING, name="send", effect=ToolEffect.EFFECTFUL),
    ],
)
def test_what_may_have_changed_the_answer_makes_no_tool_volatile(between: ExecutedCall) -> None:
    """The world was changed by somebody that is known: an effect, failed or not, or the user."""
    assert not changed_tools([done("1"), between, done("2")])
    assert not changed_tools([done("1", users=1), done("2")])


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TRANSIENT, Outcome.PENDING])
def test_a_failure_is_no_other_answer(outcome: Outcome) -> None:
    """A server that was down for a moment says nothing about its tool."""
    assert not changed_tools([done("1"), done("Error: 503", outcome), done("1")])
    assert not changed_tools([done("Error: 503", outcome), done("1")])


@pytest.mark.parametrize(
    "left",
    [
        "[Old tool result content cleared]",
        "[Tool output omitted to save tokens]",
        "Earlier output was truncated.",
        "x" * 500 + "... [truncated]",
    ],
)
def test_what_a_client_leaves_of_an_old_result_is_no_other_answer(left: str) -> None:
    """Clients cut and clear old results to save tokens; else every tool would be volatile soon."""
    assert not changed_tools([done(left), done("x" * 2_000)])
    assert not changed_tools([done("x" * 2_000), done(left)])


def test_the_arguments_count() -> None:
    """Another question has another answer."""
    assert not changed_tools([done("1", arguments='{"a": 1}'), done("2", arguments='{"a": 2}')])


def asked(*countries: str) -> Exchange:
    """A request behind a lookup of each country, of which no two have the same result."""
    messages: list[Any] = [{"role": "user", "content": "Where?"}]
    for number, country in enumerate(countries):
        call = ToolCall(f"c{number}", 0, "lookup", json.dumps({"country": country}))
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call.as_entry()]},
            {"role": "tool", "tool_call_id": call.id, "content": f"the answer {'no' * number}"},
        ]
    catalog = ToolCatalog(read_only=("lookup",))
    return Exchange({"model": "m", "messages": messages}, Governance(4096, catalog=catalog))


def test_results_are_read_only_where_a_call_came_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request brings the whole history, and to read the results of a long one takes its time."""
    read: list[str] = []

    def told(message: Mapping[str, Any], text: str, failures: Patterns = ()) -> Outcome:
        read.append(text)
        return Outcome.OK

    monkeypatch.setattr("governor.conversation.outcome_of", told)
    assert not asked("Norway", "Sweden").changed_tools
    assert read == []
    assert asked("Norway", "Norway").changed_tools == {"lookup"}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=12))
def test_a_tool_is_volatile_if_and_only_if_two_answers_to_one_call_differ(
    calls: list[tuple[str, str]],
) -> None:
    """Of read-only calls with nothing in between."""
    history = [done(result, name=name) for name, result in calls]
    expected = {name for name in "ab" if len({result for other, result in calls if other == name}) > 1}
    assert changed_tools(history) == expected


def evidence(*history: ExecutedCall, volatile: bool = False) -> Evidence:
    return Evidence(
        ToolCall("b", 0, "status", "{}"), ToolEffect.READ_ONLY, history, volatile=volatile, probe=SURE
    )


@pytest.mark.parametrize("policy", [RulesPolicy(), ThresholdPolicy()])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_call_of_a_volatile_tool_is_no_repeat(policy: RulesPolicy | ThresholdPolicy, times: int) -> None:
    """Nor a circle, and not withheld because the model is certain: it knows the last answer, not the next."""
    same = [done("pending!")] * times
    assert (
        policy.judge(evidence(*same)) == Verdict(True, Reason.REPEATED_CALL, 0, {"executed": 1}) or times > 1
    )
    told = policy.judge(evidence(*same, volatile=True))
    assert told == Verdict(False, Reason.VOLATILE, 0, {"executed": times})


@pytest.mark.parametrize("policy", [RulesPolicy(), ThresholdPolicy()])
def test_work_that_goes_on_is_asked_after(policy: RulesPolicy | ThresholdPolicy) -> None:
    """Before anything was learned, and also where the answers have been the same; once it is done, the same
    call is a repeat."""
    waiting = done('{"status": "running"}', Outcome.UNFINISHED)
    told = policy.judge(evidence(waiting, waiting, waiting, waiting))
    assert told == Verdict(False, Reason.UNFINISHED, 0, {"executed": 4})
    finished = policy.judge(evidence(waiting, done('{"status": "done"}')))
    assert isinstance(finished, Verdict)
    assert (finished.withhold, finished.reason) == (True, Reason.REPEATED_CALL)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.EMPTY])
def test_a_volatile_tool_may_fail_and_find_nothing_for_a_while(outcome: Outcome) -> None:
    """A job that does not exist yet; a mail that has not come."""
    failures = [done("", outcome)] * 3
    found = RulesPolicy().judge(evidence(*failures))
    assert found.reason is Reason.FAILING_RETRY
    assert not RulesPolicy().judge(evidence(*failures, volatile=True)).withhold


def test_a_budget_is_a_budget() -> None:
    """The operator's word counts for volatile tools, too: else a poll may go on for ever."""
    policy = RulesPolicy(RuleSettings(Budgets(per_tool={"status": 3})))
    same = [done("pending")] * 3
    assert policy.judge(evidence(*same, volatile=True)).reason is Reason.BUDGET
    assert policy.judge(evidence(*same[1:], volatile=True)).reason is Reason.VOLATILE


def test_a_volatile_tool_is_configured_or_learned() -> None:
    """By pattern or by name; neither makes a tool read-only."""
    catalog = ToolCatalog(read_only=("get_*",), volatile=("*_price",)).with_volatile({"clock"})
    assert catalog.is_volatile("get_price") and catalog.is_volatile("clock")
    assert not catalog.is_volatile("get_name")
    assert catalog.effect("clock") is ToolEffect.UNKNOWN
    assert catalog.with_volatile({"clock"}) is catalog
    tools = [{"function": {"name": "x", "annotations": {"readOnlyHint": True}}}]
    assert catalog.with_tools(tools).is_volatile("clock")


@pytest.mark.parametrize("kind", ["volatile", "unfinished", "neither"])
def test_results_that_are_not_final_are_never_pruned(kind: str) -> None:
    """A stub says that a repeat returns the text, or that it stands above: neither is true of them."""
    rows = {"status": "running"} if kind == "unfinished" else {"status": "shipped"}
    text = json.dumps({**rows, "note": "x" * 400})
    call = {"id": "a", "type": "function", "function": {"name": "status", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": text},
    ]
    catalog = ToolCatalog(read_only=("status",))
    catalog = replace(catalog, volatile=("status",)) if kind == "volatile" else catalog
    settings = PruneSettings("low_value")
    pruned = prune(messages, catalog, settings, stubs={}, low_value={"a"})
    assert bool(pruned.stubs) is (kind == "neither")
