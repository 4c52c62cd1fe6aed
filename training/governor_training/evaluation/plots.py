"""The evaluation in four pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from governor_training.evaluation.report import Report
from governor_training.evaluation.signals import Calibration, Correlation, SignalFigures
from governor_training.evaluation.statistics import Interval
from governor_training.evaluation.study import Evaluated
from governor_training.evaluation.sweep import CALIBRATED, FORECAST, UNGOVERNED

COLOURS = {
    CALIBRATED: "#c8443c",
    FORECAST: "#e7a19c",
    UNGOVERNED: "#222222",
    "threshold": "#e08a2e",
    "rules": "#7b6fd0",
    "cap": "#3b78c3",
    "identical": "#2a8f6f",
    "tasr": "#8c6d46",
    "mean_entropy": "#c06fb0",
    "pruning": "#9a9a9a",
}
MARKERS = "osD^vP*Xh"
DPI = 120
NEAR_POINTS = 2
"""How far below the best accuracy the enlarged part of the frontier goes."""


def draw(report: Report, out: Path) -> list[Path]:
    """Writes what there is to draw as PNG, and returns where. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    pictures = {"frontier": _frontier(report.evaluated), "signals": _signals(report.signals)}
    if report.calibrations:
        pictures["calibration"] = _calibration(report.calibrations)
    if any(one.correlation for one in report.pilot):
        pictures["pilot"] = _pilot(report.pilot)
    paths = []
    for name, figure in pictures.items():
        path = out / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        paths.append(path)
        closed(figure)
    return paths


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(width, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure, axis


def closed(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _frontier(evaluated: Sequence[Evaluated]) -> Any:
    """All settings on the left; on the right those that cost few points, where the lines lie close."""
    from matplotlib import pyplot

    figure, (whole, corner) = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for axis in (whole, corner):
        _families(axis, evaluated)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_xlabel("tool calls a task")
    whole.set_ylabel("accuracy, %")
    whole.set_title("Accuracy against calls; up and to the left is better", loc="left")
    whole.legend(frameon=False, fontsize=9)
    best = 100 * max(one.figures.accuracy.value for one in evaluated)
    near = [
        one.figures.calls.value for one in evaluated if 100 * one.figures.accuracy.value >= best - NEAR_POINTS
    ]
    margin = 0.03 * (max(near) - min(near)) or 0.1
    corner.set_xlim(min(near) - margin, max(near) + margin)
    corner.set_ylim(best - NEAR_POINTS - 0.2, best + 0.6)
    corner.set_title(f"The last {NEAR_POINTS} points of it", loc="left")
    return figure


def _families(axis: Any, evaluated: Sequence[Evaluated]) -> None:
    """A line for each policy."""
    families = dict.fromkeys(one.policy for one in evaluated)
    for number, family in enumerate(families):
        members = sorted(
            (one for one in evaluated if one.policy == family), key=lambda one: one.figures.calls.value
        )
        strong = family in (CALIBRATED, UNGOVERNED)
        axis.errorbar(
            [one.figures.calls.value for one in members],
            [100 * one.figures.accuracy.value for one in members],
            yerr=_bars([one.figures.accuracy for one in members]),
            label=family,
            color=COLOURS.get(family),
            marker="*" if family == UNGOVERNED else MARKERS[number % len(MARKERS)],
            markersize=16 if family == UNGOVERNED else 6,
            linewidth=2.4 if strong else 1.2,
            elinewidth=0.8,
            capsize=2,
            alpha=1.0 if strong else 0.75,
            zorder=3 if strong else 2,
        )


def _bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """How far the ends are from the values, in percent."""
    below = [100 * (one.value - (one.value if one.low is None else one.low)) for one in intervals]
    above = [100 * ((one.value if one.high is None else one.high) - one.value) for one in intervals]
    return [[max(0.0, gap) for gap in below], [max(0.0, gap) for gap in above]]


def _signals(signals: Sequence[SignalFigures]) -> Any:
    having = sorted(
        ((one, one.auroc) for one in signals if one.auroc is not None), key=lambda pair: pair[1].value
    )
    figure, axis = figure_of(8, 1.5 + 0.32 * len(having))
    for place, (one, area) in enumerate(having):
        axis.barh(place, area.value - 0.5, left=0.5, color="#3b78c3" if one.after else "#2a8f6f", height=0.7)
        if area.low is not None and area.high is not None:
            axis.plot([area.low, area.high], [place, place], color="#222222", linewidth=1)
    axis.set_yticks(range(len(having)), [one.signal for one, _ in having])
    axis.axvline(0.5, color="#222222", linewidth=0.8)
    axis.set_xlim(0, 1)
    axis.set_xlabel("AUROC for “avoidable”; green: known before the call, blue: only after it")
    axis.set_title("How well each signal tells avoidable calls", loc="left")
    return figure


def _calibration(calibrations: Sequence[Calibration]) -> Any:
    figure, axis = figure_of(6, 6)
    axis.plot([0, 1], [0, 1], color="#9a9a9a", linewidth=1, linestyle="--")
    for one, colour in zip(calibrations, ("#2a8f6f", "#c8443c"), strict=False):
        axis.plot(
            [place.predicted for place in one.bins],
            [place.seen for place in one.bins],
            color=colour,
            marker="o",
            label=f"{one.against}: error {one.error:.3f}, {one.calls} calls",
        )
        for place in one.bins:
            axis.annotate(
                f"{place.calls}",
                (place.predicted, place.seen),
                xytext=(4, -10),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
    axis.set_xlabel("P(useful) of the gate")
    axis.set_ylabel("share of calls that were useful")
    axis.set_title("Calibration on calls that the gate never saw", loc="left")
    axis.legend(frameon=False)
    return figure


def _pilot(correlations: Sequence[Correlation]) -> Any:
    having = [(one, one.correlation) for one in correlations if one.correlation is not None]
    figure, axis = figure_of(8, 1.5 + 0.4 * len(having))
    colours = {"entropy reduction": "#7b6fd0", "gain of the probe": "#2a8f6f"}
    for place, (one, correlation) in enumerate(reversed(having)):
        axis.barh(place, correlation.value, color=colours.get(one.measure), height=0.65)
        if correlation.low is not None and correlation.high is not None:
            axis.plot([correlation.low, correlation.high], [place, place], color="#222222", linewidth=1)
    names = [f"{one.measure}, {one.tool} ({one.calls})" for one, _ in reversed(having)]
    axis.set_yticks(range(len(having)), names)
    axis.axvline(0, color="#222222", linewidth=0.8)
    axis.set_xlim(-1, 1)
    axis.set_xlabel("Spearman's rank correlation with the true value of the call")
    axis.set_title("Does the entropy tell what a call was worth?", loc="left")
    return figure
