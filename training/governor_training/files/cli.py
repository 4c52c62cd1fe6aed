"""The command `governor files`, added to `governor` by an entry point."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

RECIPE = {"tokens": 4096, "lr": 6e-3, "lr_rest": 3e-3, "hidden": 128, "layers": 4}
"""What the bundled model was made with (`pretraining.train`)."""


def register(subparsers: Any) -> None:
    """Adds the command; heavy modules are imported when it runs."""
    files = subparsers.add_parser("files", help="make the model of the second environment")
    commands = files.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train it from scratch; goes on where it stopped")
    train.add_argument(
        "--out",
        type=Path,
        default=Path("build/files/model"),
        help="folder of the model (default: %(default)s)",
    )
    train.add_argument("--steps", type=int, default=1300, help="optimizer steps (default: %(default)s)")
    train.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    train.add_argument("--threads", type=int, help="CPU threads; 1 where others want the cores")
    train.add_argument("--check-every", type=int, default=600, help="steps between checks of what it can do")
    train.add_argument("--save-every", type=int, default=100, help="steps between checkpoints to go on from")
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    train.set_defaults(run=_train, extra="training", **RECIPE)


def _train(options: argparse.Namespace) -> int:
    from governor_training.files.recipe import FILES
    from governor_training.pretraining.train import train

    train(FILES, options)
    return 0
