"""What the trainer relies on of TRL's private methods. When TRL's next minor version is let in, this says
first what has to change."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, pad, use_adapter


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate_single_turn", ["prompt_ids", "images", "multimodal_fields", "num_generations"]),
        ("_generate_and_score_completions", ["inputs"]),
        ("_calculate_rewards", ["inputs", "prompts", "completions", "completion_ids_list"]),
        ("_get_per_token_logps_and_entropies", ["model", "input_ids", "attention_mask", "logits_to_keep"]),
        ("_save_checkpoint", ["model", "trial"]),
        ("_load_optimizer_and_scheduler", ["checkpoint"]),
        ("_load_best_model", []),
        ("_log_metric", ["name", "value"]),
        ("_log_completion_extra", ["column", "values"]),
    ],
)
def test_the_methods_that_are_overridden_or_called_are_as_they_were(
    method: str, parameters: list[str]
) -> None:
    """An override with another signature fails in the middle of a run, or is never called."""
    found = list(inspect.signature(getattr(GRPOTrainer, method)).parameters)
    assert found[1 : 1 + len(parameters)] == parameters


def test_a_pass_gives_log_probabilities_and_then_entropies() -> None:
    """The reference's entropies are the second of three."""
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "return logps, entropies, aux_loss" in source
    assert "compute_entropy" in inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters


def test_advantages_may_have_a_value_for_each_token() -> None:
    """TRL promises it to subclasses, in a comment."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "if advantages.dim() == 1:" in source


def test_rewards_are_calculated_after_the_pass_of_the_reference() -> None:
    """Else its entropies are not there yet."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert source.index("self.ref_model,") < source.index("self._calculate_rewards(")


def test_the_functions_that_are_borrowed_are_there() -> None:
    """They are in a module that TRL does not document."""
    assert "outputs" in inspect.signature(add_fused_lm_head).parameters
    assert {"padding_value", "padding_side"} <= set(inspect.signature(pad).parameters)
    assert "adapter_name" in inspect.signature(use_adapter).parameters


def test_the_version_is_the_one_that_was_looked_at() -> None:
    """The dependency is pinned; this is for whoever installs another by hand."""
    assert version("trl").startswith("1.16.")
