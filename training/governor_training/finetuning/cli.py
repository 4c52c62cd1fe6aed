"""The commands `governor train ...`, added to `governor` by an entry point."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from governor_training.errors import told
from governor_training.finetuning import parsers

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
    imported when the command runs: what it needs takes seconds to load. `parser` makes what reads those
    arguments; None where a library that `run` imports declares most of them."""

    about: str
    run: str
    parser: Callable[[], argparse.ArgumentParser] | None


HELP = frozenset({"-h", "--help"})
_HERE = "governor_training.finetuning"
COMMANDS: Mapping[str, Command] = {
    "collect": Command(
        "play an environment through a governor and log it", f"{_HERE}.collect_command:run", parsers.collect
    ),
    "prepare": Command(
        "logs to rows that can be trained on", f"{_HERE}.prepare_command:run", parsers.prepare
    ),
    "diagnose": Command(
        "ask your logs whether entropy tells useful calls", f"{_HERE}.diagnose_command:run", parsers.diagnose
    ),
    "offline": Command("fine-tune from logs alone", f"{_HERE}.offline_command:run", None),
    "online": Command("fine-tune while tools are really called", f"{_HERE}.online_command:run", None),
    "study": Command(
        "compare all of it on the atlas, from one command", f"{_HERE}.study.command:run", parsers.study
    ),
    "export": Command(
        "give a trained model to vLLM, and check it there", f"{_HERE}.export_command:run", parsers.export
    ),
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
        own.set_defaults(run=_runner(name, command), extra="training")


def _runner(name: str, command: Command) -> Callable[[argparse.Namespace], int]:
    @told
    def run(options: argparse.Namespace) -> int:
        asks_for_help = bool(HELP.intersection(options.arguments))
        if asks_for_help and command.parser is not None:
            command.parser().print_help()
            return 0
        module, _, function_name = command.run.partition(":")
        try:
            function: Callable[[Sequence[str]], int] = getattr(import_module(module), function_name)
        except ModuleNotFoundError:
            if asks_for_help:
                return _explain_without_extra(name, command, options.how_to_install)
            raise
        return function(options.arguments)

    return run


def _explain_without_extra(name: str, command: Command, how_to_install: str) -> int:
    """What can be said of a command most of whose options are declared by a library that is missing."""
    parser = argparse.ArgumentParser(
        prog=f"governor train {name}",
        description=f"{command.about[0].upper()}{command.about[1:]}.",
        epilog=f"To see all options, install the extra `training`: {how_to_install}.",
    )
    parser.print_help()
    return 0
