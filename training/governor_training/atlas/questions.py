"""Questions about the world: one hop or two, several wordings, and a split that training never sees.

The wording also says how the model's wasteful teacher worked (`Habit`): some people ask to double-check, so
it looked the same thing up twice; some ask for background, so it looked up a field that the question does
not need.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from governor_training.atlas.world import FIELDS, KEY_FIELDS, World


class Habit(StrEnum):
    """What the wasteful teacher does beyond the calls that the question needs."""

    PLAIN = "plain"
    REPEAT = "repeat"
    """The same lookup once more."""
    EXTRA = "extra"
    """A lookup of a field that was not asked for."""
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Wording:
    """`text` has the places {field} and {subject}; a subject is a country, or a description of one."""

    text: str
    habit: Habit
    saves: bool = False
    """Whether the answer is to be saved with the effectful tool."""


WORDINGS: tuple[Wording, ...] = (
    Wording("What is the {field} of {subject}?", Habit.PLAIN),
    Wording("I need the {field} of {subject}.", Habit.PLAIN),
    Wording("Please double-check: what is the {field} of {subject}?", Habit.REPEAT),
    Wording("Tell me for certain the {field} of {subject}.", Habit.REPEAT),
    Wording("With some background, what is the {field} of {subject}?", Habit.EXTRA),
    Wording("I am writing about {subject}. Which {field} does it have?", Habit.EXTRA),
    Wording("Be thorough: which {field} does {subject} have?", Habit.BOTH),
    Wording("Research the {field} of {subject} and report it.", Habit.BOTH),
    Wording("Save the {field} of {subject} to my notes.", Habit.PLAIN, saves=True),
    Wording("Note down the {field} of {subject}, double-checked.", Habit.REPEAT, saves=True),
)

_TWO_HOPS = {"capital": "the country whose capital is {value}", "domain": "the country with domain {value}"}
_HELD_OUT_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Question:
    """`key` is the field that describes the country where the question does not name it (two hops), else
    None."""

    country: str
    field: str
    key: str | None
    wording: Wording
    text: str
    answer: str
    key_value: str | None = None

    @property
    def hops(self) -> int:
        return 1 if self.key is None else 2

    @property
    def held_out(self) -> bool:
        """Decided by the question's text, so that every sampler agrees."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32

    def sentence(self, country: str, value: str) -> str:
        """The one form that answers have."""
        return f"The {self.field} of {country} is {value}."


def ask(world: World, country: str, field: str, key: str | None, wording: Wording) -> Question:
    """The question, whose answer is the true value."""
    key_value = None if key is None else world.fact(country, key).value
    subject = country if key is None else _TWO_HOPS[key].format(value=key_value)
    text = wording.text.format(field=field, subject=subject)
    return Question(country, field, key, wording, text, world.fact(country, field).value, key_value)


def sample(world: World, rng: random.Random, *, two_hop_share: float = 0.25) -> Question:
    """A question that training may see."""
    while True:
        country, field = rng.choice(world.countries), rng.choice(list(FIELDS))
        keys = [key for key in KEY_FIELDS if key != field]
        key = rng.choice(keys) if rng.random() < two_hop_share else None
        question = ask(world, country, field, key, rng.choice(WORDINGS))
        if not question.held_out:
            return question


def held_out(world: World) -> Iterator[Question]:
    """Every question that training never sees, in a fixed order."""
    for country in world.countries:
        for field in FIELDS:
            for key in (None, *(key for key in KEY_FIELDS if key != field)):
                for wording in WORDINGS:
                    question = ask(world, country, field, key, wording)
                    if question.held_out:
                        yield question


def held_out_sample(
    world: World, count: int, seed: int, *, two_hop_share: float = 0.25
) -> Sequence[Question]:
    """`count` held-out questions with the mix of hops that training has."""
    rng = random.Random(seed)
    pool = list(held_out(world))
    rng.shuffle(pool)
    two = [question for question in pool if question.hops == 2]
    one = [question for question in pool if question.hops == 1]
    twos = round(count * two_hop_share)
    if len(two) < twos or len(one) < count - twos:
        raise ValueError(
            f"there are {len(one)} held-out questions of one hop and {len(two)} of two; asked for {count}"
        )
    chosen = one[: count - twos] + two[:twos]
    rng.shuffle(chosen)
    return chosen
