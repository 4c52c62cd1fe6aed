"""A plug-in for verl (0.9, the V1 trainer), which finds it by the entry-point group `verl.plugins`: a trainer
whose advantages are the governor's. docs/training.md says how it is launched.

verl has an environment of its own: its pins of transformers and of vLLM exclude those of TRL. From
this package the plug-in needs no more than the rewards and what reads a conversation's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from governor_training.finetuning.online.rollouts import ChatFormat
from governor_training.finetuning.verl_estimator import Options, Response, advantages

NAME = "governor_sync"
"""Of the trainer: trainer.v1.trainer_mode."""
FIELDS = ("uid", "responses", "response_mask", "rm_scores", "entropy")


@register_trainer(NAME)
class GovernorTrainer(PPOTrainerSync):
    """verl's synchronous trainer. The section `governor` of its configuration says what is rewarded, by the
    names of `governor train online`."""

    def __init__(self, config: Any, *arguments: Any, **named: Any) -> None:
        # The base class knows that it is synchronous by this name.
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config, *arguments, **named)
        told = config.get("governor")
        plain: Any = OmegaConf.to_container(told, resolve=True) if told else {}
        self._options = Options.of(plain)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """What verl makes of the rewards first (KL, correction of the rollouts), then our advantages in the
        place of its own."""
        batch = super()._compute_advantage(batch, metrics)
        responses = responses_of(self._queued(batch))
        values = advantages(responses, ChatFormat(self.tokenizer), self._options)
        metrics["governor/score"] = fmean(one.score for one in responses)
        nested = torch.nested.as_nested_tensor([torch.tensor(row) for row in values], layout=torch.jagged)
        fields = TensorDict({"advantages": nested, "returns": nested}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _queued(self, batch: Any) -> Mapping[str, Any]:
        try:
            data: Mapping[str, Any] = tq.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=list(FIELDS)
            )
            return {name: data[name] for name in FIELDS}
        except KeyError as error:
            raise RuntimeError(
                f"verl has not written {error}: the entropies come from the pass for the old "
                "log-probabilities, so algorithm.rollout_correction.bypass_mode must be off"
            ) from error


def responses_of(data: Mapping[str, Any]) -> list[Response]:
    """From nested tensors of shape (B, each response's own length)."""
    uids = [str(uid) for uid in data["uid"].tolist()]
    columns = (data[name].unbind() for name in FIELDS[1:])
    return [
        Response(uid, float(scores.sum()), ids.tolist(), mask.int().tolist(), entropies.float().tolist())
        for uid, ids, mask, scores, entropies in zip(uids, *columns, strict=True)
    ]
