"""Where the bundled model is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(resources.files(__package__).joinpath("model")))
