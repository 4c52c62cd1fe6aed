"""What came of the study, as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from governor_training.evaluation.report import percent, points, table_of
from governor_training.evaluation.statistics import Interval
from governor_training.finetuning.study.figures import (
    Comparison,
    Target,
    against_baselines,
    baselines,
    difference,
)
from governor_training.finetuning.study.plan import START

MEASURES = ("accuracy", "calls", "read_calls")


def arms_table(title: str, comparison: Comparison) -> Table:
    """One row an arm."""
    table = table_of(
        f"{title}: {comparison.questions} held-out questions",
        *("arm", "seeds", "accuracy", "change, points", "calls a question", "of these, lookups"),
        *("calls against the baselines' mean", "performance against it"),
    )
    judged = bool(baselines(comparison))
    for name in comparison.means:
        against = ("-", "-")
        if judged:
            against = (
                _change(against_baselines(comparison, name, "calls")),
                _change(against_baselines(comparison, name, "accuracy")),
            )
        table.add_row(
            name,
            ", ".join(map(str, comparison.seeds[name])) or "-",
            percent(mean(comparison, name, "accuracy")),
            points(difference(comparison, name, START)) if comparison.has(START) else "-",
            _number(mean(comparison, name, "calls")),
            _number(mean(comparison, name, "read_calls")),
            *against,
        )
    table.caption = (
        f"Baselines: {', '.join(baselines(comparison))}. Intervals are over questions, not over seeds."
    )
    return table


def targets_table(targets: Sequence[Target]) -> Table:
    """What was aimed at, and whether it was reached."""
    table = table_of("What was aimed at", "target", "wanted", "reached", "met")
    for target in targets:
        said = "; ".join(f"{name} {_reached(name, value)}" for name, value in target.reached.items())
        table.add_row(target.name, target.wanted, said, "yes" if target.met else "no")
    return table


def mean(comparison: Comparison, arm: str, measure: str) -> Interval:
    """Of an arm, over the questions."""
    return comparison.interval(lambda means: getattr(means[arm], measure))


def world_summary(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "questions": comparison.questions,
        "baselines": baselines(comparison),
        "arms": {
            name: {
                "seeds": list(comparison.seeds[name]),
                "malformed": comparison.malformed[name],
                **{measure: mean(comparison, name, measure)._asdict() for measure in MEASURES},
                **_compared(comparison, name),
            }
            for name in comparison.means
        },
    }


def _compared(comparison: Comparison, name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    if comparison.has(START):
        found["accuracy_less_start"] = difference(comparison, name, START)._asdict()
    if baselines(comparison):
        found["calls_against_baselines"] = against_baselines(comparison, name, "calls")._asdict()
        found["performance_against_baselines"] = against_baselines(comparison, name, "accuracy")._asdict()
    return found


def _reached(name: str, interval: Interval) -> str:
    if name.startswith("accuracy"):
        return f"{points(interval)} points"
    return _number(interval, "+.2f") if "less that of" in name else _change(interval)


def _number(interval: Interval, form: str = ".2f") -> str:
    value, low, high = interval
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _change(interval: Interval) -> str:
    return _number(interval, "+.0%")
