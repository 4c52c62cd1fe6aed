"""What the agent is asked to do: copy one setting of one service into another file, in several wordings.

As in the atlas, the wording says how the model's wasteful teacher worked (`Habit`), and a share of all texts
is held out of training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from governor_training.environment import Split
from governor_training.files.world import KEYS, SERVICES, line


class Habit(StrEnum):
    """What the wasteful teacher does beyond the one call that it needs, a search for the key."""

    PLAIN = "plain"
    LOOK = "look"
    """Lists the directory first, though the path is conventional."""
    READ = "read"
    """Reads the whole file first."""
    REPEAT = "repeat"
    """Reads the whole file first, and searches it twice."""
    CHECK = "check"
    """Reads the whole file first, and aside."""
    ASIDE = "aside"
    """Reads a file that has nothing to do with the task."""
    THOROUGH = "thorough"
    """Lists the directory, reads the whole file, searches it twice, and reads aside."""


@dataclass(frozen=True, slots=True)
class Wording:
    """`text` has the places {key}, {service} and {target}, the file to write."""

    text: str
    habit: Habit


WORDINGS: tuple[Wording, ...] = (
    Wording("Copy the {key} of {service} to {target}.", Habit.PLAIN),
    Wording("Put the {key} of {service} into {target}.", Habit.PLAIN),
    Wording("Look around, then copy the {key} of {service} to {target}.", Habit.LOOK),
    Wording("Find the {key} of {service} and write it to {target}.", Habit.LOOK),
    Wording("Set the {key} of {service} in {target} as in its own file.", Habit.READ),
    Wording("Be careful: copy the {key} of {service} to {target}.", Habit.READ),
    Wording("Make sure of the {key} of {service} and enter it in {target}.", Habit.REPEAT),
    Wording("Look twice, then bring the {key} of {service} to {target}.", Habit.REPEAT),
    Wording("Verify the {key} of {service} and note it in {target}.", Habit.CHECK),
    Wording("Record the {key} of {service} in {target}, checked.", Habit.CHECK),
    Wording("With the whole system in mind, save the {key} of {service} in {target}.", Habit.ASIDE),
    Wording("For the audit, state the {key} of {service} in {target}.", Habit.ASIDE),
    Wording("Be thorough: copy the {key} of {service} to {target}.", Habit.THOROUGH),
    Wording("Research the {key} of {service} and document it in {target}.", Habit.THOROUGH),
)
_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Edit:
    """One setting to copy to the file `target`, which has the service's name."""

    service: str
    key: str
    wording: Wording

    @property
    def target(self) -> str:
        return f"out/{self.service}.txt"

    @property
    def text(self) -> str:
        return self.wording.text.format(key=self.key, service=self.service, target=self.target)

    @property
    def split(self) -> Split:
        """Decided by the text, so that every sampler agrees."""
        digest = hashlib.sha256(self.text.encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32
        return Split.HELD_OUT if held_out else Split.TRAIN

    def sentence(self, value: str) -> str:
        """The one form that the last message has."""
        return f"The {self.key} of {self.service} is {value}."

    def written(self, value: str) -> str:
        """What is to stand in the target."""
        return line(self.key, value)


def edits(split: Split) -> Iterator[Edit]:
    """Every edit of a split, in a fixed order."""
    for service in SERVICES:
        for key in KEYS:
            for wording in WORDINGS:
                edit = Edit(service, key, wording)
                if edit.split is split:
                    yield edit


def sample(rng: random.Random) -> Edit:
    """An edit that training may see."""
    while True:
        edit = Edit(rng.choice(list(SERVICES)), rng.choice(KEYS), rng.choice(WORDINGS))
        if edit.split is Split.TRAIN:
            return edit
