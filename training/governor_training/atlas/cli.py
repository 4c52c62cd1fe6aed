"""The commands `governor demo` and `governor atlas`, added to `governor` by an entry point."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governor_training.errors import told

if TYPE_CHECKING:
    from governor_training.local import Stack

DEMO_QUESTIONS = 200
DEMO_SEED = 2026

DEMO_HELP = """\
Starts vLLM with the bundled atlas model and two governors before it, and lets the same agent answer the same
held-out questions twice: observed, then governed. Needs neither a GPU nor a network. The model is tiny and
made for this; what it shows is the mechanism, not what your model will gain. To measure yours: governor
serve --upstream URL.
"""

LIVE_HELP = """\
Starts vLLM with the bundled atlas model and a governor that enforces before it, prints the address of its
dashboard, and lets agents ask questions until you press Ctrl-C. Needs neither a GPU nor a network.
"""


def register(subparsers: Any) -> None:
    """Adds the commands; heavy modules are imported by the command that needs them."""
    demo = subparsers.add_parser(
        "demo", help="an agent with and without the governor, on a real vLLM", description=DEMO_HELP
    )
    demo.add_argument(
        "--questions", type=_count, default=DEMO_QUESTIONS, help="how many (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=DEMO_SEED, help="which ones (default: %(default)s)")
    demo.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder for results (default: %(default)s)"
    )
    _add_engine_arguments(demo)
    demo.set_defaults(run=_demo, extra="demo")

    live = subparsers.add_parser(
        "live", help="the dashboard, with a real vLLM and agents that keep asking", description=LIVE_HELP
    )
    live.add_argument("--questions", type=_count, default=None, help="how many (default: without end)")
    live.add_argument("--seed", type=int, default=DEMO_SEED, help="which ones (default: %(default)s)")
    live.add_argument(
        "--out", type=Path, default=Path("build/live"), help="folder of the records (default: %(default)s)"
    )
    _add_engine_arguments(live)
    live.set_defaults(run=_live, extra="demo")

    atlas = subparsers.add_parser("atlas", help="make and evaluate the demonstration's model")
    commands = atlas.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train", help="train it from scratch, an hour on two CPU cores; goes on where it stopped"
    )
    _add_train_arguments(train)
    train.set_defaults(run=_train, extra="training")
    evaluate = commands.add_parser("evaluate", help="print its figures, asked through a real vLLM")
    _add_engine_arguments(evaluate)
    evaluate.add_argument(
        "--questions", type=_count, default=500, help="held-out questions (default: %(default)s)"
    )
    evaluate.add_argument("--seed", type=int, default=DEMO_SEED)
    evaluate.add_argument("--out", type=Path, default=Path("build/atlas"), help="folder for results")
    evaluate.set_defaults(run=_evaluate, extra="training")


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=None, help="its folder (default: the bundled one)")
    parser.add_argument("--upstream", metavar="URL", help="a vLLM that runs already and serves it as `atlas`")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="atlas", help="which model to make (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the model (default: build/RECIPE/model)"
    )
    parser.add_argument("--steps", type=_count, default=2200, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--tokens", type=_count, default=4096, help="tokens a batch, without the prefix")
    parser.add_argument("--lr", type=float, default=6e-3, help="peak learning rate of the matrices (Muon)")
    parser.add_argument("--lr-rest", type=float, default=3e-3, help="the same for all else (AdamW)")
    parser.add_argument("--hidden", type=_count, default=128, help="size of the hidden state")
    parser.add_argument("--layers", type=_count, default=4)
    parser.add_argument("--seed", type=int, default=None, help="another than the recipe's own")
    parser.add_argument(
        "--threads", type=_count, default=None, help="CPU threads; 1 where others want the cores"
    )
    parser.add_argument(
        "--check-every", type=_count, default=1100, help="steps between checks of what it can do"
    )
    parser.add_argument(
        "--save-every", type=_count, default=200, help="steps between checkpoints to go on from"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def _train(options: argparse.Namespace) -> int:
    from governor_training.atlas.recipes import RECIPES
    from governor_training.pretraining.train import train

    recipe = RECIPES[options.recipe]
    options.seed = recipe.seed if options.seed is None else options.seed
    options.out = options.out or Path("build") / recipe.name / "model"
    train(recipe, options)
    return 0


def _console() -> Any:
    """Wide enough for the tables, also where the output is a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=100)


def _end_like_ctrl_c() -> None:
    """A termination then unwinds the stack too, and so does Ctrl-C where the shell that started us has it
    ignored."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@told
def _evaluate(options: argparse.Namespace) -> int:
    import asyncio

    from governor_training.atlas.evaluate import evaluate

    console = _console()
    with _stack(options) as stack:
        figures = asyncio.run(
            evaluate(stack.engine, questions=options.questions, seed=options.seed, console=console)
        )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "evaluation.json"
    path.write_text(json.dumps(figures.as_dict(), indent=2) + "\n", "utf-8")
    console.print(figures.table())
    console.print(f"All figures: {path}")
    return 0


@told
def _demo(options: argparse.Namespace) -> int:
    from governor_training.atlas import demo

    with _stack(options) as stack:
        demo.run(stack, options.out, questions=options.questions, seed=options.seed, console=_console())
    return 0


@told
def _live(options: argparse.Namespace) -> int:
    from governor_training.atlas import live

    with _stack(options) as stack:
        live.run(stack, options.out, seed=options.seed, questions=options.questions, console=_console())
    return 0


def _stack(options: argparse.Namespace) -> Stack:
    from governor_training.atlas.environment import AtlasEnvironment, bundled_model
    from governor_training.local import Served, Stack

    _end_like_ctrl_c()
    model = options.model or bundled_model()
    return Stack(Served("atlas", model, options.upstream), AtlasEnvironment())
