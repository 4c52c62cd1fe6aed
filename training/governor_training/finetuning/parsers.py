"""The arguments of the commands `governor train ...`. Nothing heavy is imported here: help is quick, and
works where the libraries that the commands run on are not installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from governor.labels import DEAD_ZONE
from governor_training.errors import UsageError
from governor_training.finetuning.study.plan import WORLDS, Plan


class CommandParser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


COLLECT_EXAMPLES = """\
examples:
  governor train collect --out logs.jsonl                        the bundled atlas, 1000 training tasks
  governor train collect --policy threshold --out governed.jsonl    with calls withheld
  governor train collect --upstream http://gpu-box:8000 --environment my_package.tasks:make --out logs.jsonl
  governor train collect --upstream URL --dataset questions.jsonl --tools my_tools.py --out logs.jsonl

Without --upstream the model runs in this process. Without --policy nothing is withheld, and every call is
labelled by a pair of forced answers.
"""


def collect() -> CommandParser:
    """`governor train collect`."""
    parser = CommandParser(
        prog="governor train collect",
        description="Plays an environment through a governor in this process, and logs it.",
        epilog=COLLECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON Lines or parquet")
    parser.add_argument("--environment", default="atlas", metavar="NAME", help="or files, or module:factory")
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="questions and answers instead")
    parser.add_argument("--tools", metavar="MODULE", help="the module with the data set's tools")
    parser.add_argument("--scorer", default="contains", help="of the data set's answers (contains)")
    parser.add_argument(
        "--right",
        type=float,
        metavar="SCORE",
        help="the score from which an answer is right (1; with f1: 0.5)",
    )
    parser.add_argument("--upstream", metavar="URL", help="a server to ask (a model in this process)")
    parser.add_argument("--model", metavar="NAME", help="served name with --upstream, else a folder")
    parser.add_argument("--policy", metavar="NAME", help="withhold calls by it (nothing is withheld)")
    parser.add_argument("--tasks", type=int, default=1000, help="training tasks, at most (1000)")
    parser.add_argument("--rollouts", type=int, default=1, help="conversations of each task (1)")
    parser.add_argument("--seed", type=int, default=1, help="which tasks (1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the agent (1.0)")
    parser.add_argument("--max-turns", type=int, default=8, help="of a conversation (8)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer (128)")
    parser.add_argument("--concurrency", type=int, default=128, help="conversations at once (128)")
    return parser


PREPARE_ABOUT = """\
Reads logs, checks every row, and writes them as JSON Lines or, by the name's ending, as parquet.

LOG is the store of a governor that keeps conversations (store.keep_conversations: true), JSON Lines or
parquet. Files of any size are read row by row.
"""

PREPARE_EXAMPLES = """\
examples:
  governor train prepare records.db --out rows.jsonl
  governor train prepare logs/*.jsonl --out rows.parquet --read-only 'get_*' --read-only search
  governor train prepare records.db --out rows.jsonl --shorten

A row that cannot be used ends it with the file and the line. With --skip-bad the others are written, and the
bad ones with their reasons go to OUT.rejected.jsonl.

--shorten adds, to each right conversation with calls that changed nothing (by the free labels), the same one
without these calls: what the model might as well have done.
"""


def prepare() -> CommandParser:
    """`governor train prepare`."""
    parser = CommandParser(
        prog="governor train prepare",
        description=PREPARE_ABOUT,
        epilog=PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logs", metavar="LOG", type=Path, nargs="+")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="where the rows go")
    parser.add_argument("--skip-bad", action="store_true", help="put rows that cannot be used aside")
    parser.add_argument("--shorten", action="store_true", help="add conversations without their idle calls")
    _add_tools(parser)
    return parser


def _add_tools(parser: argparse.ArgumentParser) -> None:
    """The options that say what tools do."""
    parser.add_argument(
        "--read-only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="tools that only read, where the log does not say it; repeatable",
    )
    parser.add_argument(
        "--effectful",
        metavar="PATTERN",
        action="append",
        default=[],
        help="tools that do more than read; repeatable",
    )


DIAGNOSE_ABOUT = """\
Asks your own logs whether entropy tells useful calls from useless ones, before a reward is built on it: for
the entropy reduction under each choice of tokens, for the gain of the forced answer, and for each tool.

LOG is a governor's store (numbers are enough), rows of `prepare` or `collect`, or the calls.jsonl of
`governor eval`, in which the true value of each call stands. With --model, and a log that holds
conversations, the entropies are computed anew from the whole distribution, for every choice of tokens.
"""

DIAGNOSE_EXAMPLES = """\
examples:
  governor train diagnose records.db
  governor train diagnose rows.jsonl --model Qwen/Qwen3-0.6B --out build/diagnosis
  governor train diagnose build/eval/calls.jsonl

what comes out, in the folder --out:
  diagnosis.json   all figures, and a recommendation: dense, sparse or neither
  *.png            the separation of each measure, and its distributions
"""


def diagnose() -> CommandParser:
    """`governor train diagnose`."""
    parser = CommandParser(
        prog="governor train diagnose",
        description=DIAGNOSE_ABOUT,
        epilog=DIAGNOSE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logs", metavar="LOG", type=Path, nargs="+")
    parser.add_argument("--model", metavar="NAME", help="compute the entropies with it, for each choice")
    parser.add_argument(
        "--out", type=Path, default=Path("build/diagnosis"), metavar="FOLDER", help="(%(default)s)"
    )
    parser.add_argument("--dead-zone", type=float, default=DEAD_ZONE, metavar="NATS", help="(%(default)s)")
    parser.add_argument("--most", type=int, default=50_000, help="calls to look at (%(default)s)")
    parser.add_argument("--no-plots", action="store_true", help="write no pictures")
    _add_tools(parser)
    return parser


STUDY_EXAMPLES = """\
examples:
  governor train study                                  everything: a night on one CPU core
  governor train study --seeds 1                        one seed: two hours
  governor train study --worlds bundled --arms start sparse awr
  governor train study --quick --out build/quick        whether everything runs: minutes
  governor train study --report                         the tables of what is there

It goes on where it was stopped: what is trained and played is not trained or played again. A seed, an arm or
a world may be added later; another budget needs another --out.

what comes out, in the folder --out:
  summary.json     every figure, with machine, versions, seeds and settings
  tables.md        the tables that are printed
  WORLD.png        accuracy against calls, for each arm and its checkpoints
  WORLD/ARM-SEED/  the model, its checkpoints, its answers to the held-out questions (held_out.jsonl)
"""


def study() -> CommandParser:
    """`governor train study`."""
    parser = CommandParser(
        prog="governor train study",
        description="Trains the atlas models by the entropy rewards and by what they are compared with, from"
        " the same start and with the same budget, and judges all by the same held-out questions, through a"
        " real vLLM.",
        epilog=STUDY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--worlds", nargs="+", choices=WORLDS, default=list(WORLDS), help="(all: %(default)s)"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these of each world (all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the training (1 2 3)")
    parser.add_argument("--steps", type=int, help="of online training (as the recipes say)")
    parser.add_argument("--tasks", type=int, help=f"held-out questions ({Plan().tasks})")
    parser.add_argument("--logged", type=int, help=f"conversations in the logs ({Plan().logged})")
    parser.add_argument(
        "--out", type=Path, default=Path("build/train"), metavar="FOLDER", help="(%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny budget: whether everything runs")
    parser.add_argument("--no-curves", action="store_true", help="ask no checkpoints, only the models")
    parser.add_argument("--report", action="store_true", help="train nothing, tell what is there")
    return parser


EXPORT_ABOUT = """\
Writes a trained model, or its LoRA adapter, to a folder of its own with a versioned name, and prints how vLLM
is started with it. An adapter can be loaded into a vLLM that runs already (--load), and --check compares
what is served there with what was exported.
"""

EXPORT_EXAMPLES = """\
examples:
  governor train export build/train/online --name atlas
  governor train export build/train/online --name atlas --merge
  governor train export build/train/online --name qwen-search --load http://gpu-box:8000 \\
      --check http://gpu-box:8000
  governor train export build/exports/atlas-v3 --check http://127.0.0.1:8000      check only
"""


def export() -> CommandParser:
    """`governor train export`."""
    parser = CommandParser(
        prog="governor train export",
        description=EXPORT_ABOUT,
        epilog=EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="folder of a run, of a checkpoint, or of an export")
    parser.add_argument("--out", type=Path, default=Path("build/exports"), help="default: %(default)s")
    parser.add_argument("--name", default="model", help="without its version (default: %(default)s)")
    parser.add_argument("--merge", action="store_true", help="add an adapter to its base's weights")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="of whole weights")
    parser.add_argument("--load", metavar="URL", help="load the adapter into the vLLM there")
    parser.add_argument("--unload", metavar="NAME", help="and take this one out of it")
    parser.add_argument("--check", metavar="URL", help="is it this model that is served there?")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="texts to check with, one a line")
    parser.add_argument("--base", metavar="MODEL", help="what training began with, to check against")
    parser.add_argument("--tolerance", type=float, default=0.05, help="nats (default: %(default)s)")
    return parser


OFFLINE_ABOUT = """\
Fine-tunes a model from logs alone: LoRA adapters (--use_peft) or whole weights.

Objectives: awr (default) imitates each turn with a weight by what its conversation and its calls were worth;
dpo prefers what the governor's counterfactuals say was the better step; kto takes steps as good or bad.

All settings of TRL's SFTConfig (awr), DPOConfig (dpo) or KTOConfig (kto) and of ModelConfig work here, as
flags or in the YAML file of --config. --resume_from_checkpoint last goes on where a run was stopped.
"""

OFFLINE_EXAMPLES = """\
examples:
  governor train offline --data records.db --model_name_or_path Qwen/Qwen3-0.6B --output_dir run
  governor train offline --config offline.yaml --learning_rate 1e-5
  accelerate launch -m governor_server.cli train offline --config offline.yaml
"""


ONLINE_ABOUT = """\
Trains a policy with the entropy rewards while it plays tasks with real tools (GRPO, on TRL). All of TRL's
GRPOConfig and ModelConfig can be set here or in --config FILE.yaml. A run that was stopped goes on at its
last checkpoint when the same command is given again. Several processes: accelerate launch.
"""
