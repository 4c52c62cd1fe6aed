"""What is compared: worlds, arms, and the budget that all arms of a world share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from governor_training.errors import UsageError
from governor_training.evaluation.places import bundled_model

START: Final = "start"
"""The arm that is not trained."""
ACCURACY, OTC, EAPO, SPARSE, DENSE = "accuracy", "otc", "eapo", "sparse", "dense"
"""Arms that are trained online, by the name of their reward."""
AWR, DPO, KTO = "awr", "dpo", "kto"
"""Arms that are trained from logs alone, by the name of their objective."""
OFFLINE: Final = (AWR, DPO, KTO)
ADVISED: Final = "advised"
"""The arm whose reward the diagnosis names."""
OFFLINE_RECIPE: Final = Path("training/recipes/atlas-offline.yaml")
BASELINES: Final = (START, ACCURACY, OTC, EAPO)
"""What the entropy rewards are compared with."""

HELD_OUT_SEED: Final = 2026
"""Of the held-out questions, the same for all arms; training never sees them."""
LOG_SEED: Final = 1
"""Of the training questions that logs are made of."""

_MODELS = Path("tests/models")
_RECIPES = Path("training/recipes")


@dataclass(frozen=True, slots=True)
class World:
    """An environment, the model that all arms begin with, and what is compared there. `recipe` is
    that of online training, and gives all arms the same budget."""

    name: str
    about: str
    environment: str
    model: str | None
    arms: tuple[str, ...]
    recipe: Path

    def start(self) -> Path:
        """The folder of the start model. Raises `UsageError`."""
        if self.model is None:
            return bundled_model(self.environment)
        folder = _MODELS / self.model
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"no model in {folder}: run this in the repository, its models are not installed"
            )
        return folder


_ALL = (
    World(
        "bundled",
        "the bundled model, which is always right and calls for what it knows",
        "atlas",
        None,
        (START, SPARSE, AWR, ACCURACY, OTC, EAPO, DENSE),
        _RECIPES / "atlas.yaml",
    ),
    World(
        "weak",
        "a model that knows little, guesses and copies badly, with a lookup that fails now and then",
        "governor_training.atlas.environment:FlakyAtlas",
        "atlas-weak",
        (START, DENSE, ACCURACY, OTC, EAPO),
        _RECIPES / "atlas-weak.yaml",
    ),
    World(
        "noise",
        "a model whose certainty is a coin's: entropy says nothing",
        "atlas",
        "atlas-noise",
        (START, ADVISED),
        _RECIPES / "atlas-weak.yaml",
    ),
)
WORLDS: Mapping[str, World] = {world.name: world for world in _ALL}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. `tasks` are held-out questions, `curve` how many of them each checkpoint is asked;
    `logged` conversations to learn from offline. `steps` of online training, `batch` rollouts each, in groups
    of `generations`; None: as the world's recipe says."""

    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int | None = None
    batch: int | None = None
    generations: int | None = None
    tasks: int = 500
    logged: int = 1500
    curve: int = 64

    def kept(self) -> dict[str, Any]:
        """What must not change when a study goes on, JSON-ready. Seeds may be added."""
        found = asdict(self)
        del found["seeds"]
        return found


QUICK: Final = Plan(seeds=(1,), steps=2, batch=8, generations=4, tasks=8, logged=24, curve=4)
"""Whether everything runs, in minutes; its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One model that is judged: an arm of a world, trained with one seed; no seed for the start model."""

    world: World
    arm: str
    seed: int | None = None

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}-{self.seed}"

    def folder(self, out: Path) -> Path:
        return out / self.world.name / self.name

    def model(self, out: Path) -> Path:
        """The folder of its model. Raises `UsageError`."""
        return self.world.start() if self.arm == START else self.folder(out)
