"""What the operator reads on the terminal: lines that stay, and one line of progress that is written over."""

from __future__ import annotations

import sys
import time
from typing import TextIO

PROGRESS_INTERVAL_S = 15.0
"""Where there is no terminal, a log say, progress is a line now and then instead of a thousand."""


class Console:
    """Lines for the operator, on standard error, each with the program's name in front."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._overwrites = self._stream.isatty()
        self._width = 0
        self._next_progress = 0.0

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write("\r" + self._padded(f"governor: {line}") + "\n" if self._width else f"governor: {line}\n")
        self._width = 0

    def progress(self, line: str) -> None:
        """A line that the next one replaces."""
        if self._overwrites:
            text = self._padded(f"governor: {line}")
            self._width = len(text.rstrip())
            self._write("\r" + text)
        elif time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_INTERVAL_S
            self._write(f"governor: {line}\n")

    def _padded(self, text: str) -> str:
        return text.ljust(self._width)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
