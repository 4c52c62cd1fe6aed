"""Write the tables of docs/metrics.md from the code and from the rules; a test compares them.

python scripts/metrics_reference.py            # writes
python scripts/metrics_reference.py --check    # exits 1 if the file says something else
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from governor.decision import Reason
from governor.pruning import StubReason
from governor_server.metrics import LABELS, REFUSED, UPSTREAM_FAILURES, Metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
RULES = ROOT / "monitoring" / "prometheus" / "rules.yaml"

SUFFIX = {"counter": "_total"}

REASONS = {
    "governor_tool_calls_total": [reason.value for reason in Reason],
    "governor_let_through_calls_total": ["those of a withheld call", "exploration", "notice_limit"],
    "governor_upstream_failures_total": [*UPSTREAM_FAILURES, "status_ and a number"],
    "governor_refused_requests_total": list(REFUSED),
    "governor_probe_failures_total": [
        "timeout", "connect_timeout", "unreachable", "broken", "malformed", "empty", "call", "no_logprobs",
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
        "metrics": _table(
            "metric | type | labels | what",
            (
                (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "-", text)
                for name, kind, text, labels in metrics()
            ),
        ),
        "labels": _table("label | values", ((f"`{name}`", text) for name, text in LABELS.items())),
        "reasons": _table(
            "metric | values of `reason`", ((f"`{name}`", ", ".join(all)) for name, all in REASONS.items())
        ),
        "recorded": _table(
            "series | expression",
            (
                (f"`{rule['record']}`", f"`{' '.join(rule['expr'].split())}`")
                for rule in rules()
                if "record" in rule
            ),
        ),
        "alerts": "\n\n".join(_alert(rule) for rule in rules() if "alert" in rule),
    }


def written(page: str) -> str:
    """`page` with its generated parts made anew."""
    for name, text in tables().items():
        block = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
        # A backslash in the text is one.
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        page, count = re.subn(pattern, block.replace("\\", r"\\"), page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(
                f"docs/metrics.md needs the marker <!-- {name} --> once, and has it {count} times"
            )
    return page


def _table(head: str, rows: Iterator[tuple[str, ...]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _alert(rule: dict[str, Any]) -> str:
    notes = rule["annotations"]
    held = f", for {rule['for']}" if "for" in rule else ""
    return (
        f"### {rule['alert']}\n{rule['labels']['severity'].capitalize()}{held}: "
        f"`{' '.join(rule['expr'].split())}`\n\n{notes['description']}\n\n**What to do.** {notes['runbook']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if something would change"
    )
    check = parser.parse_args().check
    page = PAGE.read_text("utf-8")
    fresh = written(page)
    if fresh == page:
        return 0
    if check:
        print(
            "docs/metrics.md is not what the code says: run python scripts/metrics_reference.py",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
