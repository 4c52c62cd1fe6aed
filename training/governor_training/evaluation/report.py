"""What came of an evaluation, as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from governor.gate import Gate
from governor_training.evaluation.calls import CallRow
from governor_training.evaluation.frontier import Comparison, Standing, dominance
from governor_training.evaluation.played import LONG_RESULT, MARGIN, Figures
from governor_training.evaluation.signals import (
    Calibration,
    Correlation,
    LabelAgreement,
    SignalFigures,
    calibrations,
    jsonable,
    label_agreement,
    pilot,
    signal_figures,
)
from governor_training.evaluation.statistics import Interval
from governor_training.evaluation.study import Evaluated, Findings
from governor_training.evaluation.sweep import CALIBRATED, FORECAST, PRUNED


@dataclass(frozen=True, slots=True)
class Report:
    """The findings with what is read off them."""

    findings: Findings
    signals: Sequence[SignalFigures]
    calibrations: Sequence[Calibration]
    pilot: Sequence[Correlation]
    labels: LabelAgreement
    dominance: Sequence[Comparison]

    @classmethod
    def of(cls, findings: Findings) -> Report:
        rows = findings.calls
        gates = {one.name: one.played for one in findings.swept if one.policy in (CALIBRATED, FORECAST)}
        baselines = {
            one.name: one.played for one in findings.swept if one.policy not in (CALIBRATED, FORECAST, PRUNED)
        }
        return cls(
            findings,
            signal_figures(rows),
            calibrations(rows),
            pilot(rows),
            label_agreement(rows),
            dominance(gates, baselines) if gates else (),
        )

    @property
    def evaluated(self) -> Sequence[Evaluated]:
        """The ungoverned runs, then every point."""
        return (self.findings.ungoverned, *self.findings.swept)

    def summary(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Everything, JSON-ready."""
        found = self.findings
        return {
            "settings": settings,
            "requests": {"served": found.requests_served, "asked_of_the_engine": found.requests_asked},
            "learning": {
                "labelled_calls": found.learned_calls,
                "gates": {f"{harm:g}": _gate(gate) for harm, gate in found.gates.items()},
            },
            "calls": _calls(found.calls),
            "policies": [
                {
                    "policy": one.policy,
                    "setting": one.point.setting if one.point else "",
                    **one.figures.as_dict(),
                }
                for one in self.evaluated
            ],
            "real_servers": {
                name: {**arm.figures.as_dict(), **jsonable(arm.timing)} for name, arm in found.timed.items()
            },
            "signals": jsonable(self.signals),
            "calibration": jsonable(self.calibrations),
            "pilot": jsonable(self.pilot),
            "free_label": {**jsonable(self.labels), "agreement": self.labels.agreement},
            "dominance": jsonable(self.dominance),
        }

    def tables(self) -> list[Table]:
        """All tables, the important ones first."""
        found = [_policies(self.evaluated), _costs(self.evaluated)]
        if self.findings.timed:
            found.append(_real_servers(self.findings))
        if self.dominance:
            found.append(_dominance(self.dominance))
        return [
            *found,
            _signals(self.signals),
            _pilot(self.pilot),
            _labels(self.labels),
            *([_gates(self.findings)] if self.findings.gates else []),
        ]


def markdown(tables: Iterable[Table]) -> str:
    """The tables in Markdown."""
    pages = []
    for table in tables:
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        names = [str(column.header) for column in table.columns]
        rule = ["---:" if column.justify == "right" else "---" for column in table.columns]
        lines = [names, rule, *map(list, zip(*columns, strict=True))]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        pages.append(f"### {table.title}\n\n{body}\n")
    return "\n".join(pages)


def table_of(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _policies(evaluated: Sequence[Evaluated]) -> Table:
    figures = evaluated[0].figures
    table = table_of(
        f"Policies on {figures.tasks} runs of tasks that no gate saw (95% intervals)",
        *("policy", "accuracy", "change, points", "no worse?", "calls a task", "avoidable removed"),
        *("withheld", "needed of these", "unsafe first stops", "effectful withheld"),
    )
    for one in evaluated:
        f = one.figures
        verdict = "yes" if f.non_inferior else "not shown"
        table.add_row(
            one.name,
            percent(f.accuracy),
            points(f.difference),
            verdict,
            f"{f.calls.value:.2f}",
            f"{f.avoidable_removed.value:.1%}",
            f"{f.withheld}",
            f"{f.withheld_needed} ({percent(f.needed_share)})" if f.withheld else "-",
            percent(f.unsafe_first_stops),
            f"{f.effectful_withheld} of {f.effectful}",
        )
    table.caption = f"No worse: the interval of the change lies above -{100 * MARGIN:g} point."
    return table


def _costs(evaluated: Sequence[Evaluated]) -> Table:
    table = table_of(
        "Tokens a task, everything counted",
        *("policy", "prompt", "completion", "probes", "continuations", "all", "change", "pruned"),
        *("prompt, long results", "points, long results"),
    )
    for one in evaluated:
        f = one.figures
        long = ("-", "-")
        if f.long_prompt_change and f.long_difference:
            long = (_change(f.long_prompt_change), points(f.long_difference))
        table.add_row(
            one.name,
            *(f"{value:,.0f}" for value in (f.prompt_tokens, f.completion_tokens)),
            *(f"{value:,.0f}" for value in (f.probe_tokens, f.continuation_tokens, f.total_tokens)),
            _change(f.tokens_change),
            f"{f.saved_tokens:,.0f}",
            *long,
        )
    long_runs = evaluated[0].figures.long
    table.caption = f"Long results: in {long_runs} runs, with a result of at least {LONG_RESULT} tokens."
    return table


def _real_servers(findings: Findings) -> Table:
    first = next(iter(findings.timed.values())).figures
    table = table_of(
        f"Through real servers, {first.tasks} tasks, each in all arms one after the other",
        *("arm", "accuracy", "change, points", "calls a task", "tokens a task", "change"),
        *("seconds, median", "ratio"),
    )
    for name, arm in findings.timed.items():
        f = arm.figures
        table.add_row(
            name,
            percent(f.accuracy),
            points(f.difference),
            f"{f.calls.value:.2f}",
            f"{f.total_tokens:,.0f}",
            _change(f.tokens_change),
            f"{arm.timing.median_seconds:.3f}",
            _spread(arm.timing.ratio, "{:.2f}"),
        )
    return table


def _dominance(comparisons: Sequence[Comparison]) -> Table:
    table = table_of(
        "The calibrated gate at the budget of each other setting",
        *(
            "baseline",
            "its calls",
            "its accuracy",
            "gate",
            "calls",
            "accuracy",
            "difference, points",
            "standing",
        ),
    )
    for one in comparisons:
        if one.standing is Standing.NO_POINT or one.difference is None:
            cells = ["-"] * 4
        else:
            cells = [
                str(one.gate),
                f"{one.gate_calls:.2f}",
                f"{one.gate_accuracy:.1%}",
                points(one.difference),
            ]
        table.add_row(one.baseline, f"{one.calls:.2f}", f"{one.accuracy:.1%}", *cells, one.standing.value)
    return table


def _signals(signals: Sequence[SignalFigures]) -> Table:
    table = table_of(
        "How well each signal tells avoidable calls",
        "signal",
        "known",
        "calls",
        "base rate",
        "AUROC",
        "AUPRC",
    )
    for one in sorted(signals, key=lambda one: (one.after, -(one.auroc.value if one.auroc else 0.0))):
        when = "after the call" if one.after else "before"
        area = _spread(one.auroc, "{:.3f}")
        precision = "-" if one.auprc is None else f"{one.auprc:.3f}"
        table.add_row(one.signal, when, f"{one.calls}", f"{one.base_rate:.1%}", area, precision)
    return table


def _pilot(correlations: Sequence[Correlation]) -> Table:
    table = table_of(
        "Rank correlation with the true value of the call (Spearman)",
        "measure",
        "tool",
        "calls",
        "correlation",
    )
    for one in correlations:
        table.add_row(one.measure, one.tool, f"{one.calls}", _spread(one.correlation, "{:+.3f}"))
    return table


def _labels(labels: LabelAgreement) -> Table:
    share = "-" if labels.agreement is None else f"{labels.agreement:.1%}"
    table = table_of(
        f"The free label against the truth: the same in {share} of {labels.labelled}, {labels.unlabelled} "
        "without label",
        *("forced answer", "needed", "avoidable"),
    )
    table.add_row("changed", f"{labels.changed_needed}", f"{labels.changed_avoidable}")
    table.add_row("unchanged", f"{labels.unchanged_needed}", f"{labels.unchanged_avoidable}")
    table.add_section()
    for label, counts in labels.by_label.items():
        table.add_row(label, f"{counts.get('needed', 0)}", f"{counts.get('avoidable', 0)}")
    return table


def _gates(findings: Findings) -> Table:
    table = table_of(
        f"The gates, fitted on {findings.learned_calls} labelled calls", "max_harm", "threshold", "what holds"
    )
    for harm, gate in findings.gates.items():
        threshold = "-" if gate.threshold is None else f"{gate.threshold:.4f}"
        table.add_row(f"{harm:g}", threshold, gate.explain())
    return table


def _gate(gate: Gate) -> dict[str, Any]:
    certificate = gate.certificate
    return {
        "threshold": gate.threshold,
        "certificate": certificate.as_dict() if certificate else None,
        "told": gate.explain(),
    }


def _calls(rows: Sequence[CallRow]) -> dict[str, Any]:
    avoidable = sum(row.avoidable for row in rows)
    return {"read_only": len(rows), "avoidable": avoidable, "needed": len(rows) - avoidable}


def percent(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.1%}"
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:+.1f}"
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _change(interval: Interval) -> str:
    return f"{interval.value:+.0%}"


def _spread(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "-"
    value = form.format(interval.value)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{form.format(interval.low)}, {form.format(interval.high)}]"


def conclusion(ungoverned: Figures, governed: Figures, name: str) -> str:
    """The outcome of one setting in a sentence."""
    verdict = "no worse" if governed.non_inferior else "not shown to be no worse"
    return (
        f"{name}: {governed.calls.value:.2f} calls a task instead of {ungoverned.calls.value:.2f}, accuracy "
        f"{governed.accuracy.value:.1%} instead of {ungoverned.accuracy.value:.1%} ({verdict} by one point), "
        f"{governed.tokens_change.value:+.0%} tokens."
    )
