"""Tier 0: rules on the history alone.

All rules but the budget look at the *current* history: what came after the last call that may have changed
something (effectful or unknown, failed or not, a sibling in the same turn included) and after the last
message of the user, who may have changed something too, or have asked for a fresh look. Two calls are the
same if their signatures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from governor.calls import ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import InputValue, Reason
from governor.results import Outcome


@dataclass(frozen=True, slots=True)
class Budgets:
    """How many calls a conversation may make: in all, and of each tool by name. None and absence mean no
    limit.

    Only read-only calls are withheld when a budget is used up, but every call counts.
    """

    per_conversation: int | None = None
    per_tool: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """`failing_attempts`: how often the same call must have failed, one attempt after the other, before a
    further one is withheld; with 2, a first retry passes."""

    budgets: Budgets = field(default_factory=Budgets)
    failing_attempts: int = 2

    def __post_init__(self) -> None:
        if self.failing_attempts < 1:
            raise ValueError("failing_attempts must be at least 1")


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that speaks against a call, with the figures it saw."""

    reason: Reason
    inputs: Mapping[str, InputValue]


def find(
    call: ToolCall, history: Sequence[ExecutedCall], settings: RuleSettings, *, volatile: bool = False
) -> Finding | None:
    """The first rule that speaks against the read-only `call`, or None.

    `history` as in `Evidence.history`: executed calls, then the pending siblings of `call`. Of a `volatile`
    tool no call is a repeat: only the budgets count.
    """
    if volatile:
        return over_budget(call, history, settings.budgets)
    current = current_history(history)
    same = executions(call, current)
    return (
        cycle(same, current)
        or repeated_call(same)
        or failing_retry(same, settings.failing_attempts)
        or over_budget(call, history, settings.budgets)
    )


def awaited(call: ToolCall, history: Sequence[ExecutedCall], *, volatile: bool) -> Finding | None:
    """Why the same call again may well bring something new: its tool is volatile, or its last result was not
    final. None for a call that was not made before."""
    same = executions(call, current_history(history))
    if not same:
        return None
    if volatile:
        return Finding(Reason.VOLATILE, {"executed": len(same)})
    unfinished = same[-1].outcome is Outcome.UNFINISHED
    return Finding(Reason.UNFINISHED, {"executed": len(same)}) if unfinished else None


def current_history(history: Sequence[ExecutedCall]) -> tuple[ExecutedCall, ...]:
    """The executed calls whose results still describe the world."""
    start = 0
    for place, executed in enumerate(history):
        if executed.effect is not ToolEffect.READ_ONLY or executed.user_messages_after:
            start = place + 1
    return tuple(executed for executed in history[start:] if executed.outcome is not Outcome.PENDING)


def executions(call: ToolCall, current: Sequence[ExecutedCall]) -> tuple[ExecutedCall, ...]:
    """Those of the current history that are the same call as `call`."""
    signature = call.signature
    return tuple(e for e in current if e.call.name == call.name and e.call.signature == signature)


def cycle(same: Sequence[ExecutedCall], current: Sequence[ExecutedCall]) -> Finding | None:
    """The last 2n calls are the same n calls twice, with the same results, and the call starts them a third
    time.

    A result that changed is progress; a failure that may go away by itself is no loop, nor is work that is
    waited for. What the call itself got must be a result; where it failed, `failing_retry` says so.
    """
    if len(same) < 2:
        return None
    steps = [(executed.call.signature, executed.result) for executed in current]
    for period in range(1, len(steps) // 2 + 1):
        last, before = steps[-period:], steps[-2 * period : -period]
        if last == before and last[0][0] == same[0].call.signature:
            outcomes = [executed.outcome for executed in current[-period:]]
            if outcomes[0] is not Outcome.OK or not _PASSING.isdisjoint(outcomes):
                return None
            return Finding(Reason.CYCLE, {"period": period, "executed": 2 * period})
    return None


_PASSING: Final = frozenset({Outcome.TRANSIENT, Outcome.UNFINISHED})


def repeated_call(same: Sequence[ExecutedCall]) -> Finding | None:
    """The call was made before, and its last result is a result: not a failure, not empty, not unfinished.

    If its results differed from each other the tool's answer changes by itself (a job that is polled), and
    asking again is how one learns of it.
    """
    if not same or same[-1].outcome is not Outcome.OK:
        return None
    if len({executed.result for executed in same if executed.outcome is Outcome.OK}) > 1:
        return None
    return Finding(Reason.REPEATED_CALL, {"executed": len(same)})


def failing_retry(same: Sequence[ExecutedCall], attempts: int) -> Finding | None:
    """The call failed or came back empty in its last `attempts` attempts, none of them for a passing
    cause."""
    recent = same[-attempts:]
    if len(recent) < attempts:
        return None
    if any(executed.outcome not in (Outcome.FAILED, Outcome.EMPTY) for executed in recent):
        return None
    return Finding(Reason.FAILING_RETRY, {"attempts": attempts})


def over_budget(call: ToolCall, history: Sequence[ExecutedCall], budgets: Budgets) -> Finding | None:
    """The conversation made as many calls as it may, or as many of this tool. Siblings that come before
    `call` in its turn count, those after it do not."""
    made = [
        executed
        for executed in history
        if executed.outcome is not Outcome.PENDING or executed.call.index < call.index
    ]
    of_tool = sum(executed.call.name == call.name for executed in made)
    limit = budgets.per_tool.get(call.name)
    if limit is not None and of_tool >= limit:
        return Finding(Reason.BUDGET, {"budget": limit, "executed": of_tool, "budget_of": "tool"})
    if budgets.per_conversation is not None and len(made) >= budgets.per_conversation:
        whole = budgets.per_conversation
        return Finding(Reason.BUDGET, {"budget": whole, "executed": len(made), "budget_of": "conversation"})
    return None
