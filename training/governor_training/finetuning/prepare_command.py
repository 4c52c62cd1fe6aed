"""`governor train prepare`: from logs to rows that can be read, checked and trained on."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from governor.calls import ToolCatalog
from governor_training.errors import UsageError
from governor_training.finetuning import parsers
from governor_training.finetuning.hindsight import shortened
from governor_training.finetuning.logs import Writer, read
from governor_training.finetuning.trajectory import RowError, Trajectory, with_effects


def run(arguments: Sequence[str]) -> int:
    """Raises `UsageError`."""
    options = parsers.prepare().parse_args(arguments)
    rejected = options.out.with_name(f"{options.out.name}.rejected.jsonl")
    bad: list[str] = []
    counts: Counter[str] = Counter()
    with Writer(options.out) as out, Writer(rejected) as bin:

        def reject(error: RowError, row: object) -> None:
            bad.append(str(error))
            bin.put({"error": str(error), "row": row})

        found = read(options.logs, reject if options.skip_bad else None)
        for trajectory in told(tqdm(found, unit=" rows", disable=None), catalog_of(options), options.shorten):
            counts.update(_counted(trajectory))
            out.put(trajectory.as_row())
    if not bad:
        rejected.unlink()
    if not out.written:
        raise UsageError(f"{' '.join(map(str, options.logs))}: no conversation that can be used")
    print(_report(options.out, counts))
    if bad:
        print(f"{len(bad)} rows cannot be used and are in {rejected}; the first: {bad[0]}", file=sys.stderr)
    if counts["unknown effect"]:
        print(
            f"{counts['unknown effect']} calls are of tools of which nobody said whether they only read; they"
            " are never rewarded or left out: name them with --read-only",
            file=sys.stderr,
        )
    return 0


def told(found: Iterable[Trajectory], catalog: ToolCatalog, shorten: bool) -> Iterator[Trajectory]:
    """The trajectories with the effects of their calls, and with what hindsight makes of them."""
    for trajectory in found:
        known = with_effects(trajectory, catalog)
        yield known
        if shorten and (short := shortened(known)) is not None:
            yield short


def catalog_of(options: argparse.Namespace) -> ToolCatalog:
    return ToolCatalog(tuple(options.read_only), tuple(options.effectful))


def _counted(trajectory: Trajectory) -> Counter[str]:
    calls = trajectory.calls
    return Counter(
        {
            trajectory.kind: 1,
            "scored": trajectory.score is not None,
            "calls": len(calls),
            "withheld": sum(call.withheld for call in calls),
            "labelled": sum(call.label is not None for call in calls),
            "measured": sum(call.measured.reduction is not None for call in calls),
            "unknown effect": sum(call.read_only is None for call in calls),
        }
    )


def _report(out: Path, counts: Counter[str]) -> str:
    rows = counts["logged"] + counts["shortened"]
    parts = [f"{rows} conversations ({counts['scored']} with a score"]
    if counts["shortened"]:
        parts.append(f", {counts['shortened']} shortened")
    parts.append(
        f"), {counts['calls']} calls ({counts['withheld']} withheld, {counts['labelled']} labelled, "
    )
    parts.append(f"{counts['measured']} with an entropy before and after): {out}")
    return "".join(parts)
