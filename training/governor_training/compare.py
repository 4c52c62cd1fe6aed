"""An ungoverned and a governed run over the same tasks, judged against the true value of each call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from governor.calls import CallSignature, canonical_arguments
from governor.decision import Action, Reason
from governor_training.agent import Run, total
from governor_training.replay import Value


@dataclass(frozen=True, slots=True)
class Share:
    """A count and the total that it is a part of."""

    count: int
    total: int

    def __str__(self) -> str:
        share = f" ({self.count / self.total:.1%})" if self.total else ""
        return f"{self.count} of {self.total}{share}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One run over the tasks. `total_tokens` has all prompt and completion tokens that the engine saw."""

    questions: int
    accuracy: float
    calls_per_question: float
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    seconds_per_question: float
    malformed_calls: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Arm:
        tokens = total(runs)
        count = len(runs)
        return cls(
            questions=count,
            accuracy=sum(run.correct for run in runs) / count,
            calls_per_question=sum(len(run.calls) for run in runs) / count,
            prompt_tokens=tokens["prompt"],
            completion_tokens=tokens["completion"],
            total_tokens=tokens.total(),
            seconds_per_question=sum(run.seconds for run in runs) / count,
            malformed_calls=sum(run.malformed for run in runs),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """`needed_calls_withheld` is a share of all withheld calls; a call that passed when it was asked for
    again was only delayed, and is counted in `calls_delayed` instead."""

    ungoverned: Arm
    governed: Arm
    avoidable_calls: Share
    avoidable_calls_removed: Share
    needed_calls_withheld: Share
    effectful_calls_withheld: Share
    calls_delayed: int

    @classmethod
    def of(
        cls,
        ungoverned: Sequence[Run],
        governed: Sequence[Run],
        values: Sequence[Sequence[Value]],
        effectful: Collection[str],
    ) -> Comparison:
        """`values[i]` are those of `ungoverned[i]`, and `governed[i]` is the same task; `effectful` are the
        names of the tools that must never be withheld."""
        pairs = list(zip(ungoverned, governed, values, strict=True))
        removed = [gone for _, after, worth in pairs for gone in removals(after, worth)]
        needed = [bad for before, after, worth in pairs for bad in withheld_needed(before, after, worth)]
        avoidable = sum(value.avoidable for worth in values for value in worth)
        return cls(
            ungoverned=Arm.of(ungoverned),
            governed=Arm.of(governed),
            avoidable_calls=Share(avoidable, sum(map(len, values))),
            avoidable_calls_removed=Share(sum(removed), avoidable),
            needed_calls_withheld=Share(sum(needed), len(needed)),
            effectful_calls_withheld=effectful_withheld(governed, effectful),
            calls_delayed=sum(d["reason"] == Reason.ASKED_AGAIN for run in governed for d in run.decisions),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _signature(decision: Mapping[str, Any]) -> CallSignature:
    return CallSignature(decision["tool"], canonical_arguments(decision["arguments"]))


def removals(governed: Run, worth: Sequence[Value]) -> list[bool]:
    """For each avoidable call of the ungoverned run, whether the governed one did without it."""
    executed = Counter(call.signature for call in governed.calls)
    gone = []
    for value in worth:
        kept = executed[value.call.signature] > 0
        executed[value.call.signature] -= kept
        if value.avoidable:
            gone.append(not kept)
    return gone


def withheld_needed(ungoverned: Run, governed: Run, worth: Sequence[Value]) -> list[bool]:
    """For each call withheld for good, in order, whether it was needed.

    The n-th time that a call is proposed is the n-th time that the ungoverned run made it. A call that the
    replay found avoidable may still have been replaced by something wrong: where the task was done right
    without the governor and wrong with it, the last withheld call was needed whatever the replay says.
    """
    by_signature: dict[CallSignature, list[Value]] = {}
    for value in worth:
        by_signature.setdefault(value.call.signature, []).append(value)
    proposed: Counter[CallSignature] = Counter()
    delayed = {_signature(d) for d in governed.decisions if d["reason"] == Reason.ASKED_AGAIN}
    needed = []
    for decision in governed.decisions:
        signature = _signature(decision)
        same = by_signature.get(signature, [])
        place = proposed[signature]
        proposed[signature] += 1
        if decision["action"] == Action.PASS or signature in delayed:
            continue
        needed.append(place < len(same) and not same[place].avoidable)
    if needed and ungoverned.correct and not governed.correct:
        needed[-1] = True
    return needed


def effectful_withheld(governed: Sequence[Run], effectful: Collection[str]) -> Share:
    """Calls of effectful tools that were withheld, of those that the model proposed."""
    decisions = [d for run in governed for d in run.decisions if d["tool"] in effectful]
    return Share(sum(d["action"] != Action.PASS for d in decisions), len(decisions))
