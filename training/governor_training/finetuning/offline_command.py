"""`governor train offline`: fine-tunes from logs alone."""

from __future__ import annotations

from collections.abc import Sequence

from trl import ModelConfig

from governor_training.errors import UsageError
from governor_training.finetuning.arguments import Parser, RewardArguments, SpanArguments, ToolArguments
from governor_training.finetuning.offline import CONFIGS, Objective, OfflineArguments, train

ABOUT = """\
Fine-tunes a model from logs alone: LoRA adapters (--use_peft) or whole weights.

Objectives: awr (default) imitates each turn with a weight by what its conversation and its calls were worth;
dpo prefers what the governor's counterfactuals say was the better step; kto takes steps as good or bad.

All settings of TRL's SFTConfig (awr), DPOConfig (dpo) or KTOConfig (kto) and of ModelConfig work here, as
flags or in the YAML file of --config. --resume_from_checkpoint last goes on where a run was stopped.
"""

EXAMPLES = """\
examples:
  governor train offline --data records.db --model_name_or_path Qwen/Qwen3-0.6B --output_dir run
  governor train offline --config offline.yaml --learning_rate 1e-5
  accelerate launch -m governor_server.cli train offline --config offline.yaml
"""


def run(arguments: Sequence[str]) -> int:
    """Raises `UsageError`."""
    given = list(arguments)
    objective = _objective(given)
    parser = Parser(
        (OfflineArguments, RewardArguments, SpanArguments, ToolArguments, CONFIGS[objective], ModelConfig),
        prog="governor train offline",
        description=ABOUT,
        epilog=EXAMPLES,
    )
    found = parser.read(given)
    summary = train(*found)
    for name, value in summary.items():
        print(f"{name:24} {value:,.4g}" if isinstance(value, float) else f"{name:24} {value}")
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
