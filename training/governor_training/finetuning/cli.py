"""The commands `governor train ...`, added to `governor` by an entry point."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from governor_training.errors import told

ABOUT = """\
Fine-tunes a policy with the rewards that the governor measures, so that it stops making the calls that
would be withheld.

  1. let the governor log your traffic (store.keep_conversations, store.keep_text), or `collect`
  2. `prepare` the logs: conversations with their calls, scores, labels
  3. `diagnose`: does entropy say anything of your calls?
  4. `offline`, from the logs alone, or `online`, with your tools
  5. `export` what came out to vLLM

`governor train COMMAND --help` explains a command.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """`run` is a dotted path to a function of the command's arguments that returns the exit code. It is
    imported when the command runs: what it needs takes seconds to load."""

    about: str
    run: str


_HERE = "governor_training.finetuning"
COMMANDS: Mapping[str, Command] = {
    "collect": Command("play an environment through a governor and log it", f"{_HERE}.collect_command:run"),
    "prepare": Command("logs to rows that can be trained on", f"{_HERE}.prepare_command:run"),
    "diagnose": Command("ask your logs whether entropy tells useful calls", f"{_HERE}.diagnose_command:run"),
    "offline": Command("fine-tune from logs alone", f"{_HERE}.offline_command:run"),
    "online": Command("fine-tune while tools are really called", f"{_HERE}.online_command:run"),
    "study": Command("compare all of it on the atlas, from one command", f"{_HERE}.study.command:run"),
    "export": Command("give a trained model to vLLM, and check it there", f"{_HERE}.export_command:run"),
}


def register(subparsers: Any) -> None:
    """Adds the commands."""
    parser = subparsers.add_parser(
        "train",
        help="fine-tune a policy with the governor's rewards",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def explain(_: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(run=explain)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        # The command reads its own arguments. With no prefix for options, this parser takes them as they are.
        own = commands.add_parser(name, help=command.about, add_help=False, prefix_chars="\0")
        own.add_argument("arguments", nargs="*")
        own.set_defaults(run=_runner(command))


def _runner(command: Command) -> Callable[[argparse.Namespace], int]:
    @told
    def run(options: argparse.Namespace) -> int:
        module, _, name = command.run.partition(":")
        function: Callable[[Sequence[str]], int] = getattr(import_module(module), name)
        return function(options.arguments)

    return run
