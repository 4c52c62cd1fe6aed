"""What the training loop runs around the files' model, on one that has learned nothing."""

from __future__ import annotations

import argparse
import random
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from governor_training.files import check as checked
from governor_training.files.cli import register
from governor_training.files.recipe import FILES
from governor_training.files.world import KEYS, values
from governor_training.pretraining import chat
from governor_training.pretraining.batches import IGNORED, encode
from governor_training.pretraining.model import Qwen3, Shape
from governor_training.pretraining.tokenizer import VOCABULARY, build, token_id


def test_a_model_that_knows_nothing_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs to its end on whatever the model says, and finds no task done."""
    monkeypatch.setattr(checked, "EDITS", 4)
    tokenizer = build(tmp_path, (episode.text for episode in islice(FILES.episodes(random.Random(1)), 400)))
    model = Qwen3(Shape(VOCABULARY, hidden=32, layers=1, heads=1))
    model.save(tmp_path, end=token_id(tokenizer, chat.END), pad=token_id(tokenizer, chat.PAD))
    figures = FILES.check(tmp_path)
    assert figures["done"] == figures["confirmed"] == figures["sure_right"] == 0


def test_a_value_is_one_token_wherever_it_stands(tmp_path: Path) -> None:
    """In a file, in a call and in an answer: so a value can be copied in one step."""
    tokenizer = build(tmp_path, (episode.text for episode in islice(FILES.episodes(random.Random(1)), 1500)))
    every = {value for key in KEYS for value in values(key)}
    learned = 0
    for episode in islice(FILES.episodes(random.Random(2)), 300):
        ids, labels = encode(tokenizer, episode)
        text = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
        digits = [place for place, token in enumerate(text) if token.strip().isdigit()]
        asked = {place for place in digits if labels[place] != IGNORED}
        learned += len(asked)
        assert {text[place] for place in asked} <= every
    assert learned > 300


def test_the_command_gives_what_the_training_reads() -> None:
    """Every option has a value."""
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    options = parser.parse_args(["files", "train", "--steps", "7", "--threads", "1"])
    assert (options.steps, options.threads, options.out) == (7, 1, Path("build/files/model"))
    for name in (
        "tokens",
        "lr",
        "lr_rest",
        "hidden",
        "layers",
        "seed",
        "check_every",
        "save_every",
        "device",
    ):
        assert getattr(options, name)
