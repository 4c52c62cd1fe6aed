"""The same rewards for verl, from what it has of a rollout: token ids, the mask of what the model wrote, the
entropies of the log-probability pass, and the score. Needs no verl."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from governor.rewards import RewardSettings, SpanChoice
from governor.spans import SpanKind
from governor_training.finetuning.online.measurement import completion_advantages, measured_calls
from governor_training.finetuning.online.methods import METHODS, Method, Outcome, judge, method
from governor_training.finetuning.online.rollouts import ChatFormat, PlayedCall, PlayedTurn


@dataclass(frozen=True, slots=True)
class Options:
    """`read_only` are the names of the tools that only ask for information; None: all do."""

    method: Method = field(default_factory=lambda: METHODS["sparse"])
    settings: RewardSettings = field(default_factory=RewardSettings)
    choice: SpanChoice = field(default_factory=SpanChoice)
    read_only: frozenset[str] | None = None
    call_weight: float = 1.0
    scaled: bool = True

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Options:
        """From a flat mapping, by the names that `governor train online` has for them. Raises `UsageError`
        for a method that there is not, ValueError for another name that is not known."""
        left = dict(told)
        chosen = method(str(left.pop("reward", "sparse")))
        read_only = left.pop("read_only", None)
        made: dict[str, Any] = {name: left.pop(name) for name in ("call_weight", "scaled") if name in left}
        kinds = left.pop("span_kinds", None)
        choice = {one.name: left.pop(one.name) for one in fields(SpanChoice) if one.name in left}
        if kinds is not None:
            choice["kinds"] = frozenset(SpanKind(kind) for kind in kinds)
        settings = {one.name: left.pop(one.name) for one in fields(RewardSettings) if one.name in left}
        if left:
            raise ValueError(f"the governor knows no setting {', '.join(sorted(left))}")
        return cls(
            chosen,
            RewardSettings(**_typed(RewardSettings, settings)),
            SpanChoice(**_typed(SpanChoice, choice)),
            None if read_only is None else frozenset(read_only),
            **made,
        )


def _typed(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Enumerations from their texts, as a configuration has them."""
    default = kind()
    return {
        name: type(getattr(default, name))(value) if isinstance(value, str) else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True)
class Response:
    """One rollout as verl has it. `uid` is its group's, `ids`, `mask` and `entropies` are those of the whole
    response: a run of ones in `mask` is a turn of the model, what lies between two is results."""

    uid: str
    score: float
    ids: Sequence[int]
    mask: Sequence[int]
    entropies: Sequence[float]


def advantages(responses: Sequence[Response], chat: ChatFormat, options: Options) -> list[list[float]]:
    """For each response the advantage of each of its tokens, 0 where the model did not write it.

    Groups may have any size and order. Raises ValueError on lengths that differ.
    """
    read = [_read(one, chat, options.read_only) for one in responses]
    outcomes = [
        Outcome(min(1.0, max(0.0, one.score)), measured_calls(turns, calls, one.entropies, options.choice))
        for one, (turns, calls) in zip(responses, read, strict=True)
    ]
    found: list[list[float]] = [[] for _ in responses]
    for places in _groups(responses):
        group = [outcomes[place] for place in places]
        judged = judge(group, len(group), options.method, options.settings, scaled=options.scaled)
        for place, one in zip(places, judged, strict=True):
            turns, calls = read[place]
            on_top = [options.call_weight * value for value in one.calls]
            mask = responses[place].mask
            values = completion_advantages(turns, calls, on_top, one.advantage, len(mask))
            found[place] = [value * bool(mine) for value, mine in zip(values, mask, strict=True)]
    return found


def _groups(responses: Sequence[Response]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(responses):
        groups.setdefault(one.uid, []).append(place)
    return list(groups.values())


def _read(
    response: Response, chat: ChatFormat, read_only: Collection[str] | None
) -> tuple[list[PlayedTurn], list[PlayedCall]]:
    if not len(response.ids) == len(response.mask) == len(response.entropies):
        raise ValueError("ids, mask and entropies of a response have different lengths")
    runs = _runs(response.mask)
    turns = [chat.turn(list(response.ids[start:stop]), start, []) for start, stop in runs]
    calls = []
    for number, turn in enumerate(turns[:-1]):
        result = chat.text(response.ids[turn.stop : turns[number + 1].start])
        made = chat.calls(turn, list(response.ids[turn.start : turn.stop]))
        # What cannot be read was a call all the same: a result came for it.
        for name, arguments in made or [("", "{}")]:
            calls.append(PlayedCall(number, name, arguments, result, read_only is None or name in read_only))
    return turns, calls


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of ones, as [start, stop)."""
    runs, start = [], None
    for place, mine in enumerate([*mask, 0]):
        if mine and start is None:
            start = place
        elif not mine and start is not None:
            runs.append((start, place))
            start = None
    return runs
