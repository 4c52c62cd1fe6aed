"""What a client that asks for it reads in the body about what the governor did, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governor.decision import Mode
from governor.experiment import Arm
from governor.generation import Generation
from governor.pruning import Pruning
from governor.records import CallRecord
from governor.turn import Turn


def explanation(
    generations: Sequence[Generation],
    *,
    mode: Mode,
    arm: Arm,
    conversation: str,
    costs: Mapping[str, Mapping[str, int]],
    results: Sequence[CallRecord],
    pruning: Pruning,
    tokens: bool,
) -> dict[str, Any]:
    """JSON-ready, entropies in nats. `generation` counts upstream's generations for this message, of which
    there are several after a notice or an answer. `results` are the records of the calls whose results came
    with the request; `tokens`: with every generated token."""
    measures = generations[0].measures
    explained: dict[str, Any] = {
        "mode": mode.value,
        "arm": arm.value,
        "conversation": conversation,
        "decisions": [
            {**decision.as_dict(), "generation": number}
            for number, generation in enumerate(generations)
            for decision in generation.decisions
        ],
        "usage": costs,
        "entropy": {
            "segment": measures.segment_entropy,
            "decision": measures.decision_entropy,
            "arguments": list(measures.arguments),
        },
        "results": [_result(record) for record in results],
        "pruning": {
            "stubs": {id: reason.value for id, reason in pruning.stubs.items()},
            "saved_tokens": pruning.saved_tokens,
            "recomputed_tokens": pruning.recomputed_tokens,
        },
    }
    if tokens:
        explained["tokens"] = [
            {**token, "generation": number}
            for number, generation in enumerate(generations)
            for token in _tokens(generation.turn)
        ]
    return explained


def _result(record: CallRecord) -> dict[str, Any]:
    return {
        "call_id": record.call_id,
        "tool": record.tool,
        "entropy_before": record.entropy_before,
        "entropy_after": record.entropy_after,
        "entropy_reduction": record.entropy_reduction,
        "gain": record.gain,
        "answer_changed": record.answer_changed,
        "label": record.label,
        "stub": record.stub,
    }


def _tokens(turn: Turn) -> list[dict[str, Any]]:
    return [
        {"text": token.text, "entropy": token.entropy.value, "span": span.kind.value}
        for span in turn.spans()
        for token in turn.tokens[span.start : span.stop]
    ]
