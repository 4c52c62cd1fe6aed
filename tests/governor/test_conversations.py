"""One order of a conversation's calls, and one first crossing, for whoever speaks of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from governor.certificate import Certificate
from governor.conversations import conversations, in_order, observed, until_crossing
from governor.crossings import candidates, reached
from governor.gate import Gate, SignalWeight, ToolWeights, rules_of
from governor.hindsight import judged
from governor.policies import CalibratedPolicy
from governor.probe import ProbeAnswer
from governor.records import CallRecord, merge
from governor.rules import RuleSettings

CERTIFICATE = Certificate(0.5, 100, 0, 0, 100, 0.03, 0.05, 0.95, 1)
GATE = Gate(
    model="m",
    version=1,
    created=0.0,
    attempt=1,
    signals=(
        SignalWeight("probe_least_margin", "identity", 0.5, 0.4, -0.5),
        SignalWeight("calls_of_tool", "identity", 1.0, 1.0, -1.0),
        SignalWeight("last_reduction", "identity", 0.0, 1.0, 1.0),
    ),
    intercept=0.0,
    tools={"lookup": ToolWeights("s", 50), "find": ToolWeights("s", 50)},
    knots=((-3.0, 0.1), (3.0, 0.9)),
    horizon=4,
    rules=rules_of(RuleSettings()),
    certificate=CERTIFICATE,
)

numbers = st.sampled_from([None, 0.0, 0.3, 1.0, 2.0, 3.0])
probes = st.none() | st.builds(
    ProbeAnswer,
    text=st.sampled_from(["Oslo", "Rome", "Lima", ""]),
    finished=st.sampled_from([True, True, True, False]),
    mean_entropy=st.sampled_from([0.1, 0.5]),
    max_entropy=st.just(0.5),
    least_margin=st.sampled_from([0.1, 0.5, 0.9]),
    logprob=st.just(-1.0),
    tokens=st.just(2),
    prompt_tokens=st.just(30),
)


@st.composite
def calls(draw: st.DrawFn) -> CallRecord:
    """A record of a conversation in which anything may happen: notices, exploration, parallel calls, a
    history that was shortened, clocks that stand still, another model, ids that are no ids."""
    index = draw(st.integers(0, 1))
    action = draw(st.sampled_from(["pass", "pass", "pass", "pass", "notice", "answer", "drop"]))
    probe = draw(probes)
    step = draw(st.integers(0, 4))
    return CallRecord(
        call_id=draw(st.sampled_from(["", "a", "lookup:0"])),
        conversation=draw(st.sampled_from(["x", "y"])),
        tool=draw(st.sampled_from(["lookup", "lookup", "find", "other"])),
        signature=draw(st.sampled_from(["lookup(1)", "lookup(2)"])),
        step=step,
        decision={
            "index": index,
            "action": action,
            "proposed": draw(st.sampled_from(["pass", "notice"])),
            "reason": draw(st.sampled_from(["no_rule", "exploration", "not_judged"])),
        },
        created=draw(st.sampled_from([0.0, 1.0, 2.0, 3.0])),
        generation=draw(st.sampled_from([0, 0, 1])),
        probe_before=probe,
        probe_after=draw(probes),
        effect=draw(st.sampled_from(["read_only", "read_only", "read_only", "effectful"])),
        arm=draw(st.sampled_from(["observed", "observed", "holdout", "governed"])),
        explored=draw(st.booleans()),
        model=draw(st.sampled_from(["m", "m", "m", "n"])),
        schema="s",
        signals=draw(
            st.just({})
            | st.fixed_dictionaries(
                {
                    "step": st.just(float(step)),
                    "calls_of_tool": numbers,
                    "last_reduction": numbers,
                    "probe_least_margin": st.just(probe.least_margin if probe else None),
                }
            )
        )
        or {"probe_least_margin": probe.least_margin if probe else None},
    )


logs = st.lists(calls(), max_size=8)
thresholds = st.sampled_from([0.2, 0.4, 0.5, 0.6, 0.8])


@settings(deadline=None, max_examples=200)
@given(log=logs, threshold=thresholds)
def test_certificate_and_replay_name_the_same_first_crossing(log: list[CallRecord], threshold: float) -> None:
    """Whatever is in the log. The promise is about that call; a replay that meant another one would show how
    good a promise is that was never made."""
    gate = replace(GATE, certificate=replace(CERTIFICATE, threshold=threshold))
    for calls in conversations(log).values():
        course = judged(calls, CalibratedPolicy(gate))
        replayed = [call.record.key for call in course if call.first]
        watched = [call.record.key for call in reached(gate, calls) if call.score <= threshold]
        assert watched == replayed
        if observed(calls):
            certified = next((c for c in candidates(gate, calls) if c.score <= threshold), None)
            harmful = next(((call.harmful,) for call in course if call.first), None)
            assert (None if certified is None else (certified.harmful,)) == harmful


@given(log=logs, data=st.data())
def test_the_order_does_not_hang_on_that_of_the_log(log: list[CallRecord], data: st.DataObject) -> None:
    """A file holds the records as they were completed, a store as they were used last."""
    shuffled = data.draw(st.permutations(log + log[:3]))
    assert conversations(shuffled) == conversations(log)


@given(log=logs)
def test_a_shortened_history_does_not_change_the_order(log: list[CallRecord]) -> None:
    """Its steps begin again at 0; the requests still come one after the other."""
    moved = [replace(call, created=float(number), step=0) for number, call in enumerate(log)]
    assert list(in_order(reversed(moved))) == moved


def test_a_notice_comes_before_what_followed_it() -> None:
    """One request, one time: two notices with two calls each, and the calls that passed."""
    log = [_call(generation, index) for generation in (2, 0, 1) for index in (1, 0)]
    places = [(call.generation, call.index) for call in in_order(log)]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_what_was_withheld_live_ends_the_course() -> None:
    """What came later would not have come without that."""
    log = [_call(2, 0), replace(_call(2, 1), decision={"index": 1, "action": "answer"}), _call(2, 2)]
    assert until_crossing(log, [False] * 3) == 2
    assert until_crossing(log, [True] * 3) == 1
    assert until_crossing(log[:1], [False]) == 1


def _call(generation: int, index: int) -> CallRecord:
    action = "pass" if generation == 2 else "notice"
    return CallRecord(
        call_id="lookup:0",
        conversation="x",
        tool="lookup",
        signature="lookup({})",
        step=1,
        decision={"index": index, "action": action},
        created=5.0,
        generation=generation,
    )


# What several records know of one call

versions = st.builds(
    replace,
    st.just(CallRecord("a", "x", "lookup", "lookup({})", 0, {"action": "pass", "reason": "not_judged"}, 1.0)),
    decision=st.sampled_from(
        [
            {"action": "pass", "reason": "not_judged", "arguments": "{}"},
            {"action": "pass", "reason": "no_rule", "arguments": "{}"},
            {"action": "pass", "reason": "no_rule"},
        ]
    ),
    signals=st.sampled_from([{}, {"step": 0.0}]),
    probe_before=probes,
    probe_after=probes,
    entropy_before=numbers,
    entropy_after=numbers,
    usage=st.sampled_from([{}, {"prompt_tokens": 3}, {"prompt_tokens": 2, "completion_tokens": 1}]),
    outcome=st.sampled_from(["", "ok", "failed"]),
    returned=numbers,
    stub=st.sampled_from(["", "age"]),
    signature=st.just("lookup({})"),
)


@settings(max_examples=300)
@given(first=versions, second=versions, third=versions)
def test_a_record_is_completed_in_any_order(first: CallRecord, second: CallRecord, third: CallRecord) -> None:
    """Probe, result and label come in any order, through any copies, more than once; with text or without."""
    assert merge(first, second) == merge(second, first)
    assert merge(merge(first, second), third) == merge(first, merge(second, third))
    assert merge(first, first) == first
    assert merge(merge(first, second), second) == merge(first, second)
    silent = merge(first.without_text(), first)
    assert silent == merge(first, first.without_text()) == first


@given(old=versions, new=versions)
def test_completing_forgets_nothing(old: CallRecord, new: CallRecord) -> None:
    """An older copy that comes late takes nothing away."""
    whole: dict[str, Any] = merge(new, old).as_dict()
    for name, value in new.as_dict().items():
        assert whole[name] is not None or value is None
        assert whole[name] != "" or value == ""
