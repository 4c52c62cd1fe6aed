"""One conversation, for somebody who wants to know why: its turns, and in each what was measured, what was
decided, and what would have been otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from governor.conversations import in_order
from governor.overview import would_withhold
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.transcript import Transcript


def inspection(
    records: Sequence[CallRecord], transcripts: Sequence[Transcript] = (), *, keep_text: bool
) -> list[dict[str, Any]]:
    """The turns of one conversation, oldest first, JSON-ready. A turn has the calls that it proposed, and its
    `transcript` where one is kept; the two are of one turn if they are of one time. Without `keep_text` there
    are neither arguments nor answers."""
    said = {transcript.created: transcript for transcript in transcripts}
    by_turn: dict[float, list[CallRecord]] = {moment: [] for moment in said}
    for record in records:
        by_turn.setdefault(record.created, []).append(record)
    return [
        {
            "created": moment,
            "step": found[0].step if found else said[moment].turn,
            "entropy": found[0].entropy_before if found else None,
            "calls": [_call(record, keep_text) for record in in_order(found)],
            "transcript": _transcript(said.get(moment)),
        }
        for moment, found in sorted(by_turn.items())
    ]


def counterfactual(record: CallRecord) -> str:
    """What would have become of the conversation under the other decision, in a sentence; "" where nothing
    speaks of one.

    Only the call itself is judged: what came after it would have been another conversation.
    """
    changed = record.answer_changed
    if not record.passed:
        return (
            "What its result would have been worth is not known: it was never made. The holdout and "
            "exploration tell that of calls like it."
        )
    if would_withhold(record):
        if changed is None:
            return "Whether withholding it would have been right is not known: it has no label."
        return (
            "Withholding it would have been wrong: its result changed the answer."
            if changed
            else "Withholding it would have been right: the answer stayed the same."
        )
    if changed is None:
        return ""
    return (
        "Without it the answer would have been another one."
        if changed
        else "Without it the answer would have been the same."
    )


def _call(record: CallRecord, keep_text: bool) -> dict[str, Any]:
    shown = record.as_dict(keep_text=keep_text)
    return {
        **shown,
        "entropy_reduction": record.entropy_reduction,
        "gain": record.gain,
        "label": record.label,
        "answer_changed": record.answer_changed,
        "passed": record.passed,
        "probe_before": _probe(record.probe_before, keep_text),
        "probe_after": _probe(record.probe_after, keep_text),
        "counterfactual": counterfactual(record),
    }


def _probe(probe: ProbeAnswer | None, keep_text: bool) -> dict[str, Any] | None:
    if probe is None:
        return None
    shown = asdict(probe)
    return shown if keep_text else {**shown, "text": ""}


def _transcript(transcript: Transcript | None) -> Mapping[str, Any] | None:
    if transcript is None:
        return None
    shown = transcript.as_dict()
    return {key: shown[key] for key in ("said", "since", "reply", "proposal", "tokens", "model")}
