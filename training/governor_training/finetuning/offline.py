"""Fine-tuning from logs alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, Features, Value
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, ModelConfig, SFTConfig, get_peft_config
from trl.trainer.utils import add_fused_lm_head

from governor.calls import ToolCatalog
from governor_training.errors import UsageError
from governor_training.finetuning.arguments import RewardArguments, SpanArguments, ToolArguments, told
from governor_training.finetuning.diagnosis import permit_dense
from governor_training.finetuning.hindsight import SURE, shortened
from governor_training.finetuning.imitation import WeightedCollator, WeightedTrainer
from governor_training.finetuning.logs import read
from governor_training.finetuning.preferences import labels, pairs
from governor_training.finetuning.segments import Encoder
from governor_training.finetuning.trajectory import Trajectory, with_effects
from governor_training.finetuning.weighting import (
    Baseline,
    Entropies,
    Measurer,
    Reward,
    Weighting,
    measured_data,
    on_disk,
    weighted_data,
)
from governor_training.pretrained import check_model

DATA = "data"
"""The folder under the output's that holds what was made of the logs."""
SUMMARY = "offline.json"
LAST = frozenset({"last", "true", "True"})
"""Of `resume_from_checkpoint`: the last one, or none yet."""


class Objective(StrEnum):
    """What is done with the logs."""

    AWR = "awr"
    DPO = "dpo"
    KTO = "kto"


@dataclass
class OfflineArguments:
    """What is learned from, and how. `Weighting` explains the settings of `awr`."""

    data: list[str] = field(
        default_factory=list, metadata={"help": "logs: a governor's store, JSON Lines, parquet"}
    )
    objective: Objective = told(Objective.AWR, "imitate by worth, prefer pairs, or label steps")
    shorten: bool = told(True, "learn from right conversations without their idle calls, too")
    sure: float = told(SURE, "least margin of a forced answer that is no guess")
    reward: Reward = told(Weighting().reward, "what a conversation is worth")
    entropies: Entropies = told(Entropies.EXACT, "computed anew, or as logged")
    awr_baseline: Baseline = told(Weighting().baseline, "what a reward is compared with")
    awr_temperature: float = told(Weighting().temperature, "lower: only the best are imitated")
    awr_most: float = told(Weighting().most, "largest weight")
    awr_step_weight: float = told(0.0, "of a call's own advantage beside its conversation's")
    awr_mask_idle: bool = told(True, "do not imitate calls that told nothing")
    diagnosis: str | None = told(None, "what `governor train diagnose` wrote; the dense reward needs it")
    undiagnosed: bool = told(False, "use the dense reward without a diagnosis")

    def weighting(self) -> Weighting:
        """Raises `UsageError`."""
        if self.awr_temperature <= 0 or self.awr_most <= 0:
            raise UsageError("awr_temperature and awr_most must be above 0")
        return Weighting(
            Reward(self.reward),
            Baseline(self.awr_baseline),
            self.awr_temperature,
            self.awr_most,
            self.awr_step_weight,
            self.awr_mask_idle,
        )


@dataclass(frozen=True, slots=True)
class Log:
    """The conversations to learn from, read anew for each pass."""

    paths: tuple[Path, ...]
    catalog: ToolCatalog
    shorten: bool
    sure: float = SURE

    @classmethod
    def of(cls, arguments: OfflineArguments, tools: ToolArguments) -> Log:
        """Raises `UsageError`."""
        if not arguments.data:
            raise UsageError("nothing to learn from: give --data LOG ...")
        return cls(tuple(map(Path, arguments.data)), tools.catalog(), arguments.shorten, arguments.sure)

    def __call__(self) -> Iterator[Trajectory]:
        for trajectory in read(self.paths):
            known = with_effects(trajectory, self.catalog)
            yield known
            # A prepared log may hold them already.
            if self.shorten and (short := shortened(known, self.sure)) is not None:
                yield short

    def key(self) -> Mapping[str, Any]:
        """Another one where a file has changed. Raises `UsageError`."""
        try:
            found = [(str(path), path.stat()) for path in self.paths]
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
        return {"files": files, "catalog": asdict(self.catalog), "shorten": self.shorten, "sure": self.sure}


def train(
    arguments: OfflineArguments,
    rewards: RewardArguments,
    spans: SpanArguments,
    tools: ToolArguments,
    training: Any,
    model: ModelConfig,
) -> Mapping[str, Any]:
    """Trains, saves to `training.output_dir`, and returns the summary that it writes there.

    `training` is TRL's configuration for the objective. Raises `UsageError`.
    """
    if not model.model_name_or_path:
        raise UsageError("no model to begin with: give --model_name_or_path")
    objective = Objective(arguments.objective)
    log = Log.of(arguments, tools)
    source = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    check_model(model.model_name_or_path, **source)
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, **source)
    encoder = Encoder(tokenizer)
    training.model_init_kwargs = {**_init(model), **(training.model_init_kwargs or {})}
    common: dict[str, Any] = {
        "model": model.model_name_or_path,
        "args": training,
        "processing_class": tokenizer,
        "peft_config": get_peft_config(model),
    }
    if objective is Objective.AWR:
        data, facts = _imitation_data(arguments, rewards, spans, log, encoder, training, model)
        trainer: Any = WeightedTrainer(
            train_dataset=data,
            data_collator=WeightedCollator(pad_token_id=_pad(tokenizer)),
            mean_weight=facts["mean_weight"],
            **common,
        )
    else:
        data, facts = _preference_data(objective, log, encoder, training)
        trainer = (DPOTrainer if objective is Objective.DPO else KTOTrainer)(train_dataset=data, **common)
    result = trainer.train(resume_from_checkpoint=_checkpoint(training))
    trainer.save_model(training.output_dir)
    summary = {"objective": objective.value, **facts, **result.metrics}
    if trainer.accelerator.is_main_process:
        settings = {
            **asdict(arguments),
            **asdict(rewards),
            **asdict(spans),
            "model": model.model_name_or_path,
        }
        path = Path(training.output_dir) / SUMMARY
        path.write_text(json.dumps({**summary, "settings": settings}, indent=2) + "\n", "utf-8")
    trainer.end()
    return summary


def _imitation_data(
    arguments: OfflineArguments,
    rewards: RewardArguments,
    spans: SpanArguments,
    log: Log,
    encoder: Encoder,
    training: SFTConfig,
    model: ModelConfig,
) -> tuple[Dataset, dict[str, Any]]:
    if training.packing or training.padding_free:
        raise UsageError("weights are of single sequences: turn off packing and padding_free")
    training.dataset_kwargs = {**(training.dataset_kwargs or {}), "skip_prepare_dataset": True}
    if arguments.reward == Reward.DENSE:
        permit_dense(arguments.diagnosis, undiagnosed=arguments.undiagnosed)
    weighting, settings, choice = arguments.weighting(), rewards.reward_settings(), spans.span_choice()
    entropies = Entropies(arguments.entropies)
    folder = Path(training.output_dir) / DATA
    key = {
        **log.key(),
        **asdict(rewards),
        **asdict(spans),
        "entropies": entropies,
        "reward": weighting.reward,
        "model": model.model_name_or_path,
        "max_length": training.max_length,
    }
    # One process makes the data, the others map what it made.
    with PartialState().main_process_first():
        measuring = _measuring_model(model) if entropies is Entropies.EXACT else None
        measurer = Measurer(encoder, measuring, settings, choice, weighting.reward, training.max_length)
        measured = measured_data(log, measurer, folder, key)
        del measuring, measurer
        data = weighted_data(measured, weighting, folder)
    total = count = 0.0
    for batch in data.iter(1000):
        for weights in batch["weights"]:
            total += sum(weights)
            count += sum(weight > 0 for weight in weights)
    conversations = max(measured["conversation"]) + 1
    facts = {
        "conversations": conversations,
        "sequences": len(measured),
        "trained_sequences": len(data),
        "trained_tokens": int(count),
        "mean_weight": total / count,
        "mean_reward": sum(measured["reward"]) / len(measured),
    }
    return data, facts


def _preference_data(
    objective: Objective, log: Log, encoder: Encoder, training: Any
) -> tuple[Dataset, dict[str, Any]]:
    text = Value("string")
    if objective is Objective.DPO:
        make: Any = pairs
        features = Features({"prompt": text, "chosen": text, "rejected": text})
    else:
        make = labels
        features = Features({"prompt": text, "completion": text, "label": Value("bool")})
    # Whole conversations only: what was shortened has no counterfactuals of its own.
    whole: Iterable[Trajectory] = Log(log.paths, log.catalog, shorten=False)()
    folder = Path(training.output_dir) / DATA
    key = {**log.key(), "objective": objective}
    with PartialState().main_process_first():
        data = on_disk(
            lambda: make((one for one in whole if one.kind == "logged"), encoder), features, folder, key
        )
    if not len(data):
        raise UsageError(
            "the log holds no step to prefer: it needs scores, and calls that were labelled or withheld"
        )
    facts: dict[str, Any] = {"steps": len(data)}
    if objective is Objective.KTO:
        facts["desirable"] = sum(data["label"])
    return data, facts


def _measuring_model(model: ModelConfig) -> Any:
    """The model that training begins with, with a head that gives entropies without logits."""
    placed = {"device_map": "auto"} if torch.cuda.is_available() else {}
    found = AutoModelForCausalLM.from_pretrained(model.model_name_or_path, **_init(model), **placed).eval()
    add_fused_lm_head(found, outputs=("log_probs", "entropy"))
    return found


def _init(model: ModelConfig) -> dict[str, Any]:
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }


def _checkpoint(training: Any) -> str | None:
    wanted = training.resume_from_checkpoint
    if wanted is None:
        return None
    if str(wanted) not in LAST:
        return str(wanted)
    found: str | None = (
        get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
    )
    return found


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


CONFIGS: Mapping[Objective, type[Any]] = {
    Objective.AWR: SFTConfig,
    Objective.DPO: DPOConfig,
    Objective.KTO: KTOConfig,
}
"""TRL's configuration for each objective."""
