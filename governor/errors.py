"""Errors of the core. All of them mean: let the call pass, and count the event."""

from __future__ import annotations


class GovernorError(Exception):
    """Base of every error that the core raises on purpose; `reason` is a short, stable word for a metric
    label."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class LogprobsMalformed(GovernorError):
    """The upstream's `logprobs` are not of the documented shape."""


class CallsMalformed(GovernorError):
    """The upstream's tool calls cannot be told apart."""


class TurnMalformed(GovernorError):
    """A piece of the upstream's message that should be text is something else."""


class ProbeFailed(GovernorError):
    """The probe's response is no answer: `no_logprobs`, `empty`, `malformed` or `call` (it tried to call a
    tool)."""
