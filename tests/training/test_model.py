"""The training code's Qwen3 is the Qwen3 that everybody else runs."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from governor_training.atlas.episodes import episodes
from governor_training.atlas.local import bundled_model
from governor_training.atlas.recipes import RECIPES
from governor_training.atlas.world import load_world
from governor_training.pretraining.batches import IGNORED, Batches, encode
from governor_training.pretraining.model import Qwen3, Shape

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The bundled one."""
    return Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))


def test_the_same_figures_as_transformers(tokenizer: Tokenizer) -> None:
    """Hidden states after a shared prefix equal those of transformers on the joined rows."""
    ours = Qwen3.load(bundled_model()).eval()
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()
    batch = next(iter(Batches(tokenizer, RECIPES["atlas"], tokens=512, seed=4)))
    joined = torch.cat([batch.prefix.expand(len(batch.ids), -1), batch.ids], dim=1)
    with torch.no_grad():
        logits = ours.logits(ours(batch.prefix, batch.ids))
        expected = theirs(input_ids=joined).logits[:, len(batch.prefix) :]
    assert torch.allclose(logits, expected, atol=2e-3)


def test_a_saved_model_is_the_same_when_loaded(tmp_path: Path) -> None:
    """Saving rounds to bfloat16 and nothing else."""
    torch.manual_seed(0)
    model = Qwen3(Shape(vocabulary=64, hidden=32, layers=2, heads=1))
    model.save(tmp_path, end=1, pad=0)
    loaded = Qwen3.load(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(torch.bfloat16).float())


def test_the_bundled_model_is_small() -> None:
    """It is committed, so it stays below 15 MB."""
    assert sum(path.stat().st_size for path in bundled_model().iterdir()) < 15_000_000


def test_training_that_goes_on_sees_the_same_batches(tokenizer: Tokenizer) -> None:
    """A data source that starts at block 1 gives what one that started at block 0 gives there."""

    def first_of_block_one(source: Batches) -> Any:
        return next(batch for batch in source if batch.block == 1)

    straight = first_of_block_one(Batches(tokenizer, RECIPES["atlas"], tokens=8192, seed=9))
    resumed = first_of_block_one(Batches(tokenizer, RECIPES["atlas"], tokens=8192, seed=9, start=1))
    assert torch.equal(straight.ids, resumed.ids)
    assert torch.equal(straight.labels, resumed.labels)


def test_labels_are_what_the_model_is_to_say(tokenizer: Tokenizer) -> None:
    """Labels are the ids of learned pieces, in place, and nothing of the questions or the results."""
    for episode in islice(episodes(load_world(), random.Random(6)), 200):
        ids, labels = encode(tokenizer, episode)
        said = [token for token in labels if token != IGNORED]
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
        learned = "".join(piece.text for piece in episode.pieces if piece.learn)
        assert tokenizer.decode(said, skip_special_tokens=False) == learned
        whole = "".join(piece.text for piece in episode.pieces)
        assert tokenizer.encode(whole, add_special_tokens=False).ids == ids
