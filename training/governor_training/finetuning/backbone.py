"""How TRL is brought in."""

from __future__ import annotations

import os


def without_vllm() -> None:
    """Imports TRL's trainers as if vLLM were not installed: where it does not generate, importing it costs
    ten seconds and a page of warnings. Nor is TRL to tell its makers what is trained here, unless the user
    wants that. No effect once they are imported."""
    quiet()
    from trl import import_utils

    def never(min_version: str | None = None) -> bool:
        return False

    available = import_utils.is_vllm_available
    import_utils.is_vllm_available = never
    try:
        import trl.trainer.grpo_trainer  # noqa: F401
    finally:
        import_utils.is_vllm_available = available


def quiet() -> None:
    """No telemetry, by the variable that the Hub's client reads."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
