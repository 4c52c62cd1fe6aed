"""Replaying a log: what a policy would have done on it is what it does live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.certificate import upper_bound
from governor.conversations import conversations
from governor.conversations import observed as only_observed
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.hindsight import Fate, Summary, judged
from governor.labels import Label
from governor.policies import Evidence, Judgement, Policy, ThresholdPolicy, policy
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from tests.wire.generated import Generated, chat, made

CATALOG = ToolCatalog(read_only=("lookup",), effectful=("book",))
QUESTION = {"role": "user", "content": "Which one?"}


# Live and in hindsight


@dataclass(frozen=True, slots=True)
class Played:
    """A turn of an agent: its calls (tool, argument, result), the forced answer before it and how sure it is,
    and whether the user says something afterwards."""

    calls: Sequence[tuple[str, str, str]]
    answer: str
    sure: float
    interrupted: bool


def observed(turns: Sequence[Played], policy: Policy) -> list[CallRecord]:
    """The records of a conversation that is only observed, played through the core."""
    governance = Governance(vocab_size=4096, policy=policy, catalog=CATALOG)
    messages: list[Any] = [QUESTION]
    records: dict[str, CallRecord] = {}
    for number, turn in enumerate(turns):
        calls = [(f"c{number}.{n}", tool, json.dumps({"x": x})) for n, (tool, x, _) in enumerate(turn.calls)]
        body = chat(*messages, stream=False, tools=("lookup", "book", "other"))
        exchange = Exchange(body, governance, conversation="talk", records=records, now=number)
        exchange.receive_response(Generated(calls=calls).response())
        step = exchange.finish()
        step = exchange.review()
        while isinstance(step, Ask):
            step = exchange.probe_answered(Generated(content=turn.answer, sure=turn.sure).response())
            step = step if isinstance(step, Ask) else exchange.review()
        records |= {record.call_id: record for record in exchange.records()}
        messages += made(*calls, results=[result for _, _, result in turn.calls])
        messages += [QUESTION] if turn.interrupted else []
    return list(records.values())


called = st.tuples(
    st.sampled_from(["lookup", "lookup", "lookup", "lookup", "book", "other"]),
    st.sampled_from(["a", "a", "a", "b"]),
    st.sampled_from(["31 C", "31 C", "32 C", "", "pending", "Error: no", "Error: timed out"]),
)
played = st.builds(
    Played,
    calls=st.lists(called, min_size=1, max_size=2),
    answer=st.sampled_from(["Oslo", "Rome"]),
    sure=st.sampled_from([0.3, 0.6, 0.8, 0.99, 0.99]),
    interrupted=st.sampled_from([False, False, True]),
)
POLICIES = [
    policy("observe"),
    policy("rules"),
    policy("rules", per_conversation=2, per_tool={"lookup": 1}),
    policy("threshold"),
    policy("cap", calls=2),
    policy("identical", times=1),
    policy("tasr", margin=0.5),
    policy("mean_entropy", entropy=1.0),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(deadline=None, max_examples=60)
@given(turns=st.lists(played, min_size=1, max_size=6), keep_text=st.booleans())
@example(
    turns=[Played([("lookup", "a", "31 C"), ("lookup", "a", "")], "Oslo", 0.3, False)] * 3, keep_text=False
)
def test_hindsight_on_a_log_is_what_the_policy_does_live(
    policy: Policy, turns: list[Played], keep_text: bool
) -> None:
    """The log was made while another policy watched, and went through a file without texts."""
    live = [record.decision["proposed"] != "pass" for record in observed(turns, policy)]
    stored = [record.as_dict(keep_text=keep_text) for record in observed(turns, ThresholdPolicy())]
    log = [CallRecord.from_dict(json.loads(json.dumps(row))) for row in reversed(stored)]
    found = [call for calls in conversations(log).values() for call in judged(calls, policy)]
    assert [call.fate is Fate.WITHHOLD for call in found] == live
    assert all(call.fate is not Fate.UNKNOWN for call in found)


# Hand-made records


def probe(text: str = "Oslo", margin: float = 0.95) -> ProbeAnswer:
    return ProbeAnswer(text, True, 0.1, 0.2, margin, -0.1, 2, 30)


def record(step: int, conversation: str = "talk", **fields: Any) -> CallRecord:
    """A call that was observed and did not change the answer."""
    made = CallRecord(
        call_id=f"{conversation} {step}",
        conversation=conversation,
        tool="lookup",
        signature=f"lookup({step})",
        step=step,
        decision={"index": 0, "action": "pass", "proposed": "pass", "reason": "no_rule"},
        created=float(step),
        probe_before=probe(),
        probe_after=probe(),
        effect="read_only",
        outcome="ok",
        signals={"step": float(step)},
    )
    return replace(made, **fields)


def decided(record: CallRecord, **fields: Any) -> CallRecord:
    return replace(record, decision={**record.decision, **fields})


def test_the_first_crossing_is_told_from_what_comes_behind_it() -> None:
    """Behind it the conversation would have gone another way."""
    found = judged([record(step) for step in range(4)], policy("cap", calls=1))
    assert [call.fate for call in found] == [Fate.PASS, *[Fate.WITHHOLD] * 3]
    assert [call.first for call in found] == [False, True, False, False]
    assert [call.behind for call in found] == [False, False, True, True]


def test_what_was_withheld_live_is_behind_too() -> None:
    """And it is no part of the history: the agent never saw it executed."""
    withheld = decided(record(0), action="answer")
    found = judged([withheld, record(1), record(2)], policy("cap", calls=1))
    assert [call.fate for call in found] == [Fate.PASS, Fate.PASS, Fate.WITHHOLD]
    assert not any(call.first for call in found)
    assert not only_observed([withheld])
    assert not only_observed([record(0, arm="governed")])
    assert only_observed([record(0, arm="holdout")])


def test_a_call_asked_again_after_a_notice_passes() -> None:
    """Notice and repeat have the same time and step, being of one request."""
    notice = decided(record(1), action="notice")
    again = replace(record(1, call_id="again"), signature=notice.signature)
    (calls,) = conversations([again, record(0), notice]).values()
    assert [call.call_id for call in calls] == ["talk 0", "talk 1", "again"]
    found = judged(calls, policy("cap", calls=1))
    assert [call.fate for call in found] == [Fate.PASS, Fate.WITHHOLD, Fate.PASS]


def test_a_missing_probe_is_unknown_and_a_failed_one_passes() -> None:
    """Live, the policy would have asked for it, and the call passes where it fails."""
    silent = record(0, probe_before=None)
    assert [call.fate for call in judged([silent], policy("tasr"))] == [Fate.UNKNOWN]
    for reason in ("probe_failed", "no_logprobs"):
        assert [call.fate for call in judged([decided(silent, reason=reason)], policy("tasr"))] == [Fate.PASS]
    assert [call.fate for call in judged([silent], policy("cap", calls=0))] == [Fate.WITHHOLD]


def test_two_records_of_a_call_count_as_one() -> None:
    """A file that was appended to holds what was known first, and what was known later."""
    early, late = record(0, probe_after=None), record(0)
    assert list(conversations([late, early, record(1)]).values()) == [(late, record(1))]


def test_an_error_of_the_policy_passes() -> None:
    """As it does live."""

    class Broken:
        name = "broken"

        def judge(self, evidence: Evidence) -> Judgement:
            raise ZeroDivisionError

    assert [call.fate for call in judged([record(0)], Broken())] == [Fate.PASS]


def test_an_effect_that_was_not_recorded_is_not_read_only() -> None:
    """A log of an earlier version must not look as if its calls could be withheld."""
    assert [call.fate for call in judged([record(0, effect="")], policy("cap", calls=0))] == [Fate.PASS]


# In figures


def summary(policy: Policy, *talks: Sequence[CallRecord]) -> Summary:
    return Summary.of([judged(calls, policy) for calls in talks])


def test_the_figures_of_a_log() -> None:
    """Of three conversations two cross at their second call, one of them to its harm."""
    good = [record(step, "good") for step in range(4)]
    bad = [record(0, "bad"), record(1, "bad", probe_after=probe("Rome")), record(2, "bad")]
    short = [record(0, "short")]
    assert bad[1].label is Label.USEFUL
    assert summary(policy("cap", calls=1), good, bad, short) == Summary(
        conversations=3,
        calls=8,
        governable=8,
        unknown=0,
        withheld=5,
        crossings=2,
        observed=3,
        labelled=2,
        harmful=1,
        unlabelled=0,
        bound=upper_bound(1, 2, 0.05),
        saved_least=2,
        saved_most=5,
    )


def test_harm_is_not_read_from_governed_conversations() -> None:
    """Their labels are missing where the log's own policy withheld."""
    governed = [record(0, "governed", arm="governed")]
    found = summary(policy("cap", calls=0), governed, [record(0)])
    assert (found.crossings, found.observed, found.labelled) == (2, 1, 1)


@pytest.mark.parametrize(("missing", "bound"), [(1, True), (2, False)])
def test_too_many_missing_labels_leave_no_bound(missing: int, bound: bool) -> None:
    """A tenth may be missing; more could hide any harm."""
    talks = [[record(0, str(n), probe_after=None if n < missing else probe())] for n in range(10)]
    found = summary(policy("cap", calls=0), *talks)
    assert (found.labelled, found.unlabelled) == (10 - missing, missing)
    assert (found.bound is not None) is bound


def test_a_crossing_behind_an_unknown_call_has_no_label() -> None:
    """It may not have been the first."""
    found = summary(policy("mean_entropy"), [record(0, probe_before=None), record(1)])
    assert (found.crossings, found.labelled, found.unlabelled, found.unknown) == (1, 0, 1, 1)


def test_nothing_withheld_has_no_bound() -> None:
    """Nor without any conversation."""
    assert summary(policy("observe"), [record(0)]).bound is None
    assert Summary.of([]).conversations == 0
    assert json.loads(json.dumps(Summary.of([]).as_dict()))["crossings"] == 0


def test_a_call_that_was_withheld_live_saves_nothing_more() -> None:
    """It did not reach the agent in the first place."""
    withheld = decided(record(0, arm="governed"), action="answer")
    found = summary(policy("cap", calls=0), [withheld, record(1, arm="governed")])
    assert (found.crossings, found.saved_least, found.saved_most) == (1, 0, 1)
