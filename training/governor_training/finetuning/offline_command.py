"""`governor train offline`: fine-tunes from logs alone."""

from __future__ import annotations

from collections.abc import Sequence

from trl import ModelConfig

from governor_training.errors import UsageError
from governor_training.finetuning.arguments import Parser, RewardArguments, SpanArguments, ToolArguments
from governor_training.finetuning.offline import CONFIGS, Objective, OfflineArguments, train
from governor_training.finetuning.parsers import OFFLINE_ABOUT, OFFLINE_EXAMPLES


def run(arguments: Sequence[str]) -> int:
    """Raises `UsageError`."""
    given = list(arguments)
    objective = _objective(given)
    parser = Parser(
        (OfflineArguments, RewardArguments, SpanArguments, ToolArguments, CONFIGS[objective], ModelConfig),
        prog="governor train offline",
        description=OFFLINE_ABOUT,
        epilog=OFFLINE_EXAMPLES,
    )
    found = parser.read(given)
    summary = train(*found)
    for name, value in summary.items():
        print(f"{name:24} {value:,.4g}" if isinstance(value, float) else f"{name:24} {value}")
    training = found[4]
    print(f"Model: {training.output_dir}")
    return 0


def _objective(arguments: list[str]) -> Objective:
    """The objective, which says whose settings there are, from the flag or the file."""
    peek = Parser((OfflineArguments,), prog="governor train offline", add_help=False)
    try:
        found = peek.parse_args_and_config(
            args=list(arguments), return_remaining_strings=True, fail_with_unknown_args=False
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{error} (see governor train offline --help)") from None
    return Objective(found[0].objective)
