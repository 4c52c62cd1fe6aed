"""The tables of docs/metrics.md, from the code and from the rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from governor.decision import BECAUSE, Reason
from governor.pruning import StubReason
from governor_server.metrics import LABELS, REFUSED, UPSTREAM_FAILURES, Metrics
from governor_server.ungoverned import ADVICE, Ungoverned
from scripts.pages import Page, table

ROOT = Path(__file__).parents[1]
RULES = ROOT / "monitoring" / "prometheus" / "rules.yaml"

SUFFIX = {"counter": "_total"}

REASONS = {
    "governor_tool_calls_total": [reason.value for reason in Reason],
    "governor_let_through_calls_total": ["those of a withheld call", "exploration", "notice_limit"],
    "governor_upstream_failures_total": [*UPSTREAM_FAILURES, "status_ and a number"],
    "governor_refused_requests_total": list(REFUSED),
    "governor_ungoverned_requests_total": [reason.value for reason in Ungoverned],
    "governor_probe_failures_total": [
        "timeout", "connect_timeout", "unreachable", "broken", "malformed", "empty", "call", "no_logprobs",
        "status_ and a number",
    ],
    "governor_refused_additions_total": [
        "error_body", "error_event", "empty", "unreadable", "encoded", "broken", "timeout",
        "status_ and a number",
    ],
    "governor_pruned_results_total": [reason.value for reason in StubReason],
}  # fmt: skip
"""What the label `reason` can be, for each metric that has it."""


def metrics() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Name as it is exported, type, help and labels of each metric, in the order of the code."""
    found = [
        each for each in vars(Metrics(CollectorRegistry())).values() if isinstance(each, MetricWrapperBase)
    ]
    for metric in found:
        (family,) = metric.describe()
        yield (
            family.name + SUFFIX.get(family.type, ""),
            family.type,
            family.documentation,
            tuple(metric._labelnames),
        )


def rules() -> list[dict[str, Any]]:
    """The recording rules, then the alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def tables() -> dict[str, str]:
    """The generated parts of the page, by the names of their markers."""
    return {
        "metrics": table(
            "metric | type | labels | what",
            (
                (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "-", text)
                for name, kind, text, labels in metrics()
            ),
        ),
        "labels": table("label | values", ((f"`{name}`", text) for name, text in LABELS.items())),
        "reasons": table(
            "metric | values of `reason`", ((f"`{name}`", ", ".join(all)) for name, all in REASONS.items())
        ),
        "because": table(
            "reason | the call passed or was withheld, because",
            ((f"`{reason.value}`", BECAUSE[reason]) for reason in Reason),
        ),
        "ungoverned": table(
            "reason | the request passed ungoverned:",
            ((f"`{reason.value}`", ADVICE[reason]) for reason in Ungoverned),
        ),
        "recorded": table(
            "series | expression",
            (
                (f"`{rule['record']}`", f"`{' '.join(rule['expr'].split())}`")
                for rule in rules()
                if "record" in rule
            ),
        ),
        "alerts": "\n\n".join(_alert(rule) for rule in rules() if "alert" in rule),
    }


def _alert(rule: dict[str, Any]) -> str:
    notes = rule["annotations"]
    held = f", for {rule['for']}" if "for" in rule else ""
    return (
        f"### {rule['alert']}\n{rule['labels']['severity'].capitalize()}{held}: "
        f"`{' '.join(rule['expr'].split())}`\n\n{notes['description']}\n\n**What to do.** {notes['runbook']}"
    )


PAGE = Page("metrics.md", tables)
