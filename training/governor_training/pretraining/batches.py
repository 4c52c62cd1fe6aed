"""Episodes as batches of tokens, the same for a given seed and place, so that a stopped training can go
on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from governor_training.pretraining.episode import Episode, Recipe

BLOCK = 2048
"""Episodes that are sorted by length together, so that batches need little padding."""
IGNORED = -100


Row = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """`prefix` is (P,), common to all rows; `ids` and `labels` are (B, T), what follows it.

    Labels are `IGNORED` where the model does not learn. `block` is where the batch comes from.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    block: int

    def to(self, device: str) -> Batch:
        return replace(
            self, prefix=self.prefix.to(device), ids=self.ids.to(device), labels=self.labels.to(device)
        )


class Batches(IterableDataset[Batch]):
    """Batches of at most `tokens` tokens, padding included, from block `start` on, without end."""

    def __init__(
        self, tokenizer: Tokenizer, recipe: Recipe, *, tokens: int, seed: int, start: int = 0
    ) -> None:
        self._tokenizer, self._recipe = tokenizer, recipe
        self._tokens, self._seed, self._start = tokens, seed, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        block = self._start + first
        while True:
            yield from self._block(block)
            block += step

    def _block(self, block: int) -> Iterator[Batch]:
        rng = random.Random(f"{self._seed}/{block}")
        by_prefix: dict[str, list[Row]] = defaultdict(list)
        for episode in islice(self._recipe.episodes(rng), BLOCK):
            by_prefix[episode.prefix].append(encode(self._tokenizer, episode))
        batches = [batch for prefix, rows in by_prefix.items() for batch in self._cut(prefix, rows, block)]
        rng.shuffle(batches)
        yield from batches

    def _cut(self, prefix: str, rows: list[Row], block: int) -> Iterator[Batch]:
        head = torch.tensor(self._tokenizer.encode(prefix, add_special_tokens=False).ids)
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: len(row[0])):
            if batch and len(row[0]) * (len(batch) + 1) > self._tokens:
                yield _pad(head, batch, block)
                batch = []
            batch.append(row)
        if batch:
            yield _pad(head, batch, block)


def encode(tokenizer: Tokenizer, episode: Episode) -> Row:
    """Token ids of what follows the prefix, and the labels that say which of them are learned."""
    ids: list[int] = []
    labels: list[int] = []
    for piece in episode.pieces:
        tokens = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += tokens
        labels += tokens if piece.learn else [IGNORED] * len(tokens)
    return ids, labels


def _pad(prefix: torch.Tensor, rows: list[Row], block: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, (row, targets) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, : len(targets)] = torch.tensor(targets)
    return Batch(prefix, ids, labels, block)
