"""The floor under the accuracy: a run that falls through it ends, and gives back its best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STATE = "guard.json"


@dataclass(frozen=True, slots=True)
class Floor:
    """`accuracy` is the least mean accuracy over `window` generations; None: that of the first `window`
    generations less `drop`. Rollouts are sampled, so that it is the accuracy of sampling, not of greedy
    answers."""

    accuracy: float | None = None
    drop: float = 0.05
    window: int = 10

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 < self.drop <= 1:
            raise ValueError(f"the window is 1 or more and the drop in (0, 1]: {self}")


@dataclass(slots=True)
class Standing:
    """What the guard has seen, JSON-ready. `accuracies` and `rewards` are those of the last `window`
    generations; `best` is the folder of the best checkpoint, and `best_reward` the mean reward by then."""

    accuracies: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    begun_at: float | None = None
    best: str = ""
    best_reward: float | None = None
    stopped: str = ""


class Guard(TrainerCallback):
    """Told of each generation by the trainer, and asked by it when to stop.

    The best checkpoint is the one with the highest mean reward over the window before it, among those whose
    accuracy was not below the floor.
    """

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self.standing = Standing()

    @property
    def accuracy(self) -> float | None:
        """Mean over the window; None before the first generation."""
        seen = self.standing.accuracies
        return sum(seen) / len(seen) if seen else None

    @property
    def least(self) -> float | None:
        """The floor; None while it is not known where the run begins."""
        if self._floor.accuracy is not None:
            return self._floor.accuracy
        begun_at = self.standing.begun_at
        return None if begun_at is None else begun_at - self._floor.drop

    @property
    def broken(self) -> bool:
        """Whether the window is full, and its accuracy below the floor."""
        least, now = self.least, self.accuracy
        full = len(self.standing.accuracies) == self._floor.window
        return full and least is not None and now is not None and now < least

    def observe(self, accuracy: float, reward: float) -> None:
        """One generation of training: the share of right rollouts and the mean reward."""
        standing, window = self.standing, self._floor.window
        standing.accuracies = [*standing.accuracies, accuracy][-window:]
        standing.rewards = [*standing.rewards, reward][-window:]
        if standing.begun_at is None and len(standing.accuracies) == window:
            standing.begun_at = self.accuracy

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.broken and not self.standing.stopped:
            self.standing.stopped = (
                f"stopped at step {state.global_step}: the accuracy over the last {self._floor.window} "
                f"generations is {self.accuracy:.3f}, below the floor of {self.least:.3f}"
            )
            control.should_training_stop = True

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint is about to be written to `folder`: judges it, and writes what a resumed run needs to
        know into it."""
        standing = self.standing
        if standing.rewards and not self.broken:
            reward = sum(standing.rewards) / len(standing.rewards)
            if standing.best_reward is None or reward >= standing.best_reward:
                standing.best, standing.best_reward = str(folder), reward
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATE).write_text(json.dumps(asdict(standing)), "utf-8")

    def resume(self, folder: Path) -> None:
        """Goes on from a checkpoint. Raises OSError or ValueError where it has no such state."""
        saved: Mapping[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
        self.standing = Standing(**saved)
