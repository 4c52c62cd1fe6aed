"""`governor replay`: what policies would have done on the traffic of a log."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from governor.calls import ToolEffect
from governor.conversations import conversations, observed
from governor.hindsight import Summary, evidence, judged
from governor.policies import Evidence, Policy, PolicyError
from governor.records import CallRecord
from governor_server import policies
from governor_server.errors import SettingsError
from governor_server.log_commands import Candidate
from governor_server.recorded import Log

LEVEL = 0.05
"""The bound on the harm is too low with this probability."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A log's conversations, each with its calls and the evidence on them."""

    conversations: Sequence[tuple[Sequence[CallRecord], Sequence[Evidence]]]

    @classmethod
    def of(cls, records: Iterable[CallRecord]) -> Recorded:
        return cls([(calls, evidence(calls)) for calls in conversations(records).values()])

    def observed(self) -> Recorded:
        """Those in which nothing was withheld."""
        return Recorded([pair for pair in self.conversations if observed(pair[0])])

    def under(self, policy: Policy, level: float = LEVEL) -> Summary:
        """What `policy` would have done."""
        found = [judged(calls, policy, known) for calls, known in self.conversations]
        return Summary.of(found, level)


def run(arguments: argparse.Namespace) -> str:
    """The report, as text or JSON. Raises `ServerError`."""
    candidates = arguments.candidates or [
        Candidate(name, {}) for name in policies.table() if name != "calibrated"
    ]
    chosen = [(candidate, made(candidate)) for candidate in candidates]
    log = Log.read(arguments.log)
    recorded = Recorded.of(log.records)
    found = [(str(candidate), recorded.under(policy)) for candidate, policy in chosen]
    if arguments.json:
        return json.dumps(_as_json(log, candidates, found), indent=2)
    rows = [columns(label, summary) for label, summary in found]
    sentences = [sentence(label, summary) for label, summary in found]
    return "\n".join([*table(HEADINGS, rows), "", *sentences, *notes(log)])


def made(candidate: Candidate) -> Policy:
    """The policy. Raises `SettingsError`."""
    try:
        return policies.policy(candidate.name, candidate.parameters)
    except PolicyError as error:
        raise SettingsError(error.detail) from None


HEADINGS = ("policy", "withheld", "of calls", "first", "harmful", "at most", "calls saved")


def columns(label: str, summary: Summary) -> tuple[str, ...]:
    """A row of the table."""
    return (
        label,
        f"{summary.withheld:,}",
        f"{summary.governable:,}",
        f"{summary.crossings:,}",
        f"{summary.harmful:,} of {summary.labelled:,}",
        "-" if summary.bound is None else f"{summary.bound:.1%}",
        f"{summary.saved_least:,} to {summary.saved_most:,}",
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Lines with the columns under each other, those at the places `left` to the left, figures to the
    right."""
    widths = [max(len(row[place]) for row in (headings, *rows)) for place in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]


def sentence(label: str, summary: Summary) -> str:
    """What it means, in words."""
    if not summary.crossings:
        unknown = f"; of {summary.unknown:,} calls it is not known" if summary.unknown else ""
        told = f"nothing would have been withheld in {summary.conversations:,} conversations"
        return f"{label}: {told}{unknown}."
    share = f"{summary.saved_least / summary.calls:.1%} to {summary.saved_most / summary.calls:.1%}"
    text = (
        f"{label}: in {summary.crossings:,} of {summary.conversations:,} conversations a call would have "
        f"been withheld, which saves {share} of all calls"
    )
    if summary.bound is None:
        return f"{text}; too few of them have a label to say with what harm."
    return (
        f"{text}; of the first ones {summary.harmful:,} of {summary.labelled:,} changed the answer "
        f"(at most {summary.bound:.1%} do, with {1 - LEVEL:.0%} confidence)."
    )


def notes(log: Log) -> list[str]:
    """What the log lacks, and why; one line each."""
    found = []
    records = log.records
    if log.unreadable:
        found.append(f"{log.unreadable:,} rows are no records of calls, and were left out.")
    if not any(record.effect == ToolEffect.READ_ONLY for record in records):
        found.append(NOTHING_READ_ONLY)
    if not any(record.probe_before for record in records):
        found.append(NO_PROBES)
    elif not any(record.label for record in records):
        found.append(NO_SECOND_PROBES)
    if not any(observed(calls) for calls in conversations(records).values()):
        found.append(ALL_GOVERNED)
    return found


NOTHING_READ_ONLY = (
    "No call is of a read-only tool, and others always pass: say which are with --read-only of governor "
    "serve, or in tools.read_only."
)
NO_PROBES = (
    "Labels are missing since no call has a probe: observe.probe was off, or upstream sent no logprobs. What "
    "policies with a probe would have done is not known either."
)
NO_SECOND_PROBES = (
    "Labels are missing since no answer was forced after a result: the settings in `experiment` say which "
    "conversations get one."
)
ALL_GOVERNED = (
    "All conversations were governed. What withholding would have cost is read from those that were only "
    "observed: experiment.holdout keeps some."
)


def _as_json(
    log: Log, candidates: Sequence[Candidate], found: Sequence[tuple[str, Summary]]
) -> dict[str, Any]:
    return {
        "log": str(log.path),
        "records": len(log.records),
        "unreadable": log.unreadable,
        "confidence": 1 - LEVEL,
        "notes": notes(log),
        "policies": [
            {
                "policy": candidate.name,
                "parameters": dict(candidate.parameters),
                **summary.as_dict(),
                "says": sentence(label, summary),
            }
            for candidate, (label, summary) in zip(candidates, found, strict=True)
        ],
    }
