"""Models that exist already: in a folder, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from governor_training.errors import UsageError


def check_model(model: str | Path, **options: Any) -> None:
    """Raises `UsageError` where there is no such model, so that this is known before anything is loaded.
    `options` are those of `from_pretrained`."""
    try:
        AutoConfig.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"cannot load the model {model}: give a folder with a model in it, or a model's name on the"
            f" Hugging Face hub ({why})"
        ) from None
