"""The report on an evaluation: what `governor eval` wrote into its summary.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from governor_server.errors import SettingsError
from governor_server.report import charts
from governor_server.report.document import Document, Fact, Picture, Table

Row = Mapping[str, Any]

UNGOVERNED = "ungoverned"
COMPARED = (
    "rules",
    "identical times=1",
    "cap calls=2",
    "cap calls=1",
    "tasr margin=0.25",
    "threshold margin=0.9",
)
"""Baselines at settings that were chosen before any figure was seen: none is picked by its result."""
IN_FRONTIER = ("ungoverned", "calibrated", "threshold", "cap", "tasr", "mean_entropy", "identical")
PARTS = {
    "prompts": "prompt_tokens",
    "completions": "completion_tokens",
    "probes": "probe_tokens",
    "continuations": "continuation_tokens",
}


def is_evaluation(data: Any) -> bool:
    """Whether a JSON value is a summary of an evaluation."""
    return isinstance(data, Mapping) and {"settings", "policies", "calls", "learning"} <= data.keys()


def document(data: Mapping[str, Any], progress: Callable[[str], None]) -> Document:
    """The report. Raises `SettingsError` where the summary holds no policy to tell of."""
    rows = {label(row): row for row in data["policies"]}
    if UNGOVERNED not in rows:
        raise SettingsError("the summary has no ungoverned runs to compare with: run governor eval again")
    settings, name = data["settings"], chosen(data["settings"], rows)
    main, start = rows[name], rows[UNGOVERNED]
    shown = [start, main, *(rows[each] for each in COMPARED if each in rows and each != name)]
    many = len(settings["seeds"])
    tasks = f"{settings['tasks']:,} held-out tasks" + (f" for each of {many} seeds" if many > 1 else "")
    return Document(
        title="What a governor would do",
        about=f"Evaluation of {name} on {tasks}: environment {settings['environment']}, "
        f"model {settings['upstream'] or settings['model']}. Every withheld call is judged against the "
        "truth, by playing the same conversation on with its result and without it.",
        headline=headline(name, main, start),
        facts=facts(main, start),
        pictures=pictures(data, rows, shown, progress),
        tables=[table(shown)],
        unknown=unknown(data, name),
        made=made(settings),
    )


def label(row: Row) -> str:
    """Policy and setting of a row."""
    return f"{row['policy']} {row['setting']}".strip()


def chosen(settings: Row, rows: Mapping[str, Row]) -> str:
    """Whose figures the headline has: the gate at the harm that was allowed, else the first policy."""
    gate = f"calibrated max_harm={settings['max_harm']:g}"
    others = [name for name in rows if not name.startswith((UNGOVERNED, "observe", "forecast"))]
    if gate not in rows and not others:
        raise SettingsError("the summary has no policy besides the ungoverned runs: run governor eval again")
    return gate if gate in rows else others[0]


def headline(name: str, main: Row, start: Row) -> str:
    """One sentence."""
    calls = main["calls"]["value"] / start["calls"]["value"] - 1 if start["calls"]["value"] else 0.0
    if not main["withheld"]:
        return f"{name} withheld nothing: it observed, and changed neither accuracy nor calls."
    return (
        f"{name} withheld {main['withheld']:,} calls in {main['tasks']:,} tasks, "
        f"{main['withheld_needed']:,} of them needed; {calls:+.0%} tool calls, "
        f"{main['tokens_change']['value']:+.0%} tokens with its own probes; accuracy "
        f"{start['accuracy']['value']:.1%} without and {main['accuracy']['value']:.1%} with it "
        f"(change {points(main['difference'])} points)."
    )


def facts(main: Row, start: Row) -> list[Fact]:
    return [
        Fact(f"{main['calls']['value']:.2f}", f"calls a task, {start['calls']['value']:.2f} ungoverned"),
        Fact(
            f"{main['avoidable_removed']['value']:.1%}",
            f"of {main['avoidable_total']:,} avoidable calls removed",
        ),
        Fact(f"{main['withheld_needed']:,}", f"needed among {main['withheld']:,} withheld"),
        Fact(f"{100 * main['difference']['value']:+.1f}", "points of accuracy"),
        Fact(f"{main['tokens_change']['value']:+.0%}", "tokens, with probes"),
        Fact(f"{main['effectful_withheld']:,}", f"effectful calls withheld, of {main['effectful']:,}"),
    ]


def pictures(
    data: Mapping[str, Any],
    rows: Mapping[str, Row],
    shown: Sequence[Row],
    progress: Callable[[str], None],
) -> list[Picture]:
    names = [label(row) for row in shown]
    progress("drawing the frontier")
    families = {
        family: sorted((row["calls"]["value"], 100 * row["accuracy"]["value"]) for row in found)
        for family in IN_FRONTIER
        if (found := [row for row in rows.values() if row["policy"] == family])
    }
    drawn = [
        charts.lines(
            "frontier",
            "Accuracy against calls; up and to the left is better",
            families,
            ("tool calls a task", "accuracy, %"),
        )
    ]
    progress("drawing the changes")
    changes = {
        name: hundredths(row["difference"])
        for name, row in zip(names, shown, strict=True)
        if row["policy"] != UNGOVERNED
    }
    drawn.append(charts.intervals("accuracy", "Change of accuracy, with 95% intervals", changes, "points"))
    progress("drawing the tokens")
    parts = {part: [float(row[key]) for row in shown] for part, key in PARTS.items()}
    drawn.append(charts.stacked("tokens", "Tokens a task", names, parts, "tokens"))
    if data["calibration"]:
        progress("drawing the forecasts")
        bins = data["calibration"][0]["bins"]
        seen = {
            "perfect": [(0.0, 0.0), (1.0, 1.0)],
            "this gate": [(one["predicted"], one["seen"]) for one in bins if one["calls"]],
        }
        drawn.append(
            charts.lines(
                "forecasts",
                "P(useful) of the gate: forecast and seen",
                seen,
                ("forecast", "share that was useful"),
            )
        )
    return drawn


def table(shown: Sequence[Row]) -> Table:
    headings = (
        "policy", "accuracy", "change, points", "calls a task", "avoidable removed", "needed of withheld",
        "tokens",
    )  # fmt: skip
    return Table(
        "Side by side, with 95% intervals",
        headings,
        [
            (
                label(row),
                f"{row['accuracy']['value']:.1%}",
                points(row["difference"]),
                f"{row['calls']['value']:.2f}",
                f"{row['avoidable_removed']['value']:.1%}",
                f"{row['withheld_needed']:,} of {row['withheld']:,}" if row["withheld"] else "-",
                f"{row['tokens_change']['value']:+.0%}",
            )
            for row in shown
        ],
    )


def unknown(data: Mapping[str, Any], name: str) -> list[str]:
    """What the figures do not say."""
    settings = data["settings"]
    lines = []
    if not settings["upstream"] and not settings["dataset"]:
        lines.append(
            "The model is a small one that was made for this test bed. What another model gains is a "
            "measurement of its own: let the governor observe, or run governor eval with --upstream and "
            "--dataset."
        )
    lines.append("Intervals are of 95% for each figure alone; of many figures, some lie outside.")
    gate = data["learning"]["gates"].get(name.rpartition("=")[2]) if name.startswith("calibrated") else None
    if gate:
        lines.append(f"The gate's certificate: {gate['told']}")
    if not data["real_servers"]:
        lines.append("Seconds were not measured in this run.")
    for policy, row in (data["real_servers"] or {}).items():
        if policy != UNGOVERNED:
            ratio = row["ratio"]
            lines.append(
                f"Through real servers a task took {ratio['value']:.2f} [{ratio['low']:.2f}, "
                f"{ratio['high']:.2f}] of the ungoverned time under {policy} "
                f"({row['tasks']:,} tasks, on the machine named below)."
            )
    lines.append("The other policies stand here at fixed settings; all settings are in the run's tables.md.")
    return lines


def made(settings: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    return (
        f"Made by governor report from governor eval, seeds {seeds}, on {settings['processor']}, {versions}."
    )


def hundredths(interval: Mapping[str, float]) -> charts.Interval:
    """A difference of shares in points of a hundred, and the ends of its interval."""
    return 100 * interval["value"], 100 * interval["low"], 100 * interval["high"]


def points(interval: Mapping[str, float]) -> str:
    """The same in words."""
    value, low, high = hundredths(interval)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
