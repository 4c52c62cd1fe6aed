"""`governor train diagnose`: does entropy say anything of your calls?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from governor.calls import ToolCatalog
from governor.conversations import in_order
from governor.rewards import RewardSettings
from governor_training.errors import UsageError
from governor_training.evaluation.statistics import Interval
from governor_training.finetuning import logs, parsers
from governor_training.finetuning.diagnosis import (
    ALL_TOOLS,
    CHOICES,
    Case,
    Diagnosis,
    case_of_row,
    cases_of,
)
from governor_training.finetuning.prepare_command import catalog_of
from governor_training.finetuning.trajectory import LoggedCall, Trajectory, with_effects

LABELS = "whether the forced answer changed"
VALUES = "the true value by replay"


def run(arguments: Sequence[str]) -> int:
    """Raises `UsageError`."""
    options = parsers.diagnose().parse_args(arguments)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    settings = RewardSettings(dead_zone=options.dead_zone)
    valued: list[Case] = []
    labelled: list[Case] = []
    for case, true_value in _cases(options, settings):
        (valued if true_value else labelled).append(case)
        if len(valued) + len(labelled) >= options.most:
            console.print(f"The first {options.most:,} calls are looked at (--most).")
            break
    cases, truth = (valued, VALUES) if valued else (labelled, LABELS)
    if not cases:
        raise UsageError(
            "the log holds no call of which anybody knows whether it was useful: let the governor label calls"
            " (experiment.labels, observe.probe), or say which tools only read (--read-only)"
        )
    diagnosis = Diagnosis.of(cases, truth, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "diagnosis.json"
    path.write_text(json.dumps(diagnosis.as_dict(), indent=2) + "\n", "utf-8")
    if not options.no_plots:
        from governor_training.finetuning.pictures import draw

        draw(diagnosis, cases, options.out)
    console.print(table(diagnosis))
    console.print(
        f"Recommended reward: {diagnosis.recommendation}. {diagnosis.why[0].upper()}{diagnosis.why[1:]}."
    )
    console.print(f"Usefulness is {truth}. All figures: {path}")
    return 0


def table(diagnosis: Diagnosis) -> Table:
    """Each measure, for all tools and for each."""
    found = Table(
        "measure", "tool", "calls", "useful", "AUROC", "rank correlation", "informative: useful, useless"
    )
    for signal in diagnosis.signals:
        told = "" if signal.told is None else f"{signal.told[0]:.0%}, {signal.told[1]:.0%}"
        found.add_row(
            signal.measure,
            "all tools" if signal.tool == ALL_TOOLS else signal.tool,
            f"{signal.calls:,}",
            f"{signal.useful:,}",
            _interval(signal.auroc),
            _interval(signal.correlation),
            told,
        )
    return found


def _interval(value: Interval | None) -> str:
    if value is None:
        return "-"
    ends = "" if value.low is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.value:.2f}{ends}"


def _cases(options: argparse.Namespace, settings: RewardSettings) -> Iterator[tuple[Case, bool]]:
    """Each case, and whether its true value is known."""
    catalog = catalog_of(options)
    exact = Exact(options.model) if options.model else None
    for path in options.logs:
        for found in _of_file(path, catalog, exact):
            if isinstance(found, Case):
                yield found, True
                continue
            turns = exact.turns(found) if exact and found.messages else {}
            yield from ((case, False) for case in cases_of(found, turns, settings))


def _of_file(path: Path, catalog: ToolCatalog, exact: Exact | None) -> Iterator[Case | Trajectory]:
    if exact is None and _is_store(path):
        yield from _numbers(path)
        return
    for row, where in logs.rows(path):
        if isinstance(row, Mapping) and "avoidable" in row:
            try:
                yield case_of_row(row)
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"{where}: no call of `governor eval`: {error!r}") from None
        else:
            told = row if isinstance(row, Trajectory) else Trajectory.from_row(row, where)
            if told.kind == "logged":
                yield with_effects(told, catalog)


def _is_store(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(logs.SQLITE)) == logs.SQLITE
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _numbers(path: Path) -> Iterator[Trajectory]:
    """The calls of a store's conversations, without what was said."""
    for name, found in groupby(logs.recorded(path), key=lambda pair: pair[0].conversation):
        records = in_order(record for record, _ in found)
        calls = [LoggedCall.of_record(record, record.step) for record in records]
        yield Trajectory(name, [], calls=calls)


class Exact:
    """Entropies of turns from the whole distribution, under every choice of tokens."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl.trainer.utils import add_fused_lm_head

        from governor_training.finetuning.segments import Encoder
        from governor_training.pretrained import check_model

        check_model(model)
        self._encoder = Encoder(AutoTokenizer.from_pretrained(model))
        self._model = AutoModelForCausalLM.from_pretrained(model).eval()
        add_fused_lm_head(self._model, outputs=("log_probs", "entropy"))

    def turns(self, trajectory: Trajectory) -> Mapping[str, Mapping[int, float | None]]:
        """The entropy of each turn, by choice."""
        from governor_training.finetuning.segments import exact_entropies

        results = [one.get("content") or "" for one in trajectory.messages if one["role"] == "tool"]
        sequences = self._encoder.encode(trajectory)
        entropies = exact_entropies(self._model, sequences, self._encoder.tokenizer.pad_token_id or 0)
        found: dict[str, dict[int, float | None]] = {name: {} for name in CHOICES}
        for sequence, values in zip(sequences, entropies, strict=True):
            for turn, part in self._encoder.parts(sequence).items():
                for name, choice in CHOICES.items():
                    found[name][turn] = part.entropy(values, choice, results)
        return found
