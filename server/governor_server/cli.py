"""The command `governor`."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    raise NotImplementedError
