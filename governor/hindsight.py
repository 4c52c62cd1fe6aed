"""What a policy would have done on recorded calls, and what that would have cost.

The evidence on each call is put together again from the records of its conversation. Two things are not
in a record: the results, and the messages of the user. Both matter to the rules only, and what the rules
found is in the record, so the history is put together such that they find it again. Hence the rules are
those that the log was made with; budgets are counted anew.

Behind its first withheld call a conversation would have gone another way, so that what was recorded there
says little of what would have happened. The first crossing of each conversation is therefore counted apart
from what comes behind it. Whether it would have done harm is known only where nothing was withheld: in
governed conversations the labels are missing just where the log's own policy withheld calls, and the
remaining ones would flatter any policy like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from governor.calls import ToolCall, ToolEffect
from governor.certificate import UNLABELLED, upper_bound
from governor.conversation import ExecutedCall
from governor.conversations import noticed_before, observed, together, turn_place, until_crossing
from governor.decision import Reason
from governor.policies import Evidence, Policy, Verdict
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.results import Outcome
from governor.rules import RuleSettings, awaited, find


class Fate(StrEnum):
    """What a policy would have done. UNKNOWN: it would have asked for the probe, and none was recorded."""

    WITHHOLD = "withhold"
    PASS = "pass"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Hindsight:
    """One recorded call under a policy; `behind` a call of its conversation that was withheld, by this policy
    or when it was recorded."""

    record: CallRecord
    fate: Fate
    reason: Reason | None
    behind: bool

    @property
    def first(self) -> bool:
        """Whether it is the first call of its conversation that would have been withheld."""
        return self.fate is Fate.WITHHOLD and not self.behind

    @property
    def harmful(self) -> bool | None:
        """Whether the call changed the answer; None without a label."""
        label = self.record.label
        return None if label is None else label.changed


def evidence(records: Sequence[CallRecord]) -> list[Evidence]:
    """The evidence on each call of a conversation, as `conversations` gives it."""
    return [_evidence(records, record) for record in records]


def judged(
    records: Sequence[CallRecord], policy: Policy, known: Sequence[Evidence] | None = None
) -> list[Hindsight]:
    """Each call of a conversation, as `conversations` gives it, under `policy`.

    `known` is the `evidence` on them, for a caller that asks several policies. What the policy raises on a
    call lets it pass, as it does live.
    """
    known = evidence(records) if known is None else known
    fates = [_fate(policy, record, seen) for record, seen in zip(records, known, strict=True)]
    course = until_crossing(records, [fate is Fate.WITHHOLD for fate, _ in fates])
    return [
        Hindsight(record, fate, reason, behind=number >= course)
        for number, (record, (fate, reason)) in enumerate(zip(records, fates, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class Summary:
    """A policy on a log, in figures.

    `governable` calls are those of read-only tools. `withheld` counts all calls that would have been
    withheld, `crossings` the first ones of their conversations, `unknown` the calls that would have needed a
    probe that is not there. `observed` conversations are those of which the harm can be known: of their
    crossings `labelled` have a label, and `harmful` of these changed the answer; `unlabelled` have none, or
    come behind an unknown call. `bound` is the upper bound on the share of harmful ones, None where too many
    have no label.

    Calls saved lie between `saved_least`, the first withheld call alone, and `saved_most`, with all that came
    behind it.
    """

    conversations: int
    calls: int
    governable: int
    unknown: int
    withheld: int
    crossings: int
    observed: int
    labelled: int
    harmful: int
    unlabelled: int
    bound: float | None
    saved_least: int
    saved_most: int

    @classmethod
    def of(cls, found: Sequence[Sequence[Hindsight]], level: float = 0.05) -> Summary:
        """From the calls of each conversation; the bound is too low with a probability of at most `level`."""
        calls = [call for conversation in found for call in conversation]
        clean = [c for c in found if observed([call.record for call in c])]
        verdicts = [harm for c in clean for harm in _harm_of_first(c)]
        labelled = [harm for harm in verdicts if harm is not None]
        unlabelled = len(verdicts) - len(labelled)
        told = bool(labelled) and unlabelled <= UNLABELLED * len(verdicts)
        saved = [_saved(conversation) for conversation in found]
        return cls(
            conversations=len(found),
            calls=len(calls),
            governable=sum(call.record.effect == ToolEffect.READ_ONLY for call in calls),
            unknown=sum(call.fate is Fate.UNKNOWN for call in calls),
            withheld=sum(call.fate is Fate.WITHHOLD for call in calls),
            crossings=sum(call.first for call in calls),
            observed=len(clean),
            labelled=len(labelled),
            harmful=sum(labelled),
            unlabelled=unlabelled,
            bound=upper_bound(sum(labelled), len(labelled), level) if told else None,
            saved_least=sum(least for least, _ in saved),
            saved_most=sum(most for _, most in saved),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def _evidence(records: Sequence[CallRecord], record: CallRecord) -> Evidence:
    executed = [r for r in records if r.passed and turn_place(r) < turn_place(record)]
    siblings = together(record, records)
    noticed = noticed_before(record, records)
    call = _call(record)
    history = [_executed(r) for r in executed]
    probes = [r.probe_before for r in executed if r.probe_before is not None]
    figures = record.signals
    return Evidence(
        call=call,
        effect=_effect(record),
        history=(*_as_the_rules_saw_it(call, history, record), *(_pending(r) for r in siblings)),
        withheld=frozenset(_call(r).signature for r in noticed),
        step=record.evidence_step,
        segment_entropy=figures.get("segment_entropy", record.entropy_before),
        decision_entropy=figures.get("decision_entropy"),
        decision_margin=figures.get("decision_margin"),
        argument_entropy=figures.get("argument_entropy"),
        probe=_spoken(record.probe_before),
        previous_probe=_spoken(probes[-1]) if probes else None,
        last=executed[-1] if executed else None,
        model=record.model,
        schema=record.schema,
        volatile=_reason(record) == Reason.VOLATILE,
        signals=figures or None,
    )


def _fate(policy: Policy, record: CallRecord, known: Evidence) -> tuple[Fate, Reason | None]:
    if record.decision.get("reason") == Reason.CUT_MESSAGE:
        return Fate.PASS, Reason.CUT_MESSAGE
    try:
        verdict = policy.judge(known)
    except Exception:
        return Fate.PASS, Reason.POLICY_ERROR
    if isinstance(verdict, Verdict):
        return Fate.WITHHOLD if verdict.withhold else Fate.PASS, verdict.reason
    # Without logprobs, or where the probe failed, there would be no probe for this policy either.
    why = record.decision.get("reason")
    if why in (Reason.PROBE_FAILED, Reason.NO_LOGPROBS):
        return Fate.PASS, Reason(why)
    return Fate.UNKNOWN, None


def _call(record: CallRecord) -> ToolCall:
    """The signature stands in the place of the arguments: it may be a digest, and all that counts is whether
    two are equal."""
    return ToolCall(record.call_id, record.index, record.tool, record.signature)


def _effect(record: CallRecord) -> ToolEffect:
    return ToolEffect(record.effect) if record.effect in set(ToolEffect) else ToolEffect.UNKNOWN


def _executed(record: CallRecord) -> ExecutedCall:
    """The conversation went on after it, so that an outcome which was not recorded is taken for a result.
    The outcome stands in the place of the text: a result and a failure are never the same."""
    outcome = Outcome(record.outcome) if record.outcome in set(Outcome) else Outcome.OK
    return ExecutedCall(_call(record), outcome.value, outcome, _effect(record))


def _pending(record: CallRecord) -> ExecutedCall:
    return ExecutedCall(_call(record), "", Outcome.PENDING, _effect(record))


def _as_the_rules_saw_it(
    call: ToolCall, history: list[ExecutedCall], record: CallRecord
) -> Iterable[ExecutedCall]:
    """The history, in which a repeat that the rules did not mind is one from before the user's last message:
    the results differed, or the user spoke, and either way what came before says nothing of the world now."""
    if not record.signals or record.rule in _OF_THE_HISTORY or _reason(record) in _AWAITED:
        return history
    again = find(call, history, RuleSettings()) or awaited(call, history, volatile=False)
    if again is None:
        return history
    return [replace(done, user_messages_after=1) for done in history]


def _reason(record: CallRecord) -> str:
    return str(record.decision.get("reason", ""))


_AWAITED = frozenset({Reason.VOLATILE, Reason.UNFINISHED})
_OF_THE_HISTORY = frozenset({Reason.REPEATED_CALL, Reason.CYCLE, Reason.FAILING_RETRY})


def _spoken(probe: ProbeAnswer | None) -> ProbeAnswer | None:
    """Where texts are not stored, an answer's fingerprint stands for it, so that it does not look empty."""
    if probe is None or probe.text or probe.fingerprint == _SILENCE.fingerprint:
        return probe
    return replace(probe, text=probe.fingerprint)


_SILENCE = ProbeAnswer("", True, 0.0, 0.0, 0.0, 0.0, 0, 0)


def _harm_of_first(conversation: Sequence[Hindsight]) -> Iterable[bool | None]:
    """The harm of the first crossing, where there is one; None also where an unknown call comes before it."""
    sure = True
    for call in conversation:
        if call.first:
            yield call.harmful if sure else None
            return
        sure = sure and call.fate is not Fate.UNKNOWN


def _saved(conversation: Sequence[Hindsight]) -> tuple[int, int]:
    """The least and the most calls saved, of those that reached the agent."""
    place = next((place for place, call in enumerate(conversation) if call.first), None)
    if place is None:
        return 0, 0
    return int(conversation[place].record.passed), sum(c.record.passed for c in conversation[place:])
