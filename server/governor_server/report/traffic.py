"""The report on a time range of the records that the proxy keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from governor.conversations import conversations, turn_place
from governor.labels import Label
from governor.outcomes import Effect, effect_of
from governor.overview import OTHERS, Tally, step_of, withheld
from governor.prices import Prices
from governor.records import CallRecord
from governor.standing import Key, Standing, told
from governor.turn_record import TurnRecord
from governor_server.gatekeeper import sentence
from governor_server.report import charts
from governor_server.report.document import Document, Fact, Picture, Table

MOST_TOOLS = 10
"""In charts; the table has them all together as one more."""
MOST_COLUMNS = 40
LEAST_STEP_S = 60


@dataclass(frozen=True, slots=True)
class Traffic:
    """The conversations that began in a range of time, each with all of its calls: cutting one in two would
    count the half that suits. Times in seconds since the epoch."""

    talks: Sequence[Sequence[CallRecord]]
    effect: Effect
    scores: Mapping[str, float]
    since: float
    until: float

    @classmethod
    def of(
        cls,
        records: Sequence[CallRecord],
        turns: Sequence[TurnRecord],
        scores: Mapping[str, float],
        prices: Prices,
        now: float,
        since: float,
        until: float,
    ) -> Traffic:
        talks = [talk for talk in conversations(records).values() if since <= talk[0].created <= until]
        return cls(talks, effect_of(turns, scores, prices, now, since, until), scores, since, until)

    @property
    def calls(self) -> list[CallRecord]:
        return [record for talk in self.talks for record in talk]

    def by_tool(self) -> dict[str, list[CallRecord]]:
        """The calls of the most used tools, and of all others together."""
        calls = self.calls
        most = [tool for tool, _ in Counter(record.tool for record in calls).most_common(MOST_TOOLS)]
        found: dict[str, list[CallRecord]] = {tool: [] for tool in most}
        for record in calls:
            found.setdefault(record.tool if record.tool in most else OTHERS, []).append(record)
        return found


def document(
    traffic: Traffic, standings: Mapping[Key, Standing] | None, progress: Callable[[str], None]
) -> Document:
    """The report of at least one conversation; `standings` are those of the gates, None where not known."""
    compared = traffic.effect
    calls = traffic.calls
    return Document(
        title="What the governor did",
        about=f"{_day(traffic.since)} to {_day(traffic.until)}: {len(calls):,} tool calls in "
        f"{len(traffic.talks):,} conversations that proposed one.",
        headline=" ".join([_withheld(calls), compared.sentence(), *certificates(standings)[:1]]),
        facts=facts(traffic, compared),
        pictures=pictures(traffic, compared, progress),
        tables=[tools(traffic)],
        unknown=unknown(traffic, compared, standings),
        made=f"Made by governor report. Intervals are of 95%. Scores: {compared.method}.",
    )


def _withheld(calls: Sequence[CallRecord]) -> str:
    tally = Tally.of(calls)
    held, spared, many = tally.withheld, tally.spared, tally.calls
    if held:
        return f"The governor withheld {held:,} of {many:,} tool calls ({held / many:.1%})."
    return (
        f"The governor only observed: nothing was withheld, and it would have withheld {spared:,} of "
        f"{many:,} tool calls ({spared / many:.1%})."
    )


def certificates(standings: Mapping[Key, Standing] | None) -> list[str]:
    """Where each gate stands, in a sentence."""
    return [f"Gate of {told(key)}: {sentence(standing)}" for key, standing in (standings or {}).items()]


def facts(traffic: Traffic, compared: Effect) -> list[Fact]:
    calls = traffic.calls
    tally = Tally.of(calls)
    turns = {(r.conversation, *turn_place(r)): sum(r.usage.values()) for r in calls}
    found = [
        Fact(f"{tally.calls:,}", "calls proposed"),
        Fact(f"{tally.withheld:,}", "withheld"),
        Fact(f"{tally.spared:,}", "passed against the policy: observed, held out, explored"),
        Fact(f"{tally.pruned:,}", "results pruned"),
        Fact(f"{sum(turns.values()):,}", "tokens of the governor's own requests"),
    ]
    if tally.labelled:
        useless = tally.labels[Label.LOW_VALUE]
        said = "labelled calls whose result was of low value"
        found.append(Fact(f"{useless:,} of {tally.labelled:,}", said))
    for name, arm in (("governed", compared.governed), ("held out", compared.holdout)):
        if arm.score is not None:
            found.append(Fact(f"{arm.score.value:.1%}", f"mean score, {name} ({arm.scored:,} scored)"))
    return found


def pictures(traffic: Traffic, compared: Effect, progress: Callable[[str], None]) -> list[Picture]:
    tools = traffic.by_tool()
    progress("drawing the calls over time")
    times, columns = over_time(traffic.calls)
    drawn = [charts.over_time("time", "Calls over time", times, columns, "calls")]
    progress("drawing the tools")
    held = [withheld(found) for found in tools.values()]
    parts = {
        "passed": [len(found) - many for found, many in zip(tools.values(), held, strict=True)],
        "withheld": held,
    }
    drawn.append(charts.stacked("tools", "Calls by tool", list(tools), parts, "calls"))
    labelled = {tool: [record.label for record in found if record.label] for tool, found in tools.items()}
    labelled = {tool: labels for tool, labels in labelled.items() if labels}
    if labelled:
        progress("drawing the labels")
        worth = {
            label.value.replace("_", " "): [labels.count(label) for labels in labelled.values()]
            for label in Label
        }
        drawn.append(charts.stacked("worth", "What results were worth", list(labelled), worth, "calls"))
    changes = {
        name: (100 * change.value, 100 * change.low, 100 * change.high)
        for name, change in (
            ("score, points", compared.score),
            ("calls in 100 conversations", compared.calls),
            ("seconds in 100 conversations", compared.seconds),
        )
        if change is not None and change.low is not None and change.high is not None
    }
    if changes:
        progress("drawing the comparison")
        drawn.append(
            charts.intervals("holdout", "A governed conversation minus one held out", changes, "difference")
        )
    return drawn


def over_time(calls: Sequence[CallRecord]) -> tuple[list[str], dict[str, list[float]]]:
    """The first moments of columns of time, and the calls in each."""
    first, last = (end(record.created for record in calls) for end in (min, max))
    step = max(LEAST_STEP_S, step_of(first, last, MOST_COLUMNS))
    many = int((last - first) // step) + 1
    columns = {"passed": [0.0] * many, "withheld": [0.0] * many}
    for record in calls:
        columns["passed" if record.passed else "withheld"][int((record.created - first) // step)] += 1
    shape = "%d %b" if step >= 24 * 3600 else "%d %b %H:%M"
    return [datetime.fromtimestamp(first + step * place).strftime(shape) for place in range(many)], columns


def tools(traffic: Traffic) -> Table:
    rows = []
    for tool, found in traffic.by_tool().items():
        tally = Tally.of(found)
        rows.append(
            (
                tool,
                f"{tally.calls:,}",
                f"{tally.withheld:,}",
                f"{tally.spared:,}",
                f"{tally.changed:,} of {tally.labelled:,}" if tally.labelled else "-",
                f"{tally.pruned:,}",
            )
        )
    headings = ("tool", "calls", "withheld", "passed against the policy", "changed the answer", "pruned")
    return Table("By tool", headings, rows)


def unknown(traffic: Traffic, compared: Effect, standings: Mapping[Key, Standing] | None) -> list[str]:
    """What the figures do not say."""
    scored = sum(talk[0].conversation in traffic.scores for talk in traffic.talks)
    oldest = min(record.created for record in traffic.calls)
    lines = [
        f"The oldest record in this range is of {_day(oldest)}: the store keeps so many calls and so long "
        "(store.max_records, store.ttl_s), and what it forgot is not counted.",
        "Conversations without a tool call have no record, and are not counted.",
        "Governed and held-out conversations are compared by the turns that the store kept; decisions that "
        "were saved as JSON have none.",
        "A call was of low value where the model's forced answer was the same before its result and "
        "after it, and no surer. That is a sign and no proof, and only calls with both probes have it.",
        "What a withheld call would have cost is not in the records: what governing saved is the difference "
        "between the governed conversations and those held out.",
    ]
    if not scored:
        lines.append(
            "Nobody told how conversations ended (POST /governor/feedback): harm is not measured here."
        )
    elif scored < len(traffic.talks):
        lines.append(
            f"Of {len(traffic.talks):,} conversations {scored:,} have a score. Why the others have none is "
            "not known; where the arms differ in that, ask it first."
        )
    if compared.under_way:
        lines.append(
            f"{compared.under_way:,} conversations were under way, or began after one that was: they are not "
            "compared yet."
        )
    if not compared.holdout.conversations:
        lines.append("No conversation was held out (experiment.holdout): there is nothing to compare with.")
    if not standings:
        lines.append(
            "No gate is known, and so no certificate: another policy decided, or none is fitted yet."
        )
    lines += certificates(standings)[1:]
    return lines


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M %Z")
