"""What the entropies of a rollout's tokens say of its calls."""

from __future__ import annotations

from collections.abc import Sequence

from governor.rewards import CallTurn, SpanChoice, call_turns, segment_entropy, token_advantages
from governor_training.finetuning.online.rollouts import PlayedCall, PlayedTurn


def measured_calls(
    turns: Sequence[PlayedTurn],
    calls: Sequence[PlayedCall],
    entropies: Sequence[float] | None,
    choice: SpanChoice,
) -> tuple[CallTurn, ...]:
    """The read-only calls with what was measured around each. `entropies[i]` is of token i of the
    completion; None: nobody measured."""
    of_turns: list[float | None] = [None] * len(turns)
    for number, turn in enumerate(turns if entropies is not None else ()):
        assert entropies is not None
        results = [call.result for call in calls if call.turn < number]
        values = entropies[turn.start : turn.stop]
        of_turns[number] = segment_entropy(values, turn.texts, turn.spans, choice, results)
    made = [0] * len(turns)
    for call in calls:
        made[call.turn] += call.read_only
    return tuple(call_turns(of_turns, made))


def completion_advantages(
    turns: Sequence[PlayedTurn],
    calls: Sequence[PlayedCall],
    call_advantages: Sequence[float],
    outcome: float,
    length: int,
) -> list[float]:
    """The advantage of each token of a completion: `outcome`, and on the turn of each read-only call that
    call's own."""
    spans = [(turns[call.turn].start, turns[call.turn].stop) for call in calls if call.read_only]
    return token_advantages(spans, call_advantages, outcome, length)
