"""A diagnosis in two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from governor_training.finetuning.diagnosis import ALL_TOOLS, CHANCE, GOOD, Case, Diagnosis, Signal

DPI = 120
USEFUL, USELESS = "#2a8f6f", "#c8443c"
BINS = 40


def draw(diagnosis: Diagnosis, cases: Sequence[Case], out: Path) -> list[Path]:
    """Writes PNGs into the folder `out`, and returns where. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures = {"separation": _separation(diagnosis), "distributions": _distributions(diagnosis, cases)}
    paths = []
    for name, figure in pictures.items():
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
        pyplot.close(figure)
    return paths


def _separation(diagnosis: Diagnosis) -> Any:
    """The AUROC of each measure for each tool, with its interval."""
    from matplotlib import pyplot

    shown = [signal for signal in diagnosis.signals if signal.auroc is not None][::-1]
    figure, axis = pyplot.subplots(figsize=(8, 1.2 + 0.28 * max(1, len(shown))), layout="constrained")
    for place, signal in enumerate(shown):
        value, low, high = signal.auroc or (CHANCE, None, None)
        overall = signal.tool == ALL_TOOLS
        axis.plot([low or value, high or value], [place, place], color="#888888", linewidth=2)
        axis.plot(
            value, place, "o", color="#222222" if overall else "#3b78c3", markersize=7 if overall else 5
        )
    axis.set_yticks(range(len(shown)), [_label(signal) for signal in shown], fontsize=8)
    axis.axvline(CHANCE, color=USELESS, linewidth=1)
    axis.axvline(GOOD, color=USEFUL, linewidth=1, linestyle="--")
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"AUROC for a useful call, by {diagnosis.truth}; dashed: enough for a dense reward")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _distributions(diagnosis: Diagnosis, cases: Sequence[Case]) -> Any:
    """What each measure was for useful and for useless calls."""
    from matplotlib import pyplot

    measures = [signal.measure for signal in diagnosis.signals if signal.tool == ALL_TOOLS]
    rows = max(1, (len(measures) + 2) // 3)
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(11, 2.4 * rows), layout="constrained", squeeze=False, sharey="row"
    )
    for axis in axes.flat[len(measures) :]:
        axis.set_axis_off()
    for axis, measure in zip(axes.flat, measures, strict=False):
        found = {
            kind: [
                v for case in cases if case.useful is kind and (v := case.measures.get(measure)) is not None
            ]
            for kind in (True, False)
        }
        values = found[True] + found[False]
        if values:
            edges = (min(values), max(values) + 1e-9)
            axis.hist(found[True], BINS, range=edges, alpha=0.6, color=USEFUL, label="useful", density=True)
            axis.hist(
                found[False], BINS, range=edges, alpha=0.6, color=USELESS, label="useless", density=True
            )
        axis.axvline(0, color="#222222", linewidth=0.8)
        axis.set_yscale("symlog")
        axis.set_title(measure, fontsize=9)
        axis.set_xlabel("nats", fontsize=8)
    axes.flat[0].legend(fontsize=8)
    return figure


def _label(signal: Signal) -> str:
    return f"{signal.measure}, {'all tools' if signal.tool == ALL_TOOLS else signal.tool} ({signal.calls})"
