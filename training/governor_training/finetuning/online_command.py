"""`governor train online`: GRPO with real tools and the entropy rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from governor_training.finetuning.online import run as online


def run(arguments: Sequence[str]) -> int:
    """Raises `TrainingError`."""
    options, config, model = online.parse(arguments)
    summary = online.run(options, config, model)
    if config.should_save:
        first, last = summary["first"], summary["last"]
        for name in first:
            print(f"{name:16} {first[name]:8.3f} -> {last[name]:8.3f}")
        print(f"Model: {config.output_dir}, figures: {Path(config.output_dir) / online.SUMMARY}")
    return 0
