"""Tier 0: which histories speak against a call, and above all which do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import Reason
from governor.results import Outcome
from governor.rules import Budgets, Finding, RuleSettings, find

SETTINGS = RuleSettings()


def call(arguments: str = "{}", name: str = "lookup", index: int = 0) -> ToolCall:
    """A proposed call."""
    return ToolCall("call_new", index, name, arguments)


def done(
    arguments: str = "{}",
    result: str = "31 C",
    outcome: Outcome = Outcome.OK,
    *,
    name: str = "lookup",
    effect: ToolEffect = ToolEffect.READ_ONLY,
    users: int = 0,
) -> ExecutedCall:
    """An executed call."""
    return ExecutedCall(ToolCall("call_old", 0, name, arguments), result, outcome, effect, users)


def pending(effect: ToolEffect, index: int = 0, name: str = "other") -> ExecutedCall:
    """A sibling in the turn of the proposed call."""
    return ExecutedCall(ToolCall("call_sibling", index, name, "{}"), "", Outcome.PENDING, effect)


def reason(finding: Finding | None) -> Reason | None:
    """What the finding is."""
    return finding.reason if finding else None


def test_the_same_call_again_is_a_repeat() -> None:
    """Its result is in the context, however the arguments are written."""
    finding = find(call('{"b": 1, "a": 2}'), [done('{"a":2,"b":1}')], SETTINGS)
    assert finding == Finding(Reason.REPEATED_CALL, {"executed": 1})


def test_other_arguments_or_another_tool_are_no_repeat() -> None:
    """Near is not the same."""
    assert find(call('{"a": 1}'), [done('{"a": 2}'), done('{"a": 1}', name="search")], SETTINGS) is None


@pytest.mark.parametrize("effect", [ToolEffect.EFFECTFUL, ToolEffect.UNKNOWN])
@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.FAILED, Outcome.PENDING])
def test_after_a_possible_effect_nothing_is_a_repeat(effect: ToolEffect, outcome: Outcome) -> None:
    """What was read before may be stale, even if the effect seems to have failed or is only a sibling yet."""
    change = done(name="send", effect=effect, outcome=outcome)
    assert find(call(), [done(), change], SETTINGS) is None
    assert reason(find(call(), [change, done()], SETTINGS)) is Reason.REPEATED_CALL


def test_a_read_only_sibling_changes_nothing() -> None:
    """Parallel reads leave a repeat a repeat; a sibling is no earlier execution itself."""
    assert reason(find(call(), [done(), pending(ToolEffect.READ_ONLY)], SETTINGS)) is Reason.REPEATED_CALL
    assert find(call(name="other"), [pending(ToolEffect.READ_ONLY)], SETTINGS) is None


def test_after_the_user_spoke_nothing_is_a_repeat() -> None:
    """The user may have asked for a fresh look, or changed something."""
    assert find(call(), [done(users=1)] * 3, SETTINGS) is None


def test_a_result_that_changes_by_itself_may_be_asked_for_again() -> None:
    """A job is polled until it is done."""
    polls = [done(result="queued"), done(result="running")]
    assert find(call(), polls, SETTINGS) is None


def test_a_first_retry_of_a_failure_passes() -> None:
    """Once may be an accident."""
    assert find(call(), [done(outcome=Outcome.FAILED, result="Error: no")], SETTINGS) is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.EMPTY])
def test_the_same_failure_again_and_again_is_a_loop(outcome: Outcome) -> None:
    """Twice is a pattern; so is finding nothing twice."""
    finding = find(call(), [done(outcome=outcome, result="")] * 2, SETTINGS)
    assert finding == Finding(Reason.FAILING_RETRY, {"attempts": 2})


def test_a_failure_with_other_arguments_is_no_retry() -> None:
    """The model is looking for what works."""
    failures = [done('{"a": 1}', outcome=Outcome.FAILED), done('{"a": 2}', outcome=Outcome.FAILED)]
    assert find(call('{"a": 3}'), failures, SETTINGS) is None


@given(st.integers(1, 10), st.sampled_from([Outcome.FAILED, Outcome.EMPTY, Outcome.OK]))
def test_a_passing_failure_is_no_loop(times: int, before: Outcome) -> None:
    """A 5xx or a timeout may be retried as often as the budget allows."""
    history = [done(outcome=before), *[done(outcome=Outcome.TRANSIENT, result="HTTP 503")] * times]
    assert find(call(), history, SETTINGS) is None


def test_a_failure_after_a_result_is_not_a_repeat() -> None:
    """The last attempt counts: something has changed since the result."""
    assert find(call(), [done(), done(outcome=Outcome.FAILED)], SETTINGS) is None


def test_the_number_of_failing_attempts_is_a_setting() -> None:
    """With 1 even the first retry is withheld; 0 would withhold calls that never ran."""
    failed = [done(outcome=Outcome.FAILED)]
    assert reason(find(call(), failed, RuleSettings(failing_attempts=1))) is Reason.FAILING_RETRY
    assert find(call(), failed * 2, RuleSettings(failing_attempts=3)) is None
    with pytest.raises(ValueError, match="failing_attempts"):
        RuleSettings(failing_attempts=0)


@given(st.integers(1, 5))
def test_a_cycle_of_any_period_is_found(period: int) -> None:
    """Two rounds with the same results, and the third begins."""
    circle = [done(f'{{"n": {n}}}', result=f"r{n}") for n in range(period)]
    finding = find(call('{"n": 0}'), circle * 2, SETTINGS)
    assert finding == Finding(Reason.CYCLE, {"period": period, "executed": 2 * period})


def test_a_call_that_breaks_the_circle_passes() -> None:
    """Only the call that starts the next round is part of the cycle."""
    a, b = done('{"n": 0}'), done('{"n": 1}')
    assert find(call('{"n": 2}'), [a, b, a, b], SETTINGS) is None


def test_a_circle_with_new_results_is_progress() -> None:
    """The same two questions about a world that moves."""
    rounds = [done('{"n": 0}', "1"), done('{"n": 1}', "x"), done('{"n": 0}', "2"), done('{"n": 1}', "x")]
    assert find(call('{"n": 0}'), rounds, SETTINGS) is None


def test_a_poll_that_stands_still_is_a_cycle() -> None:
    """Earlier progress does not excuse it for ever."""
    polls = [done(result="queued"), done(result="running"), done(result="running")]
    assert reason(find(call(), polls, SETTINGS)) is Reason.CYCLE


def test_a_circle_of_failures_is_reported_as_such() -> None:
    """The notice must not promise a result that is none."""
    circle = [done('{"n": 0}', "Error", Outcome.FAILED), done('{"n": 1}', "x")]
    assert reason(find(call('{"n": 0}'), circle * 2, SETTINGS)) is Reason.FAILING_RETRY


def test_a_circle_around_a_passing_failure_is_only_a_repeat() -> None:
    """The failing part may go away by itself, what succeeded is still above."""
    circle = [done('{"n": 0}', "x"), done('{"n": 1}', "HTTP 503", Outcome.TRANSIENT)]
    assert reason(find(call('{"n": 0}'), circle * 2, SETTINGS)) is Reason.REPEATED_CALL
    assert find(call('{"n": 1}'), [*circle * 2, circle[0]], SETTINGS) is None


def test_a_tools_budget_is_its_own() -> None:
    """Calls of other tools do not use it up."""
    settings = RuleSettings(Budgets(per_tool={"lookup": 2}))
    history = [done('{"n": 0}'), done('{"n": 1}', name="search"), done('{"n": 2}')]
    finding = find(call(), history, settings)
    assert finding == Finding(Reason.BUDGET, {"budget": 2, "executed": 2, "budget_of": "tool"})
    assert find(call(), history[:2], settings) is None
    assert find(call(name="search"), history, settings) is None


def test_a_conversations_budget_counts_every_call() -> None:
    """Also those before an effect and before the user spoke."""
    settings = RuleSettings(Budgets(per_conversation=2))
    history = [done('{"n": 0}', users=1), done(name="send", effect=ToolEffect.EFFECTFUL)]
    finding = find(call(), history, settings)
    assert finding == Finding(Reason.BUDGET, {"budget": 2, "executed": 2, "budget_of": "conversation"})
    assert find(call(), history[:1], settings) is None


def test_of_parallel_calls_the_first_ones_get_the_budget() -> None:
    """A sibling before the call uses the budget, one after it does not."""
    settings = RuleSettings(Budgets(per_conversation=1))
    assert find(call(index=0), [pending(ToolEffect.READ_ONLY, index=1)], settings) is None
    assert reason(find(call(index=1), [pending(ToolEffect.READ_ONLY, index=0)], settings)) is Reason.BUDGET


executed = st.builds(
    done,
    st.sampled_from(['{"n": 0}', '{"n": 1}']),
    st.sampled_from(["x", "y"]),
    st.sampled_from(list(Outcome)),
    name=st.sampled_from(["lookup", "send"]),
    effect=st.sampled_from(list(ToolEffect)),
    users=st.integers(0, 1),
)


@given(st.lists(executed, max_size=8))
def test_a_call_never_made_before_is_never_withheld_without_a_budget(history: list[ExecutedCall]) -> None:
    """Whatever else happened, a new question passes."""
    assert find(call('{"n": 2}'), history, SETTINGS) is None


@given(st.lists(executed, max_size=8))
def test_what_a_rule_withholds_was_made_since_the_last_possible_effect(history: list[ExecutedCall]) -> None:
    """No finding rests on what may be stale."""
    proposed = call('{"n": 0}')
    if find(proposed, history, SETTINGS):
        places = [i for i, e in enumerate(history) if e.call.signature == proposed.signature]
        changes = [i for i, e in enumerate(history) if e.effect is not ToolEffect.READ_ONLY]
        assert max(places) > max(changes, default=-1)
