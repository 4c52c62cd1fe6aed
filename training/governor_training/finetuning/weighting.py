"""What each token of a log is worth to a learner that imitates: per-segment advantage-weighted regression.

Logs have few conversations of one question, often one, by policies that nobody kept. Imitation with weights
exp(advantage / temperature) needs neither their probabilities nor a reference model, and cannot explode
(arXiv 1910.00177; for conversations: "Offline RL by Reward-Weighted Fine-Tuning for Conversation
Optimization", NeurIPS 2025). A turn whose calls told the model nothing has the weight 0: what is bad in a
good conversation is not imitated (ATLaS, arXiv 2503.02197, trains on the critical third of the steps).

Two passes over data on disk: conversations are measured and written as tokens, then sorted by question and
weighted. Neither holds more in memory than a batch, or the conversations of one question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from hashlib import sha256
from itertools import groupby, islice
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as arrow
from datasets import Dataset, Features, List, Value

from governor.rewards import (
    CallTurn,
    RewardSettings,
    SpanChoice,
    dense_rewards,
    dense_total,
    eapo_rewards,
    imitation_weights,
    judged,
    normalised,
    otc_rewards,
    pooled_advantages,
    sparse_reward,
)
from governor_training.errors import UsageError
from governor_training.finetuning.segments import CONTEXT, IGNORED, Encoded, Encoder, exact_entropies
from governor_training.finetuning.trajectory import LoggedCall, Trajectory

BATCH = 16
"""Conversations that are measured at a time."""
ROWS = 256
"""Rows that are written at a time."""

NO_SCORE = (
    "no conversation of the log has a score: tell the governor how they ended (POST /governor/feedback), or"
    " give the rows a score from 0 to 1"
)


class Reward(StrEnum):
    """What a conversation is worth."""

    SPARSE = "sparse"
    DENSE = "dense"
    SCORE = "score"
    """The score alone."""
    OTC = "otc"
    EAPO = "eapo"


class Entropies(StrEnum):
    """Where the entropies of the segments come from."""

    EXACT = "exact"
    """Computed anew from the whole distribution, by the model that training begins with."""
    LOGGED = "logged"
    """The governor's estimates, of the model that served. For a model that cannot be run once more."""


class Baseline(StrEnum):
    """What the reward of a conversation is compared with."""

    ALL = "all"
    """The mean of all conversations: two that are equally good are imitated equally."""
    QUESTION = "question"
    """The mean of those of the same question, so that the best of a hard one counts as well; where it was
    asked once, that of all."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """How advantages become weights.

    `temperature` of the exponential: smaller follows the best conversations alone. `most` is the largest
    weight. `step_weight` of a call's own advantage beside the conversation's. With `mask_idle`, the turns of
    calls that told nothing are not imitated. Sequences whose largest weight is below `least` are left out.
    """

    reward: Reward = Reward.SPARSE
    baseline: Baseline = Baseline.ALL
    temperature: float = 0.15
    most: float = 20.0
    step_weight: float = 0.0
    mask_idle: bool = True
    least: float = 0.05


MEASURED = Features(
    {
        "conversation": Value("int64"),
        "group": Value("string"),
        "score": Value("float64"),
        "calls": Value("int32"),
        "reward": Value("float64"),
        "ids": List(Value("int32")),
        "turns": List(Value("int32")),
        "step_turns": List(Value("int32")),
        "judgements": List(Value("float64")),
        "step_rewards": List(Value("float64")),
    }
)
WEIGHTED = Features(
    {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "weights": List(Value("float32"))}
)


class Measurer:
    """Makes rows of tokens and rewards from conversations. `model` has TRL's fused head with entropies; None
    where the logged ones are taken."""

    def __init__(
        self,
        encoder: Encoder,
        model: Any | None,
        settings: RewardSettings,
        choice: SpanChoice,
        reward: Reward = Reward.SPARSE,
        max_length: int | None = None,
    ) -> None:
        self._encoder, self._model = encoder, model
        self._settings, self._choice, self._reward = settings, choice, reward
        self._max_length = max_length
        self.unscored = self.cut = self.conversations = 0

    def rows(self, trajectories: Iterable[Trajectory]) -> Iterator[dict[str, Any]]:
        """A row for each sequence. Conversations without a score are left out and counted."""
        scored = self._scored(trajectories)
        while batch := list(islice(scored, BATCH)):
            encoded = [self._encoder.encode(one) for one in batch]
            entropies = self._entropies([sequence for found in encoded for sequence in found])
            for trajectory, sequences in zip(batch, encoded, strict=True):
                own = [next(entropies) for _ in sequences]
                yield from self._rows(self.conversations, trajectory, sequences, own)
                self.conversations += 1

    def measured(self, trajectory: Trajectory) -> Trajectory:
        """The conversation with exact entropies around its calls."""
        sequences = self._encoder.encode(trajectory)
        return self._with_entropies(trajectory, sequences, list(self._entropies(sequences)))

    def _scored(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        for trajectory in trajectories:
            if trajectory.score is None:
                self.unscored += 1
            else:
                yield trajectory

    def _entropies(self, sequences: Sequence[Encoded]) -> Iterator[list[float] | None]:
        if self._model is None:
            yield from [None] * len(sequences)
            return
        pad = self._encoder.tokenizer.pad_token_id or 0
        # As many tokens at a time as conversations are long: no batch of one long and many short ones.
        for start in range(0, len(sequences), BATCH):
            yield from exact_entropies(self._model, sequences[start : start + BATCH], pad)

    def _rows(
        self,
        number: int,
        trajectory: Trajectory,
        sequences: Sequence[Encoded],
        entropies: Sequence[list[float] | None],
    ) -> Iterator[dict[str, Any]]:
        told = self._with_entropies(trajectory, sequences, entropies)
        calls, score = told.executed, told.score
        assert score is not None
        turns = [call.measured for call in calls]
        by_turn = _by_turn(calls, judged(turns, self._settings))
        rewards = _by_turn(calls, dense_rewards(score, turns, self._settings))
        for sequence in sequences:
            own = sorted({turn for turn in sequence.turns if turn in by_turn})
            ids, marks = sequence.ids, sequence.turns
            if self._max_length is not None and len(ids) > self._max_length:
                self.cut += 1
                ids, marks = ids[: self._max_length], marks[: self._max_length]
            yield {
                "conversation": number,
                "group": told.group,
                "score": score,
                "calls": len(calls),
                "reward": self._value(score, turns),
                "ids": ids,
                "turns": marks,
                # A turn is in one sequence, so that no step counts twice.
                "step_turns": own,
                "judgements": [_number(by_turn[turn]) for turn in own],
                "step_rewards": [_number(rewards[turn]) for turn in own],
            }

    def _value(self, score: float, calls: Sequence[CallTurn]) -> float:
        if self._reward is Reward.SPARSE:
            return sparse_reward(score, calls, self._settings)
        return dense_total(score, calls, self._settings) if self._reward is Reward.DENSE else score

    def _with_entropies(
        self,
        trajectory: Trajectory,
        sequences: Sequence[Encoded],
        entropies: Sequence[list[float] | None],
    ) -> Trajectory:
        """The calls with the entropies of the turns around them, where they were computed."""
        results = [
            message.get("content") or "" for message in trajectory.messages if message["role"] == "tool"
        ]
        found: dict[int, float | None] = {}
        for sequence, values in zip(sequences, entropies, strict=True):
            if values is None:
                return trajectory
            found |= self._encoder.segment_entropies(sequence, values, self._choice, results)
        calls = [
            replace(
                call, before=found.get(call.turn), after=None if call.withheld else found.get(call.turn + 1)
            )
            for call in trajectory.calls
        ]
        return replace(trajectory, calls=calls)


def measured_data(
    read: Callable[[], Iterable[Trajectory]], measurer: Measurer, folder: Path, key: Mapping[str, Any]
) -> Dataset:
    """The rows of all conversations, in a file under `folder` that is mapped and not loaded. `key` says what
    they were made from and how: with the same key they are not made again. Raises `UsageError` where no
    conversation has a score."""

    def rows() -> Iterator[dict[str, Any]]:
        yield from measurer.rows(read())
        if not measurer.conversations:
            raise UsageError(NO_SCORE)

    return on_disk(rows, MEASURED, folder, key)


def weighted_data(measured: Dataset, weighting: Weighting, folder: Path) -> Dataset:
    """What is trained on: tokens, labels and weights. Raises `UsageError` where nothing is left."""
    mean = fmean(measured["reward"])
    # Only the order is in memory; the rows stay on disk.
    groups = list(measured["group"])
    ordered = measured.select(sorted(range(len(groups)), key=lambda place: (groups[place], place)))
    key = {"measured": measured._fingerprint, **asdict(weighting)}

    def rows() -> Iterator[dict[str, Any]]:
        for _, members in groupby(ordered, key=lambda row: row["group"]):
            yield from weighted(list(members), weighting, mean)

    found = on_disk(rows, WEIGHTED, folder, key)
    if not len(found):
        raise UsageError("no turn of the log is worth imitating: all weights are 0")
    return found


def weighted(
    members: Sequence[Mapping[str, Any]], weighting: Weighting, mean: float
) -> Iterator[dict[str, Any]]:
    """The rows of one question with their weights. `mean` is the reward of all conversations."""
    firsts = list({row["conversation"]: row for row in reversed(members)}.values())[::-1]
    rewards = _rewards(firsts, weighting.reward)
    if weighting.baseline is Baseline.QUESTION and len(rewards) > 1:
        compared = normalised(rewards, scaled=False)
    else:
        compared = [reward - mean for reward in rewards]
    advantage = {row["conversation"]: value for row, value in zip(firsts, compared, strict=True)}
    steps = pooled_advantages(
        [[None if isnan(one) else one for one in row["step_rewards"]] for row in members]
    )
    for row, own in zip(members, steps, strict=True):
        worth = turn_weights(row, advantage[row["conversation"]], own, weighting)
        weights = [0.0 if turn == CONTEXT else worth[turn] for turn in row["turns"]]
        if max(weights, default=0.0) < weighting.least:
            continue
        yield {
            "input_ids": row["ids"],
            "labels": [t if w > 0 else IGNORED for t, w in zip(row["ids"], weights, strict=True)],
            "weights": weights,
        }


def turn_weights(
    row: Mapping[str, Any], advantage: float, steps: Sequence[float], weighting: Weighting
) -> dict[int, float]:
    """The weight of each turn of a row."""
    turns = sorted({turn for turn in row["turns"] if turn != CONTEXT})
    own = dict(zip(row["step_turns"], steps, strict=True))
    judgements = dict(zip(row["step_turns"], row["judgements"], strict=True))
    values = imitation_weights(
        [advantage + weighting.step_weight * own.get(turn, 0.0) for turn in turns],
        temperature=weighting.temperature,
        most=weighting.most,
    )
    idle = {turn for turn, value in judgements.items() if value == 0.0} if weighting.mask_idle else set()
    return {turn: 0.0 if turn in idle else value for turn, value in zip(turns, values, strict=True)}


def _rewards(rows: Sequence[Mapping[str, Any]], reward: Reward) -> list[float]:
    """Those of the conversations of one question; the baselines' depend on each other."""
    scores, calls = [row["score"] for row in rows], [row["calls"] for row in rows]
    if reward is Reward.OTC:
        return otc_rewards(scores, calls)
    if reward is Reward.EAPO:
        return eapo_rewards(scores, calls)
    return [row["reward"] for row in rows]


def _by_turn(calls: Sequence[LoggedCall], values: Sequence[float | None]) -> dict[int, float | None]:
    """The mean over the calls of each turn; None where none of them is to be judged."""
    found: dict[int, float | None] = {}
    for turn in dict.fromkeys(call.turn for call in calls):
        own = [v for call, v in zip(calls, values, strict=True) if call.turn == turn and v is not None]
        found[turn] = fmean(own) if own else None
    return found


def _number(value: float | None) -> float:
    return nan if value is None else value


def on_disk(
    rows: Callable[[], Iterator[dict[str, Any]]],
    features: Features,
    folder: Path,
    key: Mapping[str, Any],
) -> Dataset:
    """The rows as a file that is mapped into memory. What is there for the same `key` is taken."""
    name = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = folder / f"{name}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        schema = features.arrow_schema
        made = rows()
        with part.open("wb") as file, arrow.ipc.new_stream(file, schema) as stream:
            while batch := list(islice(made, ROWS)):
                stream.write_table(arrow.Table.from_pylist(batch, schema=schema))
        part.replace(path)
    return Dataset.from_file(str(path))
