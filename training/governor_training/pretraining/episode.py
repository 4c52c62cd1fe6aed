"""The text that a model is trained on, and which of it the model learns to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    learn: bool


@dataclass(frozen=True, slots=True)
class Episode:
    """`prefix` is the system turn, the same for most episodes, so that a batch computes it once."""

    prefix: str
    pieces: list[Piece]

    @property
    def text(self) -> str:
        return self.prefix + "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made from. `episodes` gives episodes without end, the same for the same state of the
    random numbers; `check` looks at what the model in a folder can do, and returns figures to print."""

    name: str
    about: str
    episodes: Callable[[Random], Iterator[Episode]]
    check: Callable[[Path], Mapping[str, Any]]
    seed: int = 1
