"""Online training of the bundled model, a few rollouts a step: entropies, advantages, guard and resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from governor.entropy import estimate
from governor.rewards import CallTurn, RewardSettings, normalised
from governor_training.atlas.environment import AtlasEnvironment, bundled_model
from governor_training.environment import Environment, Split
from governor_training.errors import UsageError
from governor_training.finetuning.online.config import EntropyGRPOConfig
from governor_training.finetuning.online.methods import METHODS, Method, Outcome, method
from governor_training.finetuning.online.run import last_checkpoint
from governor_training.finetuning.online.trainer import EntropyGRPOTrainer

pytestmark = pytest.mark.slow

UNTIMED = ("task/accuracy", "task/calls", "reward", "loss", "kl", "grad_norm", "entropy/reduction")


def config(out: Path, **changes: Any) -> EntropyGRPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "max_completion_length": 200,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_completions": False,
        "seed": 3,
    }
    return EntropyGRPOConfig(**{**settings, **changes})


def trainer(out: Path, name: str | Method = "sparse", **changes: Any) -> EntropyGRPOTrainer:
    atlas: Environment = AtlasEnvironment()
    tasks = atlas.tasks(16, 1, Split.TRAIN)
    chosen = METHODS[name] if isinstance(name, str) else name
    more = {key: changes.pop(key) for key in ("peft_config", "callbacks", "eval_tasks") if key in changes}
    return EntropyGRPOTrainer(str(bundled_model()), config(out, **changes), atlas, tasks, chosen, **more)


def figures(made: EntropyGRPOTrainer) -> list[Mapping[str, float]]:
    return [
        {name: entry[name] for name in UNTIMED if name in entry}
        for entry in made.state.log_history
        if "task/accuracy" in entry
    ]


class Spy(EntropyGRPOTrainer):
    """Keeps what was made of one batch."""

    seen: dict[str, Any]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.seen = super()._generate_and_score_completions(inputs)
        return self.seen


def test_the_advantage_of_a_token_is_that_of_its_rollout(tmp_path: Path) -> None:
    """(B, T) instead of TRL's (B,): a row that is off by one trains every rollout on its neighbour's
    reward. TRL normalises the rewards too, and must come to the same."""
    atlas = AtlasEnvironment()
    made = Spy(
        str(bundled_model()),
        config(tmp_path),
        atlas,
        atlas.tasks(16, 1, Split.TRAIN),
        replace(METHODS["accuracy"], shaping=lambda group, _: [0.1 * len(one.calls) for one in group]),
    )
    made.train()
    advantages, width = made.seen["advantages"], made.seen["completion_ids"].shape
    assert advantages.shape == width
    rewards = [0.1 * rollout.read_calls for rollout in made._rollouts]
    wanted = normalised(rewards[:4]) + normalised(rewards[4:])
    for row, rollout in enumerate(made._rollouts):
        length = len(rollout.completion)
        assert advantages[row, :length].tolist() == pytest.approx([wanted[row]] * length, abs=1e-5)
        assert not advantages[row, length:].any()
    assert list(made._logs["advantages"])[-8:] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("measured_by", ["reference", "policy"])
def test_the_entropies_are_those_of_the_model_on_its_own_tokens(tmp_path: Path, measured_by: str) -> None:
    """Exact ones, against a plain forward pass; and within the bounds that the governor has from the top 20
    log-probabilities: trainer and proxy mean the same number."""
    made = trainer(tmp_path, measured_by=measured_by)
    made.train()
    rollout = max(made._rollouts, key=lambda one: len(one.completion))
    row = made._rollouts.index(rollout)
    assert made._entropies is not None
    found = made._entropies[row, : len(rollout.completion)]
    # One step has been made since, so that only the reference is still the model that was measured.
    if measured_by == "reference":
        with torch.no_grad():
            logits = made.ref_model(torch.tensor([rollout.prompt + rollout.completion])).logits[0]
        logprobs = logits[len(rollout.prompt) - 1 : -1].log_softmax(-1)
        exact = -(logprobs.exp() * logprobs).sum(-1)
        assert torch.allclose(found, exact, atol=1e-4)
        top = logprobs.topk(20).values
        for one, value in zip(top.tolist(), exact.tolist(), strict=True):
            known = estimate(one, vocab_size=logprobs.shape[1])
            assert known.lower - 1e-4 <= value <= known.upper + 1e-4


def test_a_dense_reward_raises_the_turns_of_informative_calls(tmp_path: Path) -> None:
    """Its advantage lies on the tokens of the turn that made the call, on top of the outcome's."""
    made = trainer(tmp_path, "dense")
    made._rollouts = []
    made.train()
    output = made._token_advantages(torch.zeros(8), torch.zeros(8, 400, dtype=torch.long))
    for row, rollout in enumerate(made._rollouts):
        own = iter(made._judged[row].calls)
        on_top = {n: 0.0 for n in range(len(rollout.turns))}
        for call in rollout.calls:
            if call.read_only:
                on_top[call.turn] += next(own)
        for number, turn in enumerate(rollout.turns):
            expected = made._judged[row].advantage + on_top[number]
            assert output[row, turn.start].item() == pytest.approx(expected, abs=1e-5)


def test_a_step_changes_the_policy_and_not_the_reference(tmp_path: Path) -> None:
    """A reference that moves along holds nothing."""
    made = trainer(tmp_path)
    before = {name: value.clone() for name, value in made.ref_model.named_parameters()}
    made.train()
    after = dict(made.model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in made.ref_model.named_parameters())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert figures(made)[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_an_adapter_is_measured_against_the_model_without_it(tmp_path: Path) -> None:
    """With LoRA there is no second model: the reference is the same one, its adapter off."""
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(tmp_path, peft_config=lora, max_steps=1)
    made.train()
    rollout = made._rollouts[0]
    bare = made.accelerator.unwrap_model(made.model)
    with torch.no_grad(), bare.disable_adapter():
        logits = bare(torch.tensor([rollout.prompt + rollout.completion])).logits[0]
    logprobs = logits[len(rollout.prompt) - 1 : -1].log_softmax(-1)
    exact = -(logprobs.exp() * logprobs).sum(-1)
    assert made._entropies is not None
    assert torch.allclose(made._entropies[0, : len(exact)], exact, atol=1e-4)
    made.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Dies in the middle of a step, as a machine does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise Killed


def test_a_run_that_was_killed_resumes_to_the_same_figures(tmp_path: Path) -> None:
    """Lost random states, a guard that forgets, or data that begins anew give another run."""
    whole = trainer(tmp_path / "whole", max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    killed = trainer(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2, callbacks=[Kill(3)])
    with pytest.raises(Killed):
        killed.train()
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"
    again = trainer(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert figures(again) == figures(whole)
    assert replace_folder(again) == replace_folder(whole)
    mine, theirs = (load_file(one / "checkpoint-4" / "model.safetensors") for one in folders(tmp_path))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def folders(tmp_path: Path) -> Sequence[Path]:
    return tmp_path / "cut", tmp_path / "whole"


def replace_folder(made: EntropyGRPOTrainer) -> Any:
    return replace(made.guard.standing, best=Path(made.guard.standing.best).name)


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    """A run killed while it saves must go on from the one before."""
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}" if whole else '{"log_hist', "utf-8")
    (tmp_path / "checkpoint-14").mkdir()
    found = last_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-10"


def test_a_run_below_the_floor_stops_and_gives_back_its_best_checkpoint(tmp_path: Path) -> None:
    """Else a collapsed policy is what is kept. The learning rate here destroys it at once."""
    made = trainer(
        tmp_path,
        max_steps=8,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.5,
        warmup_steps=2,
        accuracy_window=2,
        accuracy_drop=0.3,
    )
    made.train()
    standing = made.guard.standing
    assert "below the floor" in standing.stopped
    assert made.state.global_step < 8
    assert made.roll_back()
    kept = load_file(Path(standing.best) / "model.safetensors")
    now = made.model.state_dict()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert made.guard.accuracy is not None and made.guard.least is not None
    assert made.guard.accuracy < made.guard.least


def test_held_out_tasks_can_be_played_on_the_way(tmp_path: Path) -> None:
    """Their figures must not count for the guard, nor their groups have the size of training's."""
    atlas = AtlasEnvironment()
    made = trainer(
        tmp_path,
        eval_tasks=atlas.tasks(4, 1, Split.HELD_OUT),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        num_generations_eval=1,
    )
    made.train()
    assert any("eval_task/accuracy" in entry for entry in made.state.log_history)
    assert len(made.guard.standing.accuracies) == 1


def test_the_reference_is_needed_for_its_entropies(tmp_path: Path) -> None:
    """Without a KL term and without an adapter there is no reference to measure."""
    with pytest.raises(UsageError, match="beta"):
        trainer(tmp_path, beta=0.0)


INFORMATIVE, WASTED = CallTurn(1.0, 0.1), CallTurn(0.1, 0.1)
GROUP = [
    Outcome(1.0),
    Outcome(1.0, (INFORMATIVE,)),
    Outcome(1.0, (INFORMATIVE, WASTED)),
    Outcome(0.0, (WASTED,)),
    Outcome(0.0),
]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("sparse", [1.0, 1.0, 0.5, 0.0, 0.0]),
        ("dense", [1.0, 1.0, 1.0, 0.0, 0.0]),
        ("accuracy", [1.0, 1.0, 1.0, 0.0, 0.0]),
        ("otc", [1.0, 0.5, 0.309, 0.0, 0.0]),
        ("eapo", [1.0, 0.621, 0.481, 0.0, 0.0]),
    ],
)
def test_each_method_gives_its_own_rewards(name: str, rewards: list[float]) -> None:
    """A name that is wired to another's formula would make the comparison worthless."""
    assert METHODS[name].rewards(GROUP, RewardSettings()) == pytest.approx(rewards, abs=1e-3)


def test_only_the_dense_method_rewards_single_calls() -> None:
    """Right and informative above right and wasted, and that above wrong."""
    settings = RewardSettings()
    advantages = METHODS["dense"].call_advantages(GROUP, settings)
    assert advantages[1][0] == advantages[2][0] > advantages[2][1] > advantages[3][0]
    assert METHODS["sparse"].call_advantages(GROUP, settings) == [[], [0.0], [0.0, 0.0], [0.0], []]


def test_a_reward_of_ones_own_is_found_by_its_path(tmp_path: Path) -> None:
    """As tools and scorers are; a name that there is not is told with those that there are."""
    path = tmp_path / "mine.py"
    path.write_text("def frugal(group, settings):\n    return [-len(one.calls) for one in group]\n")
    assert method(f"{path}:frugal").rewards(GROUP, RewardSettings()) == [0, -1, -2, -1, 0]
    with pytest.raises(UsageError, match="sparse, dense, accuracy"):
        method("spare")
    assert json.dumps(method("sparse").name) == '"sparse"'
