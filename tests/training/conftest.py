"""TRL is imported without vLLM, which no test of the trainers generates with."""

from __future__ import annotations

from governor_training.finetuning.backbone import without_vllm

without_vllm()
