"""Conversations to learn from, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from governor.labels import Label
from governor_training.finetuning.trajectory import LoggedCall, Trajectory

QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
ANSWER = {"role": "assistant", "content": "The capital of Norway is Oslo.", "reasoning": "Norway: Oslo"}


def calling(*ids: str, content: str = "") -> dict[str, Any]:
    """A message of the model that makes calls with these ids."""
    calls = [
        {"id": id, "type": "function", "function": {"name": "lookup", "arguments": f'{{"id": "{id}"}}'}}
        for id in ids
    ]
    return {"role": "assistant", "content": content, "reasoning": "Norway: Oslo", "tool_calls": calls}


def result(id: str, content: str = "Oslo") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def logged(id: str, turn: int, label: Label | None = Label.LOW_VALUE, **more: Any) -> LoggedCall:
    """A call whose forced answer was sure."""
    given: dict[str, Any] = {"read_only": True, "margin": 0.95, **more}
    return LoggedCall(id, "lookup", turn, label=label, **given)


def conversation(calls: Sequence[LoggedCall], **more: Any) -> Trajectory:
    """A turn with one call for each of `calls`, then the answer."""
    messages = [QUESTION]
    for call in calls:
        messages += [calling(call.id), result(call.id)]
    given: dict[str, Any] = {"score": 1.0, "id": "talk", "group": "norway", **more}
    return Trajectory(messages=[*messages, ANSWER], calls=calls, **given)
