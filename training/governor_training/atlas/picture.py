"""A conversation as a picture: the entropy of every token along the way, with and without the governor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from governor.decision import Action
from governor_training.agent import Call, Run
from governor_training.environment import Task

COLOURS = {"reasoning": "#7b6fd0", "content": "#2a8f6f", "call": "#e08a2e", "template": "#c9c9c9"}
RESULT = "#3b78c3"
WITHHELD = "#c8443c"
LONGEST_LABEL = 16
CEILING = 0.25
"""The least height of the axis in nats, so that noise does not look like doubt."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One token, or a mark between the turns (`kind` "result" or "withheld") without a height."""

    label: str
    kind: str
    entropy: float = 0.0


def bars(run: Run) -> list[Bar]:
    """All tokens that are not white space, each call's result, and a mark where a call was withheld."""
    found: list[Bar] = []
    for turn, explanation in enumerate(run.explanations):
        for generation in range(1 + max((token["generation"] for token in explanation["tokens"]), default=0)):
            found += _tokens(explanation, generation)
            found += _withheld(explanation, generation)
        after = run.explanations[turn + 1]["results"] if turn + 1 < len(run.explanations) else []
        calls = [call for call in run.calls if call.turn == turn]
        found += [Bar(_result(call, told), "result") for call, told in zip_longest(calls, after) if call]
    return found


def _tokens(explanation: Mapping[str, Any], generation: int) -> list[Bar]:
    return [
        Bar(_label(token["text"]), token["span"], token["entropy"])
        for token in explanation["tokens"]
        if token["generation"] == generation and token["text"].strip()
    ]


def _withheld(explanation: Mapping[str, Any], generation: int) -> list[Bar]:
    return [
        Bar(f"{decision['tool']} withheld:\n{decision['reason'].replace('_', ' ')}", "withheld")
        for decision in explanation["decisions"]
        if decision["generation"] == generation and decision["action"] != Action.PASS
    ]


def _result(call: Call, told: Mapping[str, Any] | None) -> str:
    label = f"{call.name} → {call.result}"
    if told is None or told["entropy_reduction"] is None:
        return label
    return f"{label}\nsegment {told['entropy_before']:.2f} → {told['entropy_after']:.2f} nats"


def draw(task: Task, runs: Mapping[str, Run], path: Path) -> None:
    """Writes the picture as PNG, one row a run. Raises OSError where the file cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = {name: bars(run) for name, run in runs.items()}
    widest = max(map(len, rows.values()))
    highest = max([CEILING, *(bar.entropy for row in rows.values() for bar in row)])
    figure, axes = pyplot.subplots(
        len(rows), 1, figsize=(max(10, widest * 0.21), 3.7 * len(rows)), squeeze=False
    )
    for axis, (name, row) in zip(axes[:, 0], rows.items(), strict=True):
        _draw_row(axis, row, widest, highest)
        calls = len(runs[name].calls)
        title = f"{name}: {calls} call{'' if calls == 1 else 's'}, “{runs[name].answer.strip()}”"
        axis.set_title(title.replace("$", "\\$"), loc="left", fontsize=12, fontweight="bold", pad=34)
    kinds = [Patch(color=colour, label=kind) for kind, colour in COLOURS.items()]
    marks = [Patch(color=RESULT, label="tool result"), Patch(color=WITHHELD, label="withheld call")]
    figure.legend(handles=kinds + marks, ncol=6, loc="lower center", frameon=False, fontsize=9)
    figure.suptitle(f"Token entropy along one conversation: “{task.text}”", fontsize=13, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_row(axis: Any, row: list[Bar], widest: int, highest: float) -> None:
    for place, bar in enumerate(row):
        if bar.kind in COLOURS:
            axis.bar(place, max(bar.entropy, highest * 0.008), color=COLOURS[bar.kind], width=0.9)
            continue
        colour = RESULT if bar.kind == "result" else WITHHELD
        style = "-" if bar.kind == "result" else "--"
        axis.axvline(place, color=colour, linewidth=2, linestyle=style)
        axis.text(place, highest * 1.24, f"{bar.label}", color=colour, fontsize=8.5, va="bottom")
    axis.set_xticks(
        range(len(row)), [bar.label if bar.kind in COLOURS else "" for bar in row], rotation=90, fontsize=8
    )
    axis.set_xlim(-1, widest)
    axis.set_ylim(0, highest * 1.2)
    axis.set_ylabel("entropy, nats")
    axis.spines[["top", "right"]].set_visible(False)


def _label(text: str) -> str:
    """As the tick of an axis: short, and without what the drawing library takes for mathematics."""
    text = text.strip().replace("$", "\\$")
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
