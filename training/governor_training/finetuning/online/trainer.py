"""TRL's GRPO trainer with entropy rewards: rollouts in any `Environment`, advantages for each token.

What is overridden, and why:

- `_generate_and_score_completions` notes which tasks a batch is of, and puts advantages of shape (B, T) in
  the place of TRL's (B,); its loss is made for that ("to support subclasses that provide advantages with
  shape (B, T)").
- `_calculate_rewards` measures the entropies and rewards whole groups, wherever their rollouts were played.
- `_get_per_token_logps_and_entropies` keeps the entropies of a pass of the reference model that is made for
  the KL term anyway, so that they cost nothing.
- `_save_checkpoint` and `_load_optimizer_and_scheduler` carry the guard's state along.

These are private, which is why TRL's minor version is pinned; `tests/training/test_online_contract.py` says
what is relied on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving
from trl.trainer.utils import add_fused_lm_head, pad, use_adapter

from governor.rewards import MeasuredBy
from governor.spans import Markup
from governor_training.environment import Environment, Task
from governor_training.errors import UsageError
from governor_training.finetuning.online.bar import Bar
from governor_training.finetuning.online.config import EntropyGRPOConfig
from governor_training.finetuning.online.guard import Guard
from governor_training.finetuning.online.measurement import completion_advantages, measured_calls
from governor_training.finetuning.online.methods import Judged, Method, Outcome, judge
from governor_training.finetuning.online.rollouts import ChatFormat, Ids, Limits, Player, Rollout

TASK = "task"
"""The column with a task's place among the tasks."""


class EntropyGRPOTrainer(GRPOTrainer):
    """Trains a policy on `tasks` of `environment` by `method`.

    `eval_tasks` are those of an evaluation during training, if the configuration wants one. `guard` None: one
    with the floor of the configuration. Raises `UsageError` for settings that do not go together.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: EntropyGRPOConfig,
        environment: Environment,
        tasks: Sequence[Task],
        method: Method,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        markup: Markup | None = None,
        peft_config: PeftConfig | None = None,
        eval_tasks: Sequence[Task] = (),
        guard: Guard | None = None,
        **more: Any,
    ) -> None:
        self.method, self.environment = method, environment
        self.settings, self.choice = args.reward_settings(), args.span_choice()
        self.guard = guard or Guard(args.floor())
        self._tasks: dict[str, Sequence[Task]] = {"train": tasks, "eval": eval_tasks}
        self._playing: Sequence[Task] = ()
        self._rollouts: list[Rollout] = []
        self._judged: list[Judged] = []
        self._scoring = False
        self._entropies: torch.Tensor | None = None

        def reward(**_: Any) -> list[float]:
            return [one.reward for one in self._judged]

        reward.__name__ = method.name
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func', which is an experimental.*")
            super().__init__(
                model=model,
                reward_funcs=reward,
                args=args,
                train_dataset=_rows(tasks),
                eval_dataset=_rows(eval_tasks) if eval_tasks else None,
                processing_class=tokenizer,
                peft_config=peft_config,
                rollout_func=_roll_out,
                **more,
            )
        self.add_callback(self.guard)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Bar)
        reference = self.choice.measured_by is MeasuredBy.REFERENCE
        if method.entropies and reference and self.ref_model is None and not is_peft_model(self.model):
            raise UsageError(
                "the reference's entropies need the reference: set beta above 0, use_peft, or "
                "measured_by policy"
            )
        if reference and self.ref_model is not None:
            # TRL gives the reference a head that tells log-probabilities only.
            add_fused_lm_head(
                self.accelerator.unwrap_model(self.ref_model),
                temperature=self.temperature,
                cast_lm_head_to_fp32=args.cast_lm_head_to_fp32,
                outputs=("log_probs", "entropy"),
            )
        chat = ChatFormat(
            self._tokenizer,
            markup,
            template=_training_template(self._tokenizer),
            options=self.chat_template_kwargs,
            ends=self.eos_token_ids,
        )
        limits = Limits(args.max_turns, args.max_completion_length or 512)
        self._player = Player(environment, chat, limits, self._anywhere)

    # Rollouts

    def play(self) -> Mapping[str, Any]:
        """The rollouts of the batch that is being made, in the form that TRL wants of a `rollout_func`."""
        first = self.accelerator.process_index * len(self._playing)
        size = self._group_size
        bare = [(first + place) % size < self.method.tool_free for place in range(len(self._playing))]
        self._rollouts = self._player.play(self._playing, self._write, without_tools=bare)
        told = all(rollout.logprobs is not None for rollout in self._rollouts)
        return {
            "prompt_ids": [rollout.prompt for rollout in self._rollouts],
            "completion_ids": [rollout.completion for rollout in self._rollouts],
            "logprobs": [rollout.logprobs for rollout in self._rollouts] if told else None,
            "env_mask": [rollout.mask for rollout in self._rollouts],
        }

    def _write(self, contexts: Sequence[Ids]) -> tuple[Sequence[Ids], Sequence[Sequence[float]] | None]:
        """Every process asks for as many as the one that needs the most: a server that generates for all
        gives back equal shares, and a model that is spread over processes must be run by all of them."""
        most = max(gather_object([len(contexts)]))
        spare = [list(contexts[0]) if contexts else [self._tokenizer.eos_token_id]] * (most - len(contexts))
        ids, logprobs = self._generate_single_turn([*contexts, *spare], None, {}, 1)
        return ids[: len(contexts)], None if logprobs is None else logprobs[: len(contexts)]

    def _anywhere(self, playing: bool) -> bool:
        return any(gather_object([playing]))

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _group_size(self) -> int:
        size = self.num_generations if self._mode == "train" else self.num_generations_eval
        return int(size)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        tasks = self._tasks[self._mode]
        self._playing = [tasks[row[TASK]] for row in inputs]
        self._scoring, self._entropies = True, None
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._scoring = False
        output["advantages"] = self._token_advantages(output["advantages"], output["completion_ids"])
        return output

    def _token_advantages(self, like: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
        """(B, T), 0 on padding. What the model did not write is masked by TRL."""
        advantages = like.new_zeros(completions.shape)
        for row, (rollout, judged) in enumerate(zip(self._rollouts, self._judged, strict=True)):
            values = completion_advantages(
                rollout.turns,
                rollout.calls,
                [self.args.call_weight * value for value in judged.calls],
                judged.advantage,
                len(rollout.completion),
            )
            advantages[row, : len(values)] = torch.tensor(values, dtype=like.dtype)
        return advantages

    # Rewards

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        outcomes = self._outcomes()
        everyone: list[Outcome] = gather_object(outcomes)
        judged = judge(
            everyone,
            self._group_size,
            self.method,
            self.settings,
            scaled=self.scale_rewards != "none",
        )
        first = self.accelerator.process_index * len(outcomes)
        self._judged = judged[first : first + len(outcomes)]
        self._log(outcomes)
        if self._mode == "train":
            right = gather_object([rollout.correct for rollout in self._rollouts])
            self.guard.observe(fmean(right), fmean(one.reward for one in judged))
        return super()._calculate_rewards(inputs, prompts, completions, ids)

    def _outcomes(self) -> list[Outcome]:
        entropies = self._measured()
        return [
            Outcome(
                rollout.score,
                measured_calls(
                    rollout.turns, rollout.calls, None if entropies is None else entropies[row], self.choice
                ),
                rollout.finished,
            )
            for row, rollout in enumerate(self._rollouts)
        ]

    def _log(self, outcomes: Sequence[Outcome]) -> None:
        rollouts = self._rollouts
        calls = [len(rollout.calls) for rollout in rollouts]
        right = sum(rollout.correct for rollout in rollouts)
        self._log_metric("task/accuracy", right / len(rollouts))
        self._log_metric("task/score", fmean(rollout.score for rollout in rollouts))
        self._log_metric("task/calls", fmean(calls))
        self._log_metric("task/read_calls", fmean(rollout.read_calls for rollout in rollouts))
        self._log_metric("task/without_calls", fmean(made == 0 for made in calls))
        self._log_metric("task/unfinished", fmean(not rollout.finished for rollout in rollouts))
        if sum(calls):
            self._log_metric("task/productivity", right / sum(calls))
        measured = [call for one in outcomes for call in one.calls if call.reduction is not None]
        if measured:
            self._log_metric("entropy/before", fmean(call.before or 0.0 for call in measured))
            self._log_metric("entropy/after", fmean(call.after or 0.0 for call in measured))
            self._log_metric("entropy/reduction", fmean(call.reduction or 0.0 for call in measured))
        self._log_completion_extra("score", [rollout.score for rollout in rollouts])
        self._log_completion_extra("calls", calls)
        self._log_completion_extra("expected", [rollout.task.expected for rollout in rollouts])
        self._log_completion_extra("reductions", [[call.reduction for call in one.calls] for one in outcomes])

    # Entropies

    def _measured(self) -> Sequence[Sequence[float]] | None:
        """For each rollout the entropy of each token of its completion, in nats, at the temperature of
        sampling; None where nobody asks for them."""
        if self._entropies is None:
            if not self.method.entropies:
                return None
            self._entropies = self._entropy_pass()
        table = self._entropies.tolist()
        return [row[: len(one.completion)] for row, one in zip(table, self._rollouts, strict=True)]

    def _entropy_pass(self) -> torch.Tensor:
        prompts = [torch.tensor(rollout.prompt) for rollout in self._rollouts]
        written = [torch.tensor(rollout.completion) for rollout in self._rollouts]
        device, filler = self.accelerator.device, self._tokenizer.pad_token_id
        ids = torch.cat(
            [
                pad(prompts, padding_value=filler, padding_side="left"),
                pad(written, padding_value=filler, padding_side="right"),
            ],
            dim=1,
        ).to(device)
        ones = [torch.ones_like(one) for one in prompts], [torch.ones_like(one) for one in written]
        mask = torch.cat(
            [
                pad(ones[0], padding_value=0, padding_side="left"),
                pad(ones[1], padding_value=0, padding_side="right"),
            ],
            dim=1,
        ).to(device)
        width = max(len(one) for one in written)
        batch = self.args.per_device_train_batch_size
        measured = self._measuring_model()
        with torch.no_grad(), measured as model:
            _, entropies, _ = super()._get_per_token_logps_and_entropies(
                model, ids, mask, width, batch_size=batch, compute_entropy=True
            )
        found: torch.Tensor = entropies
        return found

    def _measuring_model(self) -> Any:
        """A context with the model whose entropies are wanted."""
        if self.choice.measured_by is MeasuredBy.POLICY:
            return _Given(self.model)
        if self.ref_model is not None:
            return _Given(self.ref_model)
        return _Adapterless(self)

    def _get_per_token_logps_and_entropies(
        self, model: Any, *inputs: Any, compute_entropy: bool = False, **more: Any
    ) -> Any:
        wanted = (
            self._scoring
            and self.choice.measured_by is MeasuredBy.REFERENCE
            and self.ref_model is not None
            and model is self.ref_model
        )
        found = super()._get_per_token_logps_and_entropies(
            model, *inputs, compute_entropy=compute_entropy or wanted, **more
        )
        if wanted:
            self._entropies = found[1]
        return found

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Before the trainer's own files: the last of those is what a whole checkpoint is known by.
        if self.args.should_save:
            self.guard.checkpoint(folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.guard.resume(Path(checkpoint))

    def roll_back(self) -> bool:
        """Loads the best checkpoint; False where there is none."""
        best = self.guard.standing.best
        if not best:
            return False
        self.state.best_model_checkpoint = best
        self._load_best_model()
        return True


def _training_template(tokenizer: Any) -> str | None:
    """A template in which no result changes what stands before it, None where the tokenizer's is one. Raises
    `UsageError` where TRL has none for this model."""
    if is_chat_template_prefix_preserving(tokenizer):
        return None
    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UsageError(f"the model's chat template rewrites earlier turns: {error}") from None
    return template


class _Given:
    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> Any:
        return self._model

    def __exit__(self, *_: object) -> None:
        pass


class _Adapterless:
    """The trained model without its adapter: what it was before, if it began with a fresh one."""

    def __init__(self, trainer: EntropyGRPOTrainer) -> None:
        self._trainer = trainer
        bare = trainer.accelerator.unwrap_model(trainer.model)
        self._context = use_adapter(bare, adapter_name="ref" if "ref" in bare.peft_config else None)

    def __enter__(self) -> Any:
        self._context.__enter__()
        return self._trainer.model

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _roll_out(prompts: Sequence[Any], trainer: EntropyGRPOTrainer) -> Mapping[str, Any]:
    return trainer.play()


def _rows(tasks: Sequence[Task]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [list(task.messages) for task in tasks], TASK: list(range(len(tasks)))}
    )
