"""Steps of a log as preferences: pairs for DPO, and good and bad ones for KTO.

The governor's own counterfactuals give them. A call that changed nothing is worse than what the model did
next; a call that changed the answer is better than the answer that the model would have given instead; a call
that was withheld is worse than the answer that took its place, if that was right, and better if it was wrong.
(Step-wise preferences: Step-DPO, arXiv 2406.18629. KTO, arXiv 2402.01306, needs no pairs.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governor.labels import Label
from governor.rewards.baselines import RIGHT
from governor_training.environment import Message
from governor_training.finetuning.hindsight import is_idle
from governor_training.finetuning.segments import Encoder
from governor_training.finetuning.trajectory import LoggedCall, Trajectory


@dataclass(frozen=True, slots=True)
class Step:
    """What the model said in one turn, and what it might have said: the better one first. One of the two may
    be missing."""

    turn: int
    before: Sequence[Message]
    chosen: Message | None
    rejected: Message | None


def steps(trajectory: Trajectory) -> Iterator[Step]:
    """The judged steps of a conversation that has a score."""
    if trajectory.score is None:
        return
    right = trajectory.score >= RIGHT
    said = list(_said(trajectory))
    by_turn: dict[int, list[LoggedCall]] = {}
    for call in trajectory.calls:
        by_turn.setdefault(call.turn, []).append(call)
    for turn, before, message in said:
        calls = by_turn.get(turn, [])
        proposal = trajectory.proposals.get(turn)
        if turn < trajectory.given:
            continue
        if proposal is not None:
            good, bad = (message, proposal) if right else (proposal, message)
            yield Step(turn, before, good, bad)
        elif not calls:
            yield Step(turn, before, message if right else None, None if right else message)
        elif all(map(is_idle, calls)) and right:
            yield Step(turn, before, _next_active(said, by_turn, turn), message)
        elif len(calls) == 1 and calls[0].read_only and calls[0].label is Label.USEFUL and right:
            yield Step(turn, before, message, _forced(calls[0]))


def pairs(trajectories: Iterable[Trajectory], encoder: Encoder) -> Iterator[dict[str, str]]:
    """Rows of prompt, chosen and rejected as text, for `DPOTrainer`."""
    for trajectory, step in _all(trajectories):
        if step.chosen is None or step.rejected is None:
            continue
        chosen = encoder.turn(step.turn, step.before, step.chosen, trajectory)
        rejected = encoder.turn(step.turn, step.before, step.rejected, trajectory)
        if chosen.said != rejected.said:
            prompt = encoder.plain(chosen.prompt)
            yield {"prompt": prompt, "chosen": chosen.said, "rejected": rejected.said}


def labels(trajectories: Iterable[Trajectory], encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Rows of prompt, completion and label as text, for `KTOTrainer`: what was said, good or bad, and what
    might have been said where it is known to be good."""
    for trajectory, step in _all(trajectories):
        for message, good in ((step.chosen, True), (step.rejected, False)):
            if message is not None:
                told = encoder.turn(step.turn, step.before, message, trajectory)
                yield {"prompt": encoder.plain(told.prompt), "completion": told.said, "label": good}


def _all(trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, Step]]:
    for trajectory in trajectories:
        for step in steps(trajectory):
            yield trajectory, step


def _said(trajectory: Trajectory) -> Iterator[tuple[int, Sequence[Message], Message]]:
    """Each message of the model with its turn and what was said before it."""
    turn = -1
    for place, message in enumerate(trajectory.messages):
        if message["role"] == "assistant":
            turn += 1
            yield turn, trajectory.messages[:place], message


def _next_active(
    said: Sequence[tuple[int, Sequence[Message], Message]],
    by_turn: Mapping[int, Sequence[LoggedCall]],
    turn: int,
) -> Message | None:
    """What the model said next that was no idle call."""
    for later, _, message in said[turn + 1 :]:
        calls = by_turn.get(later, [])
        if not calls or not all(map(is_idle, calls)):
            return message
    return None


def _forced(call: LoggedCall) -> Message | None:
    """The answer that the model would have given instead of the call; None where its text was not kept."""
    return {"role": "assistant", "content": call.answer_before} if call.answer_before else None
