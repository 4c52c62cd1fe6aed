"""The model of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from governor_training.files.episodes import episodes
from governor_training.files.world import load_world
from governor_training.pretraining.episode import Episode, Recipe


def _episodes(rng: Random) -> Iterator[Episode]:
    return episodes(load_world(), rng)


def _check(directory: Path) -> Mapping[str, Any]:
    from governor_training.files.check import check

    return check(directory, load_world())


FILES = Recipe("files", "the bundled model of the second environment", _episodes, _check)
