"""Fine-tuning from logs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from governor.labels import Label
from governor.rewards import RewardSettings, SpanChoice, normalised, pooled_advantages, sparse_reward
from governor_server.cli import main
from governor_training.atlas.environment import bundled_model
from governor_training.finetuning.imitation import WeightedCollator, WeightedTrainer
from governor_training.finetuning.logs import Writer
from governor_training.finetuning.segments import CONTEXT, IGNORED, Encoder
from governor_training.finetuning.trajectory import Trajectory
from governor_training.finetuning.weighting import (
    Baseline,
    Measurer,
    Reward,
    Weighting,
    turn_weights,
    weighted,
)
from tests.training.finetuning.conversations import conversation, logged


def offline(settings: Mapping[str, str], **more: str) -> int:
    flags = [part for name, value in {**settings, **more}.items() for part in (f"--{name}", value)]
    return main(["train", "offline", *flags])


def row(conversation: int, reward: float, **more: Any) -> dict[str, Any]:
    """A sequence of two turns, the first of which made a call."""
    return {
        "conversation": conversation,
        "group": "norway",
        "score": 1.0,
        "calls": 1,
        "reward": reward,
        "ids": [5, 6, 7, 8],
        "turns": [CONTEXT, 0, CONTEXT, 1],
        "step_turns": [0],
        "judgements": [1.0],
        "step_rewards": [1.5],
        **more,
    }


# Weights


def test_a_weight_is_the_exponential_of_the_advantage() -> None:
    """The reward minus the mean of all, over the temperature, on the tokens of the model alone."""
    weighting = Weighting(temperature=0.5, least=0.0)
    good, bad = weighted([row(0, 1.0), row(1, 0.25)], weighting, mean=0.5)
    assert good["weights"] == pytest.approx([0.0, exp(1.0), 0.0, exp(1.0)])
    assert bad["weights"] == pytest.approx([0.0, exp(-0.5), 0.0, exp(-0.5)])
    assert good["labels"] == [IGNORED, 6, IGNORED, 8]


def test_the_baseline_of_a_question_is_its_own_mean() -> None:
    """So that the best of a hard question counts as well; a question asked once is compared with all."""
    weighting = Weighting(temperature=0.5, least=0.0, baseline=Baseline.QUESTION)
    (first, second) = weighted([row(0, 0.2), row(1, 0.0)], weighting, mean=0.9)
    assert first["weights"][1] == pytest.approx(exp(normalised([0.2, 0.0], scaled=False)[0] / 0.5))
    assert second["weights"][1] < 1 < first["weights"][1]
    (alone,) = weighted([row(0, 0.2)], weighting, mean=0.9)
    assert alone["weights"][1] == pytest.approx(exp(-0.7 / 0.5))


def test_idle_turns_are_not_imitated() -> None:
    """Judged 0; not those that were not to be judged."""
    weighting = Weighting()
    idle = turn_weights(row(0, 1.0, judgements=[0.0]), 0.0, [0.0], weighting)
    assert idle == {0: 0.0, 1: 1.0}
    assert turn_weights(row(0, 1.0, judgements=[nan]), 0.0, [0.0], weighting) == {0: 1.0, 1: 1.0}
    kept = turn_weights(row(0, 1.0, judgements=[0.0]), 0.0, [0.0], replace(weighting, mask_idle=False))
    assert kept == {0: 1.0, 1: 1.0}


def test_a_calls_own_advantage_weighs_on_its_turn_alone() -> None:
    """Pooled over all steps of the question, as the reward core has it."""
    weighting = Weighting(temperature=1.0, step_weight=0.5, least=0.0)
    members = [row(0, 1.0), row(1, 1.0, step_rewards=[1.0]), row(2, 1.0, step_rewards=[nan])]
    steps = pooled_advantages([[1.5], [1.0], [None]])
    for made, (own,) in zip(weighted(members, weighting, mean=1.0), steps, strict=True):
        assert made["weights"][1] == pytest.approx(exp(0.5 * own))
        assert made["weights"][3] == pytest.approx(1.0)


def test_a_conversation_in_several_sequences_counts_once() -> None:
    """Its reward is one reward of its question, however often the template begins anew."""
    weighting = Weighting(temperature=1.0, least=0.0, baseline=Baseline.QUESTION)
    members = [row(0, 1.0), row(0, 1.0, turns=[CONTEXT, 1, 1, 1], step_turns=[]), row(1, 0.0)]
    members[1]["judgements"] = members[1]["step_rewards"] = []
    found = list(weighted(members, weighting, mean=0.0))
    assert found[0]["weights"][1] == found[1]["weights"][1] == pytest.approx(exp(0.5))


@pytest.mark.parametrize("reward", [Reward.OTC, Reward.EAPO])
def test_the_baselines_count_calls(reward: Reward) -> None:
    """They need no entropy: fewer calls, more weight."""
    weighting = Weighting(reward=reward, temperature=1.0, least=0.0)
    few, many = weighted([row(0, 0.0, calls=1), row(1, 0.0, calls=4)], weighting, mean=0.5)
    assert few["weights"][1] > many["weights"][1]


def test_what_is_worth_nothing_is_left_out() -> None:
    """It would cost a step and teach nothing."""
    assert list(weighted([row(0, 0.0)], Weighting(), mean=1.0)) == []


# Measuring


@pytest.fixture(scope="module")
def measurer(encoder: Encoder) -> Measurer:
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return Measurer(encoder, model, RewardSettings(), SpanChoice())


def test_entropies_are_computed_anew_and_rewarded_by_the_core(
    measurer: Measurer, played: Sequence[Trajectory]
) -> None:
    """What the log says of them is not believed; gains and labels are the log's."""
    lying = replace(played[0], calls=[replace(call, before=9.0, after=9.0) for call in played[0].calls])
    told = measurer.measured(lying)
    assert all(call.before != 9.0 for call in told.calls)
    assert [call.gain for call in told.calls] == [call.gain for call in lying.calls]
    (made,) = measurer.rows([lying])
    calls = [call.measured for call in told.executed]
    assert made["reward"] == sparse_reward(1.0, calls, RewardSettings())
    assert len(made["ids"]) == len(made["turns"])


def test_logged_entropies_are_taken_where_asked(encoder: Encoder) -> None:
    """For a model that cannot be run once more."""
    talk = conversation([logged("c1", 0, Label.USEFUL, before=1.0, after=0.1), logged("c2", 1)])
    (made,) = Measurer(encoder, None, RewardSettings(), SpanChoice()).rows([talk])
    assert made["reward"] == 0.5
    assert (made["step_turns"], made["judgements"]) == ([0, 1], [1.0, 0.0])


def test_conversations_without_a_score_are_counted_and_left_out(encoder: Encoder) -> None:
    """Nobody knows whether to imitate them."""
    measurer = Measurer(encoder, None, RewardSettings(), SpanChoice())
    found = list(measurer.rows([conversation([], score=None), conversation([])]))
    assert (len(found), measurer.unscored) == (1, 1)


def test_a_long_conversation_is_cut_and_counted(encoder: Encoder) -> None:
    """A silent cut would be found months later."""
    measurer = Measurer(encoder, None, RewardSettings(), SpanChoice(), max_length=20)
    (made,) = measurer.rows([conversation([logged("c1", 0)])])
    assert (len(made["ids"]), len(made["turns"]), measurer.cut) == (20, 20, 1)


def test_a_turn_without_judgement_is_not_a_number_in_the_data(encoder: Encoder) -> None:
    """Arrow has no None among floats that pass through numpy; nan says the same."""
    call = logged("c1", 0, before=0.1, after=0.9, changed=True)
    (made,) = Measurer(encoder, None, RewardSettings(), SpanChoice()).rows([conversation([call])])
    assert isnan(made["judgements"][0])


# The trainer


def test_weights_multiply_the_loss_of_their_tokens(encoder: Encoder) -> None:
    """All ones give TRL's own loss; a token of weight 0 gives no gradient."""
    ids = encoder.tokenizer("The capital of Norway is Oslo.").input_ids
    examples = [
        {"input_ids": ids, "labels": ids, "weights": [1.0] * len(ids)},
        {"input_ids": ids[:4], "labels": ids[:4], "weights": [2.0, 0.0, 0.0, 3.0]},
    ]
    collator = WeightedCollator(pad_token_id=0)
    batch = collator(examples)
    assert batch["weights"].shape == batch["labels"].shape
    assert batch["weights"][1].tolist()[:5] == [2.0, 0.0, 0.0, 3.0, 0.0]
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32)
    trainer = tiny_trainer(model, encoder, examples, mean_weight=2.0)
    logprobs = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    own = logprobs[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    shown = (batch["labels"][:, 1:] != IGNORED).float()
    expected = -(own * batch["weights"][:, 1:] / 2.0 * shown).sum() / shown.sum()
    loss = trainer.compute_loss(model, dict(batch))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def tiny_trainer(
    model: Any, encoder: Encoder, examples: list[dict[str, Any]], **more: Any
) -> WeightedTrainer:
    from datasets import Dataset
    from trl import SFTConfig

    config = SFTConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return WeightedTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=encoder.tokenizer,
        data_collator=WeightedCollator(pad_token_id=0),
        **more,
    )


# The command


@pytest.mark.slow
def test_awr_learns_from_a_log_and_goes_on_where_it_was_stopped(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """After half of the steps and a resumption the weights are those of a run that was never stopped."""
    assert offline(settings) == 0
    whole = load_file(tmp_path / "run" / "model.safetensors")
    half = {**settings, "output_dir": str(tmp_path / "half"), "save_strategy": "steps", "save_steps": "2"}
    # As if it had been killed: the schedule is that of four steps.
    assert offline(half, resume_from_checkpoint="last") == 0
    last = tmp_path / "half" / "checkpoint-4"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert offline(half, resume_from_checkpoint="last") == 0
    resumed = load_file(tmp_path / "half" / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.allclose(resumed[name], value, atol=1e-6) for name, value in whole.items())
    start = load_file(Path(bundled_model()) / "model.safetensors")
    assert any(not torch.equal(start[name].float(), value.float()) for name, value in whole.items())
    told = json.loads((tmp_path / "run" / "offline.json").read_text())
    assert told["conversations"] > 24 and told["trained_tokens"] > 0
    assert told["settings"]["awr_temperature"] == Weighting().temperature


def test_an_adapter_is_made_where_it_is_asked_for(settings: dict[str, str], tmp_path: Path) -> None:
    """And nothing but the adapter is saved."""
    assert offline(settings, use_peft="true", lora_r="4", lora_target_modules="all-linear") == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_preferences_are_learned_by_trls_own_trainers(
    settings: dict[str, str], tmp_path: Path, objective: str
) -> None:
    """From the same log, with the same command."""
    assert offline(settings, objective=objective, max_steps="2") == 0
    told = json.loads((tmp_path / "run" / "offline.json").read_text())
    assert told["objective"] == objective
    assert told["steps"] > 10
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_settings_come_from_a_file_and_flags_win(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As users of TRL know it."""
    file = tmp_path / "offline.yaml"
    lines = [
        f"{name}: '{value}'" if value == "no" else f"{name}: {value}"
        for name, value in settings.items()
        if name != "data"
    ]
    file.write_text("\n".join([*lines, "data:", f"  - {settings['data']}", "awr_temperature: 0.3", ""]))
    assert main(["train", "offline", "--config", str(file), "--max_steps", "1", "--dead_zone", "0.1"]) == 0
    told = json.loads((tmp_path / "run" / "offline.json").read_text())
    assert (told["settings"]["awr_temperature"], told["settings"]["dead_zone"]) == (0.3, 0.1)
    assert "trained_tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data": "no-such-file.jsonl"}, "cannot read no-such-file.jsonl"),
        ({"model_name_or_path": "./no-such-model"}, "cannot load the model ./no-such-model: give a folder"),
        ({"objective": "ppo"}, "--objective: invalid choice: 'ppo'"),
        ({"reward": "wishes"}, "--reward: invalid choice: 'wishes'"),
        ({"reward": "dense"}, "needs a diagnosis"),
        ({"measure": "luck"}, "--measure: invalid choice: 'luck'"),
        ({"dead_zone": "-1"}, "dead_zone must be from"),
        ({"awr_temperature": "0"}, "must be above 0"),
        ({"packing": "true"}, "turn off packing"),
        ({"no_such_flag": "1"}, "no_such_flag"),
        ({"config": "no-such.yaml"}, "no-such.yaml"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    settings: dict[str, str], capsys: pytest.CaptureFixture[str], more: dict[str, str], said: str
) -> None:
    """Before anything is loaded, and without a traceback."""
    assert offline(settings, **more) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("governor: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("objective", ["awr", "dpo"])
def test_a_log_without_scores_says_what_is_missing(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    """Instead of a division by zero in a library."""
    path = tmp_path / "log.jsonl"
    with Writer(path) as out:
        out.put(conversation([logged("c1", 0)], score=None).as_row())
    assert offline(settings, data=str(path), objective=objective) == 2
    assert "score" in capsys.readouterr().err
