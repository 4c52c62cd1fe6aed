"""What a user of the commands can put right; each is told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps

Command = Callable[[argparse.Namespace], int]


class TrainingError(Exception):
    """`exit_code` is that of the command."""

    exit_code = 1


class UsageError(TrainingError):
    """An option, a file or a module that cannot be used."""

    exit_code = 2


class StartFailed(TrainingError):
    """A child ended, or did not get ready; its own message stands above."""


class Unreachable(TrainingError):
    """Nothing answers at the address of the upstream."""


def told(command: Command) -> Command:
    """The command that tells a `TrainingError` in one line and returns its exit code."""

    @wraps(command)
    def run(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except TrainingError as error:
            print(f"governor: {error}", file=sys.stderr)
            return error.exit_code

    return run
