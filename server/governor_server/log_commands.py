"""What `governor replay` and `governor tune` take. What they do is imported when one of them is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPLAY_EXAMPLES = """\
examples:
  governor replay records.db                             every policy, each with its defaults
  governor replay records.db --policy threshold --set margin=0.8
  governor replay records.db --policy cap --set calls=3 --policy cap --set calls=5
  governor replay records.db --policy calibrated --set gate=gates.json
  curl -s 'localhost:8000/governor/decisions?limit=10000' > today.json && governor replay today.json

LOG is the file of the record store (store.path of the settings, also while the proxy runs), JSON Lines of
records, or what GET /governor/decisions answered. --set belongs to the --policy before it.

Of each conversation the first call that would have been withheld counts: behind it, the conversation would
have gone another way. `harmful` are those of them that changed the model's answer, of those with a label;
the bound holds with 95% confidence. Calls saved lie between the first withheld call alone and all that came
behind it.
"""

TUNE_EXAMPLES = """\
examples:
  governor tune records.db                               the best policy that does harm in at most 2 of 100
  governor tune records.db --max-harm 0.01 --out governor-tuned.yaml
  governor serve --config governor-tuned.yaml --upstream http://gpu-box:8000

Let the proxy observe your traffic first (mode: observe, with probes), a few hundred conversations at least.
Every policy is tried from its most careful setting on, and the most aggressive one counts of which the log
shows that at most --max-harm of the first withheld calls changed the model's answer. All that it prints
holds together with the stated confidence: the more policies are tried, the more each must show.

With --out the settings are written as YAML, and next to it the gate if the recommended policy has one.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to replay, by name and parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.parameters.items())])


class AddPolicy(argparse.Action):
    """`--policy NAME` begins a candidate."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        namespace.candidates = [*(namespace.candidates or ()), Candidate(value)]


class SetParameter(argparse.Action):
    """`--set key=value` is about the last candidate; the value is YAML, so that numbers are numbers."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        import yaml

        key, separator, text = value.partition("=")
        if not separator or not key:
            parser.error(f"--set {value}: write it as key=value")
        if not namespace.candidates:
            parser.error(f"--set {value}: it belongs to a --policy before it, and there is none")
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError:
            parser.error(f"--set {value}: {text!r} is no value")
        *before, last = namespace.candidates
        namespace.candidates = [*before, Candidate(last.name, {**last.parameters, key: parsed})]


def add(subparsers: Any) -> None:
    """Both commands."""
    replay = subparsers.add_parser(
        "replay",
        help="show what policies would have done on the traffic of a log",
        epilog=REPLAY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("log", metavar="LOG", type=Path, help="records: SQLite, JSON Lines or JSON")
    replay.add_argument(
        "--policy",
        metavar="NAME",
        action=AddPolicy,
        dest="candidates",
        help="a policy to replay; repeatable (all that need no gate)",
    )
    replay.add_argument(
        "--set", metavar="KEY=VALUE", action=SetParameter, help="a parameter of that policy; repeatable"
    )
    replay.add_argument("--json", action="store_true", help="print JSON instead of text")
    replay.set_defaults(run=_replay)

    tune = subparsers.add_parser(
        "tune",
        help="find the policy that saves the most calls on a log and provably does little harm",
        epilog=TUNE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument("log", metavar="LOG", type=Path, help="records, as for `governor replay`")
    tune.add_argument(
        "--max-harm",
        metavar="SHARE",
        type=share,
        default=0.02,
        help="greatest share of first withheld calls that may change the answer (0.02)",
    )
    tune.add_argument(
        "--confidence", metavar="SHARE", type=share, default=0.95, help="of all that is said (0.95)"
    )
    tune.add_argument("--out", metavar="FILE", type=Path, help="write the recommended settings as YAML")
    tune.add_argument(
        "--config", metavar="FILE", type=Path, help="YAML file with the rules, as for `governor serve`"
    )
    tune.add_argument("--json", action="store_true", help="print JSON instead of text")
    tune.set_defaults(run=_tune)


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _replay(arguments: argparse.Namespace) -> int:
    from governor_server import replay

    sys.stdout.write(replay.run(arguments) + "\n")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    from governor_server import tune

    sys.stdout.write(tune.run(arguments) + "\n")
    return 0
