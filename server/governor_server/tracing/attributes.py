"""What spans tell of decisions and results, in the names of the conventions and in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from governor.decision import Decision
from governor.records import CallRecord
from governor_server.metrics import TOOL_NAME

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

MAX_NAME_LENGTH = 256
"""Characters of a name that a client or a model chose."""
MAX_CONTENT_LENGTH = 64 * 1024
"""Characters of a text, where texts are recorded."""


def judged(decision: Decision, entropy: float | None, *, content: bool) -> dict[str, AttributeValue]:
    """What becomes of a call. `entropy` is the mean of its turn's segment in nats, None where it was not
    measured; `content`: with the call's arguments."""
    told: dict[str, AttributeValue | None] = {
        "gen_ai.tool.name": tool(decision.call.name),
        "gen_ai.tool.call.id": decision.call.id[:MAX_NAME_LENGTH],
        "governor.decision": decision.action.value,
        "governor.proposed": decision.proposed.value,
        "governor.reason": decision.reason.value,
        "governor.policy": decision.policy,
        "governor.tier": decision.tier,
        "governor.entropy.before": entropy,
        # A text among them may be one of the model's.
        **{f"governor.input.{k}": v for k, v in decision.inputs.items() if not isinstance(v, str)},
    }
    if content:
        told["gen_ai.tool.call.arguments"] = decision.call.arguments[:MAX_CONTENT_LENGTH]
    return known(told)


def measured(record: CallRecord) -> dict[str, AttributeValue]:
    """What the result of an earlier call led to."""
    return known(
        {
            "gen_ai.tool.name": tool(record.tool),
            "gen_ai.tool.call.id": record.call_id[:MAX_NAME_LENGTH],
            "governor.entropy.before": record.entropy_before,
            "governor.entropy.after": record.entropy_after,
            "governor.entropy.reduction": record.entropy_reduction,
            "governor.label": record.label.value if record.label is not None else None,
        }
    )


def known(values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    """Those that there are."""
    return {key: value for key, value in values.items() if value is not None}


def tool(name: str) -> str:
    """The name of a tool; a model may write anything in its place, and that is not for a span."""
    return name if TOOL_NAME.fullmatch(name) else "other"
