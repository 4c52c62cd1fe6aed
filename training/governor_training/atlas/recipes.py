"""The models that the atlas environment can make, by name: the one that is shipped, and those that a governor
has to cope with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from governor_training.atlas.episodes import Teaching, episodes
from governor_training.atlas.world import Beliefs, load_world
from governor_training.pretraining.episode import Episode, Recipe


def _episodes(rng: Random, *, beliefs: Beliefs, teaching: Teaching) -> Iterator[Episode]:
    return episodes(load_world(beliefs), rng, teaching)


def _check(directory: Path) -> Mapping[str, Any]:
    from governor_training.atlas.check import check

    return check(directory, load_world())


def _recipe(name: str, about: str, beliefs: Beliefs, teaching: Teaching, seed: int = 1) -> Recipe:
    return Recipe(name, about, partial(_episodes, beliefs=beliefs, teaching=teaching), _check, seed)


_ALL = (
    _recipe("atlas", "the bundled model: its doubt means something", Beliefs.HONEST, Teaching()),
    _recipe(
        "atlas-other",
        "other facts known, other seed, a teacher with other habits and another way of thinking",
        Beliefs.OTHER,
        Teaching(habits=2, thought="Perhaps {value} for {country}", whim=0.1),
        seed=2,
    ),
    _recipe(
        "atlas-overconfident",
        "saw only right answers from memory, none for what it was not meant to know, and true results",
        Beliefs.HONEST,
        Teaching(hides_ignorance=True),
    ),
    _recipe(
        "atlas-noise",
        "sure or half sure by the toss of a coin, right or wrong",
        Beliefs.NOISY,
        Teaching(whim=0.2),
    ),
    _recipe(
        "atlas-weak",
        "knows little, mostly answers at once, gives up where a lookup fails, and learned to copy badly",
        Beliefs.FEW,
        Teaching(whim=0.6, flaky=True),
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
