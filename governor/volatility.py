"""Which tools change their answers by themselves: a job's status, a price, the time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from governor.calls import CallSignature, ToolEffect
from governor.conversation import ExecutedCall
from governor.results import Outcome, comparable, is_cleared

ANSWERS: Final = frozenset({Outcome.OK, Outcome.EMPTY, Outcome.UNFINISHED})


def changed_tools(history: Iterable[ExecutedCall]) -> frozenset[str]:
    """The read-only tools that gave another answer to the same call, while nothing happened in between that
    could have changed it: no call with an effect or an unknown one, and no message of the user.

    A failure is no answer, nor is what a client puts in the place of an old result or leaves of it. Times and
    request ids (`governor.results.comparable`) make no other answer.
    """
    changed: set[str] = set()
    seen: dict[CallSignature, str] = {}
    users: int | None = None
    for done in history:
        if done.effect is not ToolEffect.READ_ONLY or done.user_messages_after != users:
            seen.clear()
            users = done.user_messages_after
        if done.effect is ToolEffect.READ_ONLY and done.outcome in ANSWERS and not is_cleared(done.result):
            before = seen.setdefault(done.call.signature, done.result)
            if _differ(before, done.result):
                changed.add(done.call.name)
    return frozenset(changed)


def _differ(before: str, after: str) -> bool:
    if before == after or _is_part(before, after) or _is_part(after, before):
        return False
    return comparable(before) != comparable(after)


def _is_part(short: str, long: str) -> bool:
    """Whether a text is what is left of another one that was cut."""
    return len(short) >= _CUT and long.startswith(short[: len(short) - _MARK])


_CUT: Final = 400
"""Characters: a client that cuts old results leaves that much of one."""
_MARK: Final = 100
"""Characters at the end of such a text that say that it was cut."""
