"""The comparison of two runs counts what it says it counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from governor_training.agent import Call, Run
from governor_training.compare import Comparison, Share
from governor_training.environment import Task
from governor_training.replay import Value

TASK = Task("1", ({"role": "user", "content": "What is the capital of India?"},), ())
EFFECTFUL = {"save_note"}


def call(field: str = "capital", name: str = "lookup") -> Call:
    arguments = {"country": "India", "field": field} if name == "lookup" else {"text": field}
    return Call(0, name, json.dumps(arguments), "New Delhi", read_only=name == "lookup")


def run(*calls: Call, score: float = 1.0, decisions: tuple[dict[str, Any], ...] = ()) -> Run:
    return Run(
        TASK,
        calls=list(calls),
        score=score,
        seconds=1.0,
        tokens=Counter(prompt=100 * (1 + len(calls)), completion=10),
        explanations=[{"decisions": decisions}] if decisions else [],
    )


def decision(of: Call, action: str, reason: str) -> dict[str, Any]:
    return {"tool": of.name, "arguments": of.arguments, "action": action, "reason": reason}


def compared(before: Sequence[Run], after: Sequence[Run], values: Sequence[Sequence[Value]]) -> Comparison:
    return Comparison.of(before, after, values, EFFECTFUL)


def avoidable(of: Call) -> Value:
    return Value(of, with_result=1.0, without=1.0)


def needed(of: Call) -> Value:
    return Value(of, with_result=1.0, without=0.0)


def test_a_call_that_is_not_made_again_is_removed() -> None:
    """Of a needed call and its avoidable repeat, the governed run kept one: the repeat is removed."""
    before, after = run(call(), call()), run(call(), decisions=(decision(call(), "answer", "repeated_call"),))
    comparison = compared([before], [after], [[needed(call()), avoidable(call())]])
    assert comparison.avoidable_calls == Share(1, 2)
    assert comparison.avoidable_calls_removed == Share(1, 1)


def test_a_call_that_stays_is_not_removed() -> None:
    """An avoidable call that the governed run made too counts against the governor."""
    comparison = compared([run(call())], [run(call())], [[avoidable(call())]])
    assert comparison.avoidable_calls_removed == Share(0, 1)


def test_withholding_a_needed_call_is_harm() -> None:
    """The value by replay decides, not how the governed answer came out."""
    after = run(decisions=(decision(call(), "answer", "confident_answer"),))
    comparison = compared([run(call())], [after], [[needed(call())]])
    assert comparison.needed_calls_withheld == Share(1, 1)


def test_the_second_proposal_is_the_second_call() -> None:
    """The first lookup was needed and passed; its repeat was not and was withheld: no harm."""
    decisions = (
        decision(call(), "pass", "uncertain_answer"),
        decision(call(), "answer", "repeated_call"),
    )
    comparison = compared(
        [run(call(), call())], [run(call(), decisions=decisions)], [[needed(call()), avoidable(call())]]
    )
    assert comparison.needed_calls_withheld == Share(0, 1)


def test_a_call_unseen_before_is_judged_by_its_outcome() -> None:
    """Withheld in the governed run only, with a wrong answer where the other was right: needed."""
    other = call("domain")
    after = run(score=0.0, decisions=(decision(other, "answer", "confident_answer"),))
    assert compared([run()], [after], [[]]).needed_calls_withheld == Share(1, 1)


def test_a_call_that_passed_when_asked_again_was_only_delayed() -> None:
    """It is neither harm nor gain."""
    decisions = (decision(call(), "notice", "confident_answer"), decision(call(), "pass", "asked_again"))
    comparison = compared([run(call())], [run(call(), decisions=decisions)], [[needed(call())]])
    assert comparison.needed_calls_withheld == Share(0, 0)
    assert comparison.calls_delayed == 1


def test_an_effectful_call_that_is_withheld_shows() -> None:
    """Should it ever happen, the figure is not zero."""
    save = call("New Delhi", "save_note")
    after = run(decisions=(decision(save, "notice", "budget"), decision(save, "pass", "effectful_tool")))
    assert compared([run(save)], [after], [[]]).effectful_calls_withheld == Share(1, 2)


def test_arms_are_means_and_sums() -> None:
    """Accuracy, calls and seconds are means over questions; tokens are sums over all that was asked."""
    arm = compared([run(call()), run(score=0.0)], [run(), run()], [[avoidable(call())], []]).ungoverned
    assert (arm.accuracy, arm.calls_per_question, arm.seconds_per_question) == (0.5, 0.5, 1.0)
    assert arm.total_tokens == 200 + 100 + 2 * 10
