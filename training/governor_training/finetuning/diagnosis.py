"""Whether entropy says anything of calls, before a reward is built on it.

The premise of entropy rewards is that a useful call makes the model more certain. In some worlds it does;
where the entropy is indecision about calling again, the reduction can say the opposite. So it is asked of
one's own logs first: do the entropy reduction, under each choice of tokens, and the gain of the forced answer
tell useful calls from useless ones, for each tool?

What is useful comes from the log: the true value by replay where `governor eval` wrote it, else whether the
forced answer changed (`governor.labels`). The latter says nothing of a call that confirmed what was
uncertain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from governor.rewards import Measure, RewardSettings, SpanChoice, Statistic, judged
from governor.spans import SpanKind
from governor_training.errors import UsageError
from governor_training.evaluation.signals import jsonable
from governor_training.evaluation.statistics import Interval, auroc, rank_correlation
from governor_training.finetuning.trajectory import LoggedCall, Trajectory

LOGGED = "as logged"
"""The choice of tokens that the governor's records were made with."""
ALL_TOOLS = "all"
FEW = 40
"""Fewer calls, or fewer than `FEW_OF_A_KIND` of one kind, are no ground for a recommendation."""
FEW_OF_A_KIND = 10
GOOD = 0.7
"""The least AUROC, at the lower end of its interval, that a reward for single calls is built on: a dense
reward says of each call that it was good, and is believed."""
CHANCE = 0.5

CHOICES: Mapping[str, SpanChoice] = {
    "reasoning and content": SpanChoice(),
    "with quotations": SpanChoice(quote=0),
    "reasoning": SpanChoice(kinds=frozenset({SpanKind.REASONING})),
    "content": SpanChoice(kinds=frozenset({SpanKind.CONTENT})),
    "largest token": SpanChoice(statistic=Statistic.MAX),
    "top fifth": SpanChoice(statistic=Statistic.TOP_FIFTH),
    "without the first 10": SpanChoice(skip=10),
    "whole turn": SpanChoice(kinds=frozenset(SpanKind)),
    "call": SpanChoice(kinds=frozenset({SpanKind.CALL})),
}
"""The choices of tokens that are compared; the first is the default."""


class Recommendation(StrEnum):
    """DENSE: entropy is good enough to reward single calls by. SPARSE: it is better than chance, so that the
    share of informative calls of a whole conversation may count. NEITHER: it says nothing, or the opposite;
    reward the score, or the number of calls (OTC)."""

    DENSE = "dense"
    SPARSE = "sparse"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Case:
    """One executed read-only call. `value` is what it was worth, `useful` whether that is enough; `measures`
    are the reductions by choice of tokens, and the gain; `informative` what the reward makes of each."""

    conversation: str
    tool: str
    useful: bool
    value: float
    measures: Mapping[str, float | None]
    informative: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Signal:
    """How well a measure tells the useful calls of a tool. `told` are the shares of the useful and of the
    useless ones that the reward would call informative."""

    measure: str
    tool: str
    calls: int
    useful: int
    auroc: Interval | None
    correlation: Interval | None
    told: tuple[float, float] | None

    @property
    def enough(self) -> bool:
        return self.calls >= FEW and min(self.useful, self.calls - self.useful) >= FEW_OF_A_KIND

    @property
    def low(self) -> float | None:
        """The lower end of the AUROC's interval; None where the calls are too few for one."""
        return self.auroc.low if self.auroc is not None and self.enough else None

    @property
    def inverted(self) -> bool:
        """Whether it certainly says the opposite."""
        high = self.auroc.high if self.auroc is not None and self.enough else None
        return high is not None and high < CHANCE


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a log says of the premise. `choice` are the settings of the measure that is recommended."""

    recommendation: Recommendation
    why: str
    measure: str
    truth: str
    calls: int
    signals: Sequence[Signal]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, cases: Sequence[Case], truth: str, settings: RewardSettings) -> Diagnosis:
        signals = list(signals_of(cases))
        overall = {signal.measure: signal for signal in signals if signal.tool == ALL_TOOLS}
        inverted = [signal for signal in signals if signal.inverted and signal.tool != ALL_TOOLS]
        usable = [
            signal
            for signal in overall.values()
            if signal.low is not None and not any(bad.measure == signal.measure for bad in inverted)
        ]
        best = max(usable, key=lambda signal: signal.low or 0.0, default=None)
        recommendation, why = _judged(best, overall, inverted)
        measure = "" if best is None or recommendation is Recommendation.NEITHER else best.measure
        return cls(recommendation, why, measure, truth, len(cases), signals, _plain(settings))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. `settings` are the flags with which a training measures as recommended."""
        found: dict[str, Any] = jsonable(self)
        if self.measure == Measure.GAIN:
            found["settings"]["measure"] = Measure.GAIN.value
        elif self.measure in CHOICES:
            found["choice"] = _plain(CHOICES[self.measure])
        return found


def _judged(
    best: Signal | None, overall: Mapping[str, Signal], inverted: Sequence[Signal]
) -> tuple[Recommendation, str]:
    calls = max((signal.calls for signal in overall.values()), default=0)
    if not any(signal.enough for signal in overall.values()):
        return Recommendation.NEITHER, (
            f"{calls} judged calls are too few to say anything: {FEW} are needed, {FEW_OF_A_KIND} of them"
            f" useful and {FEW_OF_A_KIND} useless"
        )
    if best is None or best.low is None or best.low <= CHANCE:
        worst = [signal for signal in overall.values() if signal.inverted]
        bad = [*worst, *inverted]
        told = f": {bad[0].measure} says the opposite for {_tool(bad[0])}" if bad else ""
        return Recommendation.NEITHER, f"no measure tells useful calls better than chance{told}"
    named = (
        f"{best.measure} has an AUROC of {best.auroc.value:.2f}, at least {best.low:.2f}"
        if best.auroc
        else ""
    )
    if best.low >= GOOD:
        return Recommendation.DENSE, f"{named}, over {best.calls} calls"
    return (
        Recommendation.SPARSE,
        f"{named}: better than chance, but not good enough for single calls ({GOOD:g})",
    )


def _tool(signal: Signal) -> str:
    return "all tools" if signal.tool == ALL_TOOLS else signal.tool


def signals_of(cases: Sequence[Case]) -> Iterator[Signal]:
    """Each measure for all tools together, then for each tool."""
    measures = list(dict.fromkeys(name for case in cases for name in case.measures))
    for measure in measures:
        having = [case for case in cases if case.measures.get(measure) is not None]
        yield _signal(measure, ALL_TOOLS, having)
        tools = sorted({case.tool for case in having})
        if len(tools) > 1:
            for tool in tools:
                yield _signal(measure, tool, [case for case in having if case.tool == tool])


def _signal(measure: str, tool: str, cases: Sequence[Case]) -> Signal:
    values = [value for case in cases if (value := case.measures[measure]) is not None]
    truth = [case.useful for case in cases]
    clusters = [case.conversation for case in cases]
    worth = [case.value for case in cases]
    return Signal(
        measure,
        tool,
        len(cases),
        sum(truth),
        auroc(values, truth, clusters) if cases else None,
        rank_correlation(values, worth, clusters) if cases else None,
        _told(measure, cases),
    )


def _told(measure: str, cases: Sequence[Case]) -> tuple[float, float] | None:
    found = []
    for kind in (True, False):
        judgements = [
            value
            for case in cases
            if case.useful is kind and (value := case.informative.get(measure)) is not None
        ]
        if not judgements:
            return None
        found.append(sum(judgements) / len(judgements))
    return found[0], found[1]


# Cases from logs


def cases_of(
    trajectory: Trajectory, turns: Mapping[str, Mapping[int, float | None]], settings: RewardSettings
) -> Iterator[Case]:
    """The labelled calls of a conversation. `turns` are the entropies of its turns by choice of tokens;
    empty: only what was logged."""
    calls = [call for call in trajectory.executed if call.turn >= trajectory.given]
    around = {LOGGED: calls} if any(call.before is not None for call in calls) else {}
    for name, entropies in turns.items():
        around[name] = [_around(call, entropies) for call in calls]
    reductions = {name: [call.measured for call in found] for name, found in around.items()}
    measured = {name: [turn.reduction for turn in found] for name, found in reductions.items()}
    measured[Measure.GAIN] = [call.gain for call in calls]
    # Whether the answer changed is what is asked here: the judgement must not know it already.
    blind = replace(settings, spare_conflicts=False)
    told = {name: judged(found, blind) for name, found in reductions.items()}
    told[Measure.GAIN] = judged([call.measured for call in calls], replace(blind, measure=Measure.GAIN))
    for place, call in enumerate(calls):
        if call.label is None:
            continue
        yield Case(
            trajectory.id,
            call.tool,
            call.label.changed,
            float(call.label.changed),
            {name: values[place] for name, values in measured.items()},
            {name: values[place] for name, values in told.items()},
        )


def case_of_row(row: Mapping[str, Any]) -> Case:
    """A call as `governor eval` wrote it (`calls.jsonl`), with its true value. Raises KeyError and
    TypeError."""
    return Case(
        f"{row['seed']} {row['task']}",
        str(row["tool"]),
        not row["avoidable"],
        float(row["value"]),
        {LOGGED: row["entropy_reduction"], Measure.GAIN: row["gain"]},
    )


def _around(call: LoggedCall, entropies: Mapping[int, float | None]) -> LoggedCall:
    return replace(call, before=entropies.get(call.turn), after=entropies.get(call.turn + 1))


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    values = asdict(settings)
    return {name: sorted(one) if isinstance(one, frozenset) else one for name, one in values.items()}


# What a training asks of it


def permit_dense(path: str | Path | None, *, undiagnosed: bool = False) -> None:
    """Raises `UsageError` unless a diagnosis recommends the dense reward, or nobody wants one."""
    if undiagnosed:
        return
    if path is None:
        raise UsageError(
            "the dense reward needs a diagnosis: run `governor train diagnose LOG --out FOLDER` and give"
            " --diagnosis FOLDER/diagnosis.json (or --undiagnosed true to go without)"
        )
    try:
        told = json.loads(Path(path).read_text("utf-8"))
        recommendation, why = Recommendation(told["recommendation"]), told["why"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} is no diagnosis: {error}") from None
    if recommendation is not Recommendation.DENSE:
        raise UsageError(
            f"{path} does not recommend the dense reward but {recommendation}: {why}"
            " (--undiagnosed true overrides it)"
        )
