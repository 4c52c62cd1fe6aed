"""The charts of a report. Text in them is text: a dollar sign in the name of a tool is no formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from governor_server.report.document import Picture

SIZE = (6.4, 3.6)
DPI = 150
COLOURS = ("#3b78c3", "#c8443c", "#2a8f6f", "#e08a2e", "#7b6fd0", "#8c6d46", "#9a9a9a")
MOST_LETTERS = 28
"""Of a name at an axis."""

Interval = tuple[float, float, float]
"""Value, lower and upper end."""


def _picture(name: str, title: str, said: str, draw: Callable[[Any], None]) -> Picture:
    """What `draw` puts on an axis."""
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "report", "font.size": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.add_subplot()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        svg, png = BytesIO(), BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=DPI)
    return Picture(name, title, said, svg.getvalue(), png.getvalue())


def _piled(bar: Callable[..., Any], base: str, parts: Mapping[str, Sequence[float]]) -> None:
    """Bars made of the parts, each of which begins where the one before it ends; `base` is what `bar` calls
    that end."""
    ends = [0.0] * len(next(iter(parts.values())))
    for (part, values), colour in zip(parts.items(), COLOURS, strict=False):
        bar(range(len(values)), values, **{base: ends}, label=part, color=colour)
        ends = [before + value for before, value in zip(ends, values, strict=True)]


def _parts_named(axis: Any) -> None:
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def stacked(
    name: str, title: str, names: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str
) -> Picture:
    """A bar for each name, the first on top, made of the parts."""

    def draw(axis: Any) -> None:
        _piled(axis.barh, "left", parts)
        axis.set_yticks(range(len(names)), [_short(each) for each in names])
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.grid(axis="x", alpha=0.25)
        _parts_named(axis)

    said = "; ".join(
        f"{each}: " + ", ".join(f"{part} {values[place]:,.4g}" for part, values in parts.items())
        for place, each in enumerate(names)
    )
    return _picture(name, title, said, draw)


def over_time(
    name: str, title: str, times: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str
) -> Picture:
    """A column for each stretch of time, made of the parts."""

    def draw(axis: Any) -> None:
        _piled(axis.bar, "bottom", parts)
        shown = range(0, len(times), max(1, len(times) // 6))
        axis.set_xticks(shown, [times[place] for place in shown], fontsize=8)
        axis.set_ylabel(unit)
        axis.grid(axis="y", alpha=0.25)
        _parts_named(axis)

    totals = ", ".join(f"{part} {sum(values):,.4g}" for part, values in parts.items())
    return _picture(name, title, f"From {times[0]} to {times[-1]}: {totals}", draw)


def intervals(name: str, title: str, values: Mapping[str, Interval], unit: str) -> Picture:
    """A point with its interval for each name, and a line at zero."""

    def draw(axis: Any) -> None:
        axis.axvline(0, color="#20243a", linewidth=0.8)
        for place, (value, low, high) in enumerate(values.values()):
            bars = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axis.errorbar([value], [place], xerr=bars, marker="o", capsize=3, color=COLOURS[0])
        axis.set_yticks(range(len(values)), [_short(each) for each in values])
        axis.margins(y=0.2)
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.grid(axis="x", alpha=0.25)

    said = "; ".join(
        f"{each}: {v:+,.4g} [{low:+,.4g}, {high:+,.4g}]" for each, (v, low, high) in values.items()
    )
    return _picture(name, title, said, draw)


def lines(
    name: str,
    title: str,
    families: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
) -> Picture:
    """A line with its points for each family; one of a single point is a star."""

    def draw(axis: Any) -> None:
        for (family, points), colour in zip(families.items(), COLOURS, strict=False):
            marker, size = ("*", 13) if len(points) == 1 else ("o", 4)
            axis.plot(*zip(*points, strict=True), marker=marker, markersize=size, label=family, color=colour)
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8, loc="lower right")

    said = "; ".join(
        f"{family}: " + ", ".join(f"({x:.4g}, {y:.4g})" for x, y in points)
        for family, points in families.items()
    )
    return _picture(name, title, said, draw)


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
