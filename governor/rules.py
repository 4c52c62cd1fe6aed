"""Tier 0: rules on the history alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from governor.calls import ToolCall
from governor.conversation import ExecutedCall
from governor.decision import InputValue, Reason


@dataclass(frozen=True, slots=True)
class Budgets:
    """How many calls a conversation may make: in all, and of each tool by name. None and absence mean no
    limit."""

    per_conversation: int | None = None
    per_tool: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """`failing_attempts`: how often the same call must have failed before a further one is withheld (2: one
    retry passes)."""

    budgets: Budgets = field(default_factory=Budgets)
    failing_attempts: int = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that speaks against a call, with the figures it saw."""

    reason: Reason
    inputs: Mapping[str, InputValue]


def find(call: ToolCall, history: Sequence[ExecutedCall], settings: RuleSettings) -> Finding | None:
    """The first rule that speaks against the read-only `call`, or None."""
    raise NotImplementedError
