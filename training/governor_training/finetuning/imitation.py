"""TRL's SFT trainer with a weight for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """Also pads the weights, 0 where there is no token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        weights = [torch.tensor(example["weights"], dtype=torch.float32) for example in examples]
        batch["weights"] = pad(weights, padding_value=0, padding_side="right")[:, : batch["labels"].shape[1]]
        return batch


class WeightedTrainer(SFTTrainer):
    """Minimises -sum(w_t log p_t) / (mean weight * number of trained tokens).

    Rows have `input_ids`, `labels` (-100: not trained) and `weights`. `mean_weight` is that of the trained
    tokens of the whole data, so that a learning rate means the same with and without weights.
    """

    def __init__(self, *args: Any, mean_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mean_weight = mean_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights = inputs.pop("weights") / self._mean_weight
        return super().compute_loss(_Weighted(model, weights), inputs, return_outputs, num_items_in_batch)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "weights" not in self._signature_columns:
            self._signature_columns.append("weights")


class _Weighted:
    """The model, with the log-probabilities that the loss is made of multiplied by the weights. They are
    those of the tokens from the second one on."""

    def __init__(self, model: Any, weights: torch.Tensor) -> None:
        self._model, self._weights = model, weights

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        if inputs.get("fused_lm_head"):
            weights = self._weights[:, 1:].to(outputs.log_probs.device)
            outputs.log_probs = outputs.log_probs * weights
        return outputs
