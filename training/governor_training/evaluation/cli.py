"""The command `governor eval`, added to `governor` by an entry point."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from governor_training.errors import told

ABOUT = """\
What would each policy save you, and what would it cost? Plays tasks with an agent, without a governor and
under every policy and setting, and judges each withheld call against the truth: the same conversation played
on with the call's result and without it.

It learns the calibrated gate on training tasks, then plays held-out ones. Most of the many runs are played
in this process, with answers that are remembered, so that a full sweep costs little more than a few runs;
tokens are counted as if each request had been served. The ungoverned agent, the threshold and the calibrated
gate are also played through real servers, task by task in random order, for the time a task takes.
"""

EXAMPLES = """\
examples:
  governor eval                                       the bundled atlas model, on this machine: half an hour
  governor eval --tasks 60 --seeds 1 --learn 120      a quick look, with wide intervals
  governor eval --environment files                   another environment with a bundled model
  governor eval --policies threshold calibrated cap   some policies only

  your own model, on a server that runs, in your own environment:
    governor eval --upstream http://gpu-box:8000 --environment my_package.tasks:make

  your own questions and tools, any number of them:
    governor eval --upstream http://gpu-box:8000 --dataset questions.jsonl --tools my_tools.py

    questions.jsonl has an object a line:   {"question": "Who wrote Emma?", "answer": "Jane Austen"}
    my_tools.py has functions with type hints and docstrings, and  READ_ONLY = ["search"]

It says what it is going to do before it asks for anything. Where there are fewer tasks than --tasks and
--learn, it takes those that there are. Half of a data set is for learning; where that is too little for a
gate to be certified, nothing is learned and all rows are played.

Scorers: `contains` (the right answer stands among the words said), `exact` (the same but for case,
punctuation and articles), `f1` (overlap of words, in [0, 1]: whole sentences score low even when right). An
answer is right from the score --right on; accuracy is the share of right answers.

An environment is an object like governor_training.environment.Environment; module:factory makes one.
A key for the server is taken from GOVERNOR_UPSTREAM__API_KEY.

what comes out, in the folder --out:
  summary.json   every figure, with machine, versions, seeds and settings
  tables.md      the tables that are printed
  calls.jsonl    one row a call: its signals, its free label, its true value
  gates.json     the calibrated gate for --max-harm; governor serve reads it (calibration.path)
  *.png          accuracy against calls, calibration, signals, rank correlations
"""


def register(subparsers: Any) -> None:
    """Adds the command; heavy modules are imported when it runs."""
    parser = subparsers.add_parser(
        "eval",
        help="what each policy would save, and what it would cost",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("what is evaluated")
    where.add_argument(
        "--environment",
        default="atlas",
        metavar="NAME",
        help="atlas (default), files or module:factory",
    )
    where.add_argument(
        "--dataset", type=Path, metavar="FILE", help="questions and answers instead, JSON Lines"
    )
    where.add_argument("--tools", metavar="MODULE", help="the module (or file.py) with the data set's tools")
    where.add_argument(
        "--scorer",
        default="contains",
        help="exact, contains, f1 or module:function (default: contains)",
    )
    where.add_argument(
        "--right",
        type=_score,
        metavar="SCORE",
        help="the score from which an answer of the data set is right (default: 1; with f1: 0.5)",
    )
    where.add_argument("--upstream", metavar="URL", help="a vLLM that runs already (default: one is started)")
    where.add_argument("--model", metavar="NAME", help="served name with --upstream, else a folder to serve")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--tasks", type=_count, default=500, help="played tasks a seed, at most (default: %(default)s)"
    )
    how.add_argument(
        "--split",
        choices=["held_out", "train"],
        help="train plays fresh training tasks: choose settings on those (default: held_out, or all tasks "
        "where they are too few to learn from any)",
    )
    how.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="samples (default: 1 2 3)")
    how.add_argument(
        "--learn",
        type=_count,
        default=2000,
        help="training tasks the gate is fitted on, at most (default: %(default)s)",
    )
    how.add_argument(
        "--policies", nargs="+", metavar="NAME", help="only these; `pruning` is one (default: all)"
    )
    how.add_argument(
        "--max-harm", type=_share, default=0.02, help="of the headline's gate (default: %(default)s)"
    )
    how.add_argument(
        "--concurrency",
        type=_count,
        default=16,
        help="tasks at once (default: %(default)s; those that are timed: 4)",
    )
    how.add_argument(
        "--timed", type=int, default=500, help="tasks through real servers; 0: none (default: %(default)s)"
    )
    how.add_argument(
        "--temperature", type=float, default=0.0, help="above 0 nothing is remembered: slow (default: 0)"
    )
    how.add_argument("--max-tokens", type=_count, default=128, help="of one answer (default: %(default)s)")
    how.add_argument("--max-turns", type=_count, default=8, help="of one task (default: %(default)s)")
    how.add_argument(
        "--continuations", type=_count, help="replays of each side of a call (default: 1, sampling: 4)"
    )
    how.add_argument("--out", type=Path, default=Path("build/eval"), help="folder (default: %(default)s)")
    how.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="keep the engine's answers there, and use those that are there: the same model only",
    )
    how.add_argument("--no-plots", action="store_true", help="write no pictures")
    parser.set_defaults(run=_run, extra="eval")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _score(text: str) -> float:
    score = float(text)
    if not 0 < score <= 1:
        raise argparse.ArgumentTypeError("must be above 0, and at most 1")
    return score


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return share


@told
def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from governor_training.evaluation import run

    # A termination unwinds everything that was started, too, and so does Ctrl-C where the shell ignored it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console()
    return run.run(options, console if console.is_terminal else Console(width=160))
