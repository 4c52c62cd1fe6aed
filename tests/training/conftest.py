"""TRL is imported without vLLM, which no test of the trainers generates with; and torch computes in one
thread, since several on a busy machine wait for each other."""

from __future__ import annotations

import torch

from governor_training.finetuning.backbone import without_vllm

without_vllm()
torch.set_num_threads(1)
