"""What a conversation might have been without the calls that changed nothing.

The governor asks for a forced answer before a call and after its result, at the same position. Where both
are the same, the model would have answered the same without the call; so the conversation without the call
and its result is one that it might as well have had, and its score is known. Nothing is played again.

A model that guesses gives the same answer twice, too, and sometimes it is right. Learning from such a
conversation teaches guessing. So only calls are left out before which the forced answer was sure, as the
governor's threshold has it.

What is left is spliced: a later turn was generated with the result in view. Its thought may mention it, and
then it is a worse example than a real one; with results that changed nothing, it rarely does.
"""

from __future__ import annotations

from dataclasses import replace

from governor.labels import Label
from governor.rewards.baselines import RIGHT
from governor_training.environment import Message
from governor_training.finetuning.trajectory import LoggedCall, Trajectory

IDLE = frozenset({Label.LOW_VALUE, Label.CONFIRMATION})
"""The answer was the same before and after."""
SURE = 0.9
"""The least margin of a forced answer that is no guess: that of the policy `threshold`."""


def shortened(trajectory: Trajectory, least_margin: float = SURE) -> Trajectory | None:
    """The conversation without its idle calls; None where it was not right, or where there is nothing to
    leave out.

    A turn of several calls is left out only as a whole. A turn in which the model spoke to the user stays.
    """
    if trajectory.score is None or trajectory.score < RIGHT:
        return None
    idle = {turn for turn in _turns(trajectory) if _is_idle(trajectory, turn, least_margin)}
    if not idle:
        return None
    messages: list[Message] = []
    number, gone = -1, False
    kept: dict[int, int] = {}
    for message in trajectory.messages:
        if message["role"] == "assistant":
            number += 1
            gone = number in idle
            if not gone:
                kept[number] = len(kept)
        elif message["role"] != "tool":
            gone = False
        if not gone:
            messages.append(message)
    calls = [replace(call, turn=kept[call.turn]) for call in trajectory.calls if call.turn in kept]
    proposals = {kept[turn]: said for turn, said in trajectory.proposals.items() if turn in kept}
    return replace(
        trajectory,
        id=f"{trajectory.id} shortened",
        messages=messages,
        calls=[_unmeasured(call) for call in calls],
        proposals=proposals,
        kind="shortened",
    )


def _turns(trajectory: Trajectory) -> range:
    return range(trajectory.given, trajectory.turns)


def is_idle(call: LoggedCall, least_margin: float = SURE) -> bool:
    """Whether an executed call only read, and could have been left out: the forced answer was sure, and
    stayed."""
    sure = call.margin is not None and call.margin >= least_margin
    return bool(call.read_only) and not call.withheld and call.label in IDLE and sure


def _is_idle(trajectory: Trajectory, turn: int, least_margin: float) -> bool:
    calls = [call for call in trajectory.calls if call.turn == turn]
    said = [message for message in trajectory.messages if message["role"] == "assistant"][turn]
    return bool(
        calls
        and len(calls) == len(said.get("tool_calls") or ())
        and not (said.get("content") or "").strip()
        and all(is_idle(call, least_margin) for call in calls)
    )


def _unmeasured(call: LoggedCall) -> LoggedCall:
    """The entropies were those of another context."""
    return replace(call, before=None, after=None)
