"""`governor tune`: the policy that saves the most calls on a log and provably does little harm.

Each policy is tried from its most careful setting on, on conversations that were only observed, and the first
setting that does not pass ends its sequence (`governor.certificate.last_safe`). The error budget is split
evenly over the policies (Bonferroni), so that the best of them may be chosen afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import orjson
import yaml

from governor.certificate import UNLABELLED, crossings_needed, last_safe
from governor.hindsight import Summary
from governor.policies import (
    CalibratedPolicy,
    Evidence,
    Judgement,
    ObservePolicy,
    Policy,
    PolicyError,
    PolicyKind,
)
from governor.rules import RuleSettings
from governor.standing import Standing, kept
from governor_server import extras, policies
from governor_server.errors import SettingsError
from governor_server.recorded import Log, LogError
from governor_server.replay import Recorded, notes, table
from governor_server.settings import GovernanceSettings, Settings

HEADER = "# Written by `governor tune`"
NO_SKLEARN = f"not fitted: {extras.how_to_install('calibration')}"
CALIBRATED = "calibrated"
HEADINGS = ("policy", "setting", "first withheld", "harmful", "at most", "calls saved", "verdict")
MOST_CONVERSATIONS = 1_000_000
"""Where more than so many would be needed, more of the same will not do."""


@dataclass(frozen=True, slots=True)
class Aim:
    """At most `max_harm` of the first withheld calls change the answer, shown at `level` for each policy."""

    max_harm: float
    level: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy at the setting that was certified, or at the one that was not. `more`: about how many more
    labelled conversations would do, None if their number is not what is missing."""

    name: str
    setting: str
    parameters: Mapping[str, Any]
    summary: Summary | None
    certified: bool
    verdict: str
    more: int | None = None

    def row(self) -> tuple[str, ...]:
        """For the table."""
        found = self.summary
        if found is None:
            return (self.name, self.setting, "-", "-", "-", "-", self.verdict)
        return (
            self.name,
            self.setting,
            f"{found.crossings:,}",
            f"{found.harmful:,} of {found.labelled:,}",
            "-" if found.bound is None else f"{found.bound:.2%}",
            f"{found.saved_least:,} to {found.saved_most:,}",
            self.verdict,
        )


@dataclass(frozen=True, slots=True)
class ByModel:
    """A gate for each model."""

    policies: Mapping[str, Policy]
    name: str = CALIBRATED

    def judge(self, evidence: Evidence) -> Judgement:
        return self.policies.get(evidence.model, ObservePolicy()).judge(evidence)


def run(arguments: argparse.Namespace) -> str:
    """The report, as text or JSON; writes the files that were asked for. Raises `ServerError`."""
    _check_out(arguments.out)
    settings = Settings.load(arguments.config)
    log = Log.read(arguments.log)
    recorded = Recorded.of(log.records).observed()
    kinds = [kind for kind in policies.table().values() if kind.sweep or kind.name == "rules"]
    models = sorted({record.model for record in log.records if record.model})
    aim = Aim(arguments.max_harm, (1 - arguments.confidence) / (len(kinds) + max(len(models), 1)))
    tried = [tuned(kind, recorded, aim, own_parameters(kind.name, settings.governance)) for kind in kinds]
    standings, gate = calibrated(recorded, aim, models, settings.governance.rules())
    tried.append(gate)
    best = recommended(tried)
    says = _says(best, tried, recorded, arguments)
    snippet = _snippet(best, arguments, says)
    if arguments.out is not None:
        _write(arguments.out, snippet, standings if best and best.name == CALIBRATED else None)
    if arguments.json:
        return json.dumps(_as_json(log, recorded, tried, best, says, snippet), indent=2)
    written = f"Written to {arguments.out}." if arguments.out is not None else snippet
    lines = table(HEADINGS, [entry.row() for entry in tried], left=(0, 1, 6))
    return "\n".join([*lines, "", says, *notes(log), "", written.rstrip()])


@dataclass
class Trials:
    """A policy's settings on observed conversations, from careful to aggressive, each tried when it is first
    asked for; `own` are the parameters that are not tried. The bounds are at `level`."""

    kind: PolicyKind
    recorded: Recorded
    own: Mapping[str, Any]
    level: float

    def __post_init__(self) -> None:
        sweep, own = self.kind.sweep, self.own
        self.settings = [{**own, sweep.parameter: value} for value in sweep.values] if sweep else [dict(own)]
        self._found: list[Summary] = []

    def __iter__(self) -> Iterator[Summary]:
        """Raises `PolicyError`."""
        for place, setting in enumerate(self.settings):
            if place == len(self._found):
                self._found.append(self.recorded.under(self.kind.make(**setting), self.level))
            yield self._found[place]


def tuned(kind: PolicyKind, recorded: Recorded, aim: Aim, own: Mapping[str, Any]) -> Tuned:
    """The most aggressive setting of a policy that is certified on observed conversations; `own` are the
    parameters that are not tried."""
    return chosen(Trials(kind, recorded, own, aim.level), aim)


def chosen(tried: Trials, aim: Aim) -> Tuned:
    """The most aggressive one of these settings that is certified; `aim` has the level of the trials."""
    kind, trials, sweep = tried.kind, tried.settings, tried.kind.sweep
    found: list[Summary] = []
    try:
        for summary in tried:
            found.append(summary)
            if _enough(found[-1], aim) and not _passes(found[-1], aim):
                break
    except PolicyError as error:
        return Tuned(kind.name, "-", {}, None, False, error.detail)
    safe = last_safe([_counted(summary) for summary in found], aim.max_harm, aim.level)
    # Where labels are missing at one setting, more conversations of the same kind help at none.
    unlabelled = _enough(found[-1], aim) and _hides(found[-1])
    missing = [None if unlabelled else _more(each, aim) for each in found]
    place = safe if safe is not None else _nearest(missing)
    summary = found[place]
    setting = f"{sweep.parameter}={trials[place][sweep.parameter]:g}" if sweep else "-"
    if safe is not None:
        return Tuned(kind.name, setting, trials[place], summary, True, "certified")
    return Tuned(kind.name, setting, trials[place], summary, False, _verdict(summary, aim), missing[place])


def _nearest(missing: Sequence[int | None]) -> int:
    """The setting that needs the fewest more conversations, of equals the most aggressive one: the one that
    is meant where it is said how many those are. Where more of the same would help none, the last that was
    tried."""
    places = [place for place, more in enumerate(missing) if more is not None]
    return min(places, key=lambda place: (missing[place], -place)) if places else len(missing) - 1


def _verdict(summary: Summary, aim: Aim) -> str:
    """Why a setting is not certified."""
    needed = crossings_needed(aim.max_harm, aim.level)
    if not _enough(summary, aim):
        return f"too few: {needed} with a label are needed"
    return "too few labels" if _hides(summary) else "too harmful"


def calibrated(
    recorded: Recorded, aim: Aim, models: Sequence[str], rules: RuleSettings
) -> tuple[dict[str, Standing], Tuned]:
    """The gate of each model, fitted on the log."""
    if extras.missing("calibration"):
        return {}, Tuned(CALIBRATED, "-", {}, None, False, NO_SKLEARN)
    from governor_calibration.renewal import renew

    records = [record for calls, _ in recorded.conversations for record in calls]
    now = time.time()
    standings = {
        model: renew(
            records,
            Standing(),
            model=model,
            max_harm=aim.max_harm,
            # A first attempt spends half of what it is given; there will be no other on this log.
            confidence=1 - 2 * aim.level,
            now=now,
            settings=rules,
        )
        for model in models
    }
    gates = {model: standing.gate for model, standing in standings.items() if standing.gate is not None}
    certified = {model: gate for model, gate in gates.items() if gate.certificate is not None}
    if not certified:
        told = next((gate.refusal for gate in gates.values()), "too few labelled conversations")
        return {}, Tuned(CALIBRATED, "-", {}, None, False, told.rstrip("."))
    policy = ByModel({model: CalibratedPolicy(gate, rules) for model, gate in certified.items()})
    summary = recorded.under(policy, aim.level)
    bound = max(gate.certificate.bound for gate in certified.values() if gate.certificate)
    setting = f"max_harm={aim.max_harm:g}"
    verdict = f"certified on held-out conversations: at most {bound:.2%}"
    return standings, Tuned(CALIBRATED, setting, {}, summary, True, verdict)


def recommended(tried: Iterable[Tuned]) -> Tuned | None:
    """Of the certified ones that would have withheld anything the one that saves the most calls for sure."""
    certified = [entry for entry in tried if entry.certified and entry.summary]
    return max(certified, key=_saving, default=None)


def own_parameters(name: str, governance: GovernanceSettings) -> dict[str, Any]:
    """The parameters that the settings give a policy before any are tried."""
    rules = {"failing_attempts": governance.failing_attempts, **governance.budgets.model_dump()}
    own = {"rules": rules, "threshold": rules | {"entropy": governance.thresholds.entropy}}
    return own.get(name, {})


def _saving(entry: Tuned) -> tuple[int, int]:
    return (entry.summary.saved_least, entry.summary.saved_most) if entry.summary else (0, 0)


def _distance(entry: Tuned) -> tuple[int, int]:
    """How far an entry is from being certified; of equals the one that would save more is nearer."""
    return entry.more or 0, -_saving(entry)[0]


def _hides(summary: Summary) -> bool:
    """Whether so many crossings lack a label that they could hide any harm."""
    return summary.unlabelled > UNLABELLED * (summary.labelled + summary.unlabelled)


def _enough(summary: Summary, aim: Aim) -> bool:
    """Whether the labels could show it, were none harmful."""
    return summary.labelled >= crossings_needed(aim.max_harm, aim.level)


def _passes(summary: Summary, aim: Aim) -> bool:
    return last_safe([_counted(summary)], aim.max_harm, aim.level) is not None


def _counted(summary: Summary) -> tuple[int, int]:
    return (summary.labelled, summary.labelled) if _hides(summary) else (summary.harmful, summary.labelled)


def _more(summary: Summary, aim: Aim) -> int | None:
    """How many more conversations would do, were they like those of the log."""
    if not summary.labelled or _hides(summary):
        return None
    rate = summary.harmful / summary.labelled
    each = summary.labelled / summary.observed
    crossings = summary.labelled
    while crossings <= MOST_CONVERSATIONS:
        needed = crossings_needed(aim.max_harm, aim.level, ceil(rate * crossings))
        if needed <= crossings:
            return max(1, ceil((crossings - summary.labelled) / each))
        crossings = needed
    return None


def _says(
    best: Tuned | None, tried: Sequence[Tuned], recorded: Recorded, arguments: argparse.Namespace
) -> str:
    count = len(recorded.conversations)
    if best is not None and best.summary is not None:
        setting = "" if best.setting == "-" else f" with {best.setting}"
        return (
            f"Recommended: {best.name}{setting}. In {count:,} observed conversations it would have saved "
            f"{best.summary.saved_least:,} to {best.summary.saved_most:,} of {best.summary.calls:,} calls, "
            f"and at most {arguments.max_harm:.2%} of the first withheld calls change the answer, with "
            f"{arguments.confidence:.0%} confidence."
        )
    text = f"Recommended: observe. No policy is certified to do harm in at most {arguments.max_harm:.2%}"
    nearest = min((entry for entry in tried if entry.more), key=_distance, default=None)
    if not any(entry.summary and entry.summary.labelled for entry in tried):
        return f"{text}: no call that one would have withheld has a label."
    if nearest is None:
        return f"{text}, and more conversations like these {count:,} would not change that."
    return (
        f"{text} on {count:,} observed conversations. About {nearest.more:,} more labelled ones are needed "
        f"for {nearest.name}{'' if nearest.setting == '-' else f' with {nearest.setting}'}, if they are like "
        "these."
    )


def _snippet(best: Tuned | None, arguments: argparse.Namespace, says: str) -> str:
    settings: dict[str, Any] = {"governance": {"mode": "observe"}}
    if best is not None:
        settings = {"governance": {"policy": best.name}}
        if best.parameters:
            settings["governance"]["parameters"] = dict(best.parameters)
    if best is not None and best.name == CALIBRATED:
        settings["calibration"] = {"max_harm": arguments.max_harm, "confidence": arguments.confidence}
        if arguments.out is not None:
            settings["calibration"]["path"] = str(gates_path(arguments.out).absolute())
    enforce = "" if best is None else "# It acts once governance.mode is enforce.\n"
    text: str = yaml.safe_dump(settings, sort_keys=False)
    return f"{HEADER} from {arguments.log}.\n# {says}\n{enforce}{text}"


def gates_path(out: Path) -> Path:
    """Where the gates go that belong to the settings in `out`."""
    return out.with_suffix(".gates.json")


def _check_out(out: Path | None) -> None:
    """Only what this command wrote is written over."""
    if out is None or not out.exists():
        return
    try:
        ours = out.read_text(encoding="utf-8").startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise SettingsError(f"{out} exists and was not written by this command: give --out another name")


def _write(out: Path, snippet: str, standings: Mapping[str, Standing] | None) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if standings is not None:
            of_all = {("", model): standing for model, standing in standings.items()}
            gates_path(out).write_bytes(orjson.dumps(kept(of_all)))
        out.write_text(snippet, encoding="utf-8")
    except OSError as error:
        raise LogError(f"cannot write {out}: {error.strerror or error}") from None


def _as_json(
    log: Log,
    recorded: Recorded,
    tried: Sequence[Tuned],
    best: Tuned | None,
    says: str,
    snippet: str,
) -> dict[str, Any]:
    return {
        "log": str(log.path),
        "records": len(log.records),
        "observed_conversations": len(recorded.conversations),
        "notes": notes(log),
        "policies": [
            {
                "policy": entry.name,
                "parameters": dict(entry.parameters),
                "certified": entry.certified,
                "verdict": entry.verdict,
                "more_conversations": entry.more,
                "summary": None if entry.summary is None else entry.summary.as_dict(),
            }
            for entry in tried
        ],
        "recommended": "observe" if best is None else best.name,
        "says": says,
        "settings": yaml.safe_load(snippet),
    }
