"""What each signal says of the truth, how good the gate's probability is, and how good the free label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from governor.labels import Label
from governor_training.evaluation.calls import CallRow
from governor_training.evaluation.statistics import Interval, auprc, auroc, rank_correlation
from governor_training.scores import calibration_error

BINS = 10
Read = Callable[[CallRow], float | None]


@dataclass(frozen=True, slots=True)
class Signal:
    """`sign` says which way it is expected to point: +1, a large value speaks for "avoidable". `after`: it is
    known only once the call was made."""

    name: str
    sign: int
    read: Read
    after: bool = False


def _before(name: str, sign: int) -> Signal:
    return Signal(name, sign, lambda row: row.signals.get(name))


SIGNALS: Sequence[Signal] = (
    _before("probe_max_entropy", -1),
    _before("probe_mean_entropy", -1),
    _before("probe_least_margin", +1),
    _before("probe_logprob", +1),
    _before("answer_unchanged", +1),
    _before("segment_entropy", -1),
    _before("decision_entropy", -1),
    _before("decision_margin", +1),
    _before("argument_entropy", -1),
    _before("step", +1),
    _before("calls_of_tool", +1),
    _before("last_reduction", -1),
    _before("last_gain", -1),
    Signal("a rule speaks", +1, lambda row: float(bool(row.rule))),
    Signal("P(useful) of the gate", -1, lambda row: row.useful),
    Signal("entropy reduction", -1, lambda row: row.entropy_reduction, after=True),
    Signal("gain of the probe", -1, lambda row: row.gain, after=True),
    Signal("answer changed", -1, lambda row: _number(row.answer_changed), after=True),
)


@dataclass(frozen=True, slots=True)
class SignalFigures:
    """How well a signal, times its expected sign, tells the avoidable calls. `auroc` below 0.5: it points
    the other way here. `base_rate` is the share of avoidable calls among the `calls` that have the signal."""

    signal: str
    after: bool
    calls: int
    base_rate: float
    auroc: Interval | None
    auprc: float | None


def signal_figures(rows: Sequence[CallRow]) -> list[SignalFigures]:
    found = []
    for signal in SIGNALS:
        having = [(row, value) for row in rows if (value := signal.read(row)) is not None]
        truth = [row.avoidable for row, _ in having]
        scores = [signal.sign * value for _, value in having]
        tasks = [row.task for row, _ in having]
        found.append(
            SignalFigures(
                signal.name,
                signal.after,
                len(having),
                fmean(truth) if truth else 0.0,
                auroc(scores, truth, tasks) if having else None,
                auprc(scores, truth) if having else None,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Bin:
    """A tenth of the probabilities: their mean, the share of calls that came true, and how many."""

    predicted: float
    seen: float
    calls: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(useful) against what it was to foretell: the free label (which it was fitted on), or the truth."""

    against: str
    calls: int
    error: float
    """Expected calibration error, over ten bins of equal width."""
    bins: Sequence[Bin]


def calibrations(rows: Sequence[CallRow]) -> list[Calibration]:
    labelled = [(row.useful, row.label_changed) for row in rows if row.label_changed is not None]
    needed = [(row.useful, not row.avoidable) for row in rows]
    return [
        found
        for against, pairs in (("the free label", labelled), ("the truth", needed))
        if (found := _calibration(against, [(p, seen) for p, seen in pairs if p is not None])) is not None
    ]


def _calibration(against: str, pairs: Sequence[tuple[float, bool]]) -> Calibration | None:
    if not pairs:
        return None
    bins = []
    for place in range(BINS):
        members = [(p, seen) for p, seen in pairs if min(BINS - 1, int(p * BINS)) == place]
        if members:
            bins.append(Bin(fmean(p for p, _ in members), fmean(s for _, s in members), len(members)))
    return Calibration(against, len(pairs), calibration_error(pairs), bins)


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation of a measure after the call with the call's true value: the pilot of the
    paper on entropy reduction (arXiv 2602.02050), repeated."""

    measure: str
    tool: str
    calls: int
    correlation: Interval | None


def pilot(rows: Sequence[CallRow]) -> list[Correlation]:
    """For all tools together, then for each."""
    measures: Mapping[str, Read] = {
        "entropy reduction": lambda row: row.entropy_reduction,
        "gain of the probe": lambda row: row.gain,
    }
    groups = {"all": list(rows)}
    for tool in sorted({row.tool for row in rows}):
        groups[tool] = [row for row in rows if row.tool == tool]
    found = []
    for measure, read in measures.items():
        for tool, members in groups.items():
            having = [(row, value) for row in members if (value := read(row)) is not None]
            values = [row.value for row, _ in having]
            tasks = [row.task for row, _ in having]
            measured = [value for _, value in having]
            found.append(Correlation(measure, tool, len(having), rank_correlation(measured, values, tasks)))
    return found


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """The free label against the truth. "Positive" is a call that changed the answer; `by_label` counts
    avoidable and needed calls for each label."""

    changed_needed: int
    changed_avoidable: int
    unchanged_needed: int
    unchanged_avoidable: int
    unlabelled: int
    by_label: Mapping[str, Mapping[str, int]]

    @property
    def labelled(self) -> int:
        return self.changed_needed + self.changed_avoidable + self.unchanged_needed + self.unchanged_avoidable

    @property
    def agreement(self) -> float | None:
        """The share of labelled calls on which both say the same."""
        return (self.changed_needed + self.unchanged_avoidable) / self.labelled if self.labelled else None


def label_agreement(rows: Iterable[CallRow]) -> LabelAgreement:
    cells: Counter[tuple[bool | None, bool]] = Counter()
    labels: dict[str, Counter[str]] = {label.value: Counter() for label in Label}
    for row in rows:
        cells[row.label_changed, row.avoidable] += 1
        if row.label is not None:
            labels[row.label]["avoidable" if row.avoidable else "needed"] += 1
    return LabelAgreement(
        cells[True, False],
        cells[True, True],
        cells[False, False],
        cells[False, True],
        cells[None, False] + cells[None, True],
        {label: dict(counts) for label, counts in labels.items()},
    )


def _number(value: bool | None) -> float | None:
    return None if value is None else float(value)


def jsonable(value: Any) -> Any:
    """Dataclasses and intervals as objects, sequences as lists."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    names = getattr(type(value), "__dataclass_fields__", None)
    return {name: jsonable(getattr(value, name)) for name in names} if names is not None else value
