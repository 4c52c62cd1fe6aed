"""What the model reads in the place of a withheld call's result."""

from __future__ import annotations

from typing import Final

from governor.decision import Reason

_CHOICE: Final = "Answer now, or repeat the call if it is needed."

NOTICE_CONFIDENT: Final = f"Withheld: the answer is known or already in the context. {_CHOICE}"
NOTICE_REPEATED: Final = f"Withheld: this call was made before and its result is above. {_CHOICE}"
NOTICE_FAILING: Final = f"Withheld: this call failed before with the same arguments. {_CHOICE}"
NOTICE_BUDGET: Final = f"Withheld: the budget for calls of this kind is used up. {_CHOICE}"

NOTICES: Final = frozenset({NOTICE_CONFIDENT, NOTICE_REPEATED, NOTICE_FAILING, NOTICE_BUDGET})

_BY_REASON: Final = {
    Reason.REPEATED_CALL: NOTICE_REPEATED,
    Reason.CYCLE: NOTICE_REPEATED,
    Reason.FAILING_RETRY: NOTICE_FAILING,
    Reason.BUDGET: NOTICE_BUDGET,
}


def notice_for(reason: Reason) -> str:
    """The notice that is true for a call withheld for `reason`."""
    return _BY_REASON.get(reason, NOTICE_CONFIDENT)


def is_notice(result: str) -> bool:
    """Whether a tool result is one of our notices, so that its call was never executed."""
    return result.strip() in NOTICES
