"""Accuracy against calls, for each arm and its checkpoints on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from governor_training.evaluation.plots import DPI, closed, figure_of
from governor_training.finetuning.study.figures import Comparison
from governor_training.finetuning.study.plan import START

COLOURS: Mapping[str, str] = {
    "start": "#222222",
    "accuracy": "#8c6d46",
    "otc": "#3b78c3",
    "eapo": "#7b6fd0",
    "sparse": "#c8443c",
    "dense": "#2a8f6f",
    "awr": "#e08a2e",
    "advised": "#c06fb0",
}
OTHER = "#9a9a9a"

Curve = Sequence[tuple[float, float]]
"""Calls a question and accuracy, in the order of the steps."""


def draw(
    path: Path, title: str, comparison: Comparison, curves: Mapping[str, Sequence[Curve]], asked: int
) -> None:
    """A PNG. `curves` are the checkpoints of each arm, one sequence a seed, each asked `asked` questions.
    Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    figure, axis = figure_of(7.5, 5)
    for name, means in comparison.means.items():
        colour = COLOURS.get(name.split(" ")[0], OTHER)
        for curve in curves.get(name, ()):
            axis.plot(
                [calls for calls, _ in curve],
                [100 * accuracy for _, accuracy in curve],
                "-o",
                color=colour,
                alpha=0.35,
                markersize=3,
                linewidth=1,
            )
        marker = "*" if name == START else "D" if " + " in name else "o"
        axis.plot(
            means.calls[0],
            100 * means.accuracy[0],
            marker,
            color=colour,
            markersize=12 if name == START else 9,
            label=name,
            linestyle="none",
            markeredgecolor="white",
        )
    axis.set_xlabel("calls a question")
    axis.set_ylabel("accuracy, %")
    axis.set_title(
        f"{title}\nlarge: {comparison.questions} held-out questions; small: checkpoints, {asked} of these",
        fontsize=9,
    )
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=DPI)
    closed(figure)
