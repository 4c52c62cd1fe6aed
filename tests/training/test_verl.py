"""The estimator for verl, on what verl has of a rollout, and the plug-in on a stand-in for verl."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoTokenizer

from governor.rewards import Against, Statistic, normalised
from governor_training.atlas.environment import bundled_model
from governor_training.errors import UsageError
from governor_training.finetuning.online.rollouts import ChatFormat
from governor_training.finetuning.verl_estimator import Options, Response, advantages
from governor_training.pretraining import chat


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bundled_model())


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


def response(uid: str, score: float, *turns: tuple[str, float], result: str = "Lima") -> Response:
    """Each turn is a call (or the answer) with the entropy of all its tokens."""
    tokens: list[int] = []
    mask: list[int] = []
    entropies: list[float] = []
    for number, (text, entropy) in enumerate(turns):
        if number:
            between = ids("\n" + chat.tool_turn(result) + chat.ASSISTANT)
            tokens, mask = tokens + between, mask + [0] * len(between)
            entropies = entropies + [9.0] * len(between)
        said = ids(chat.thought("Peru: Lima") + text + chat.END)
        tokens, mask, entropies = tokens + said, mask + [1] * len(said), entropies + [entropy] * len(said)
    return Response(uid, score, tokens, mask, entropies)


LOOKUP = chat.call("lookup", country="Peru", field="capital")
SAVE = chat.call("save_note", text="Lima")
GROUP = [
    response("a", 1.0, ("Lima", 0.1)),
    response("a", 1.0, (LOOKUP, 1.0), ("Lima", 0.1)),
    response("a", 1.0, (LOOKUP, 0.1), ("Lima", 0.1)),
    response("a", 0.0, ("Lagos", 1.0)),
]


def means(rows: list[list[float]], responses: list[Response]) -> list[float]:
    """The advantage of the first token of each row, which must be that of all that the model wrote."""
    for row, one in zip(rows, responses, strict=True):
        assert {value for value, mine in zip(row, one.mask, strict=True) if mine} == {row[0]}
        assert not any(value for value, mine in zip(row, one.mask, strict=True) if not mine)
    return [row[0] for row in rows]


def test_the_sparse_rewards_are_those_of_the_core() -> None:
    """Right at once, right by an informative call, right by a wasted one, wrong."""
    found = means(advantages(GROUP, ChatFormat(tokenizer()), Options()), GROUP)
    assert found == pytest.approx(normalised([1.0, 1.0, 0.0, 0.0]))


def test_groups_are_told_by_their_uid_wherever_they_stand() -> None:
    """verl balances its batches over the workers: the rollouts of a question are not beside each other."""
    other = [response("b", 0.0, ("x", 1.0)), response("b", 1.0, ("Lima", 0.1))]
    mixed = [other[0], *GROUP[:2], other[1], *GROUP[2:]]
    found = means(advantages(mixed, ChatFormat(tokenizer()), Options()), mixed)
    alone = means(advantages(GROUP, ChatFormat(tokenizer()), Options()), GROUP)
    assert [found[place] for place in (1, 2, 4, 5)] == alone
    assert [found[0], found[3]] == pytest.approx(normalised([0.0, 1.0]))


def test_calls_with_an_effect_are_no_calls_for_information() -> None:
    """Named by the configuration: without it a right answer that was also saved would be punished."""
    saved = [response("a", 1.0, (SAVE, 0.1), ("Lima", 0.1), result="saved"), GROUP[0]]
    reading = Options.of({"read_only": ["lookup"]})
    assert means(advantages(saved, ChatFormat(tokenizer()), reading), saved) == [0.0, 0.0]
    assert means(advantages(saved, ChatFormat(tokenizer()), Options()), saved)[0] < 0


def test_the_dense_reward_lies_on_the_turn_of_the_call() -> None:
    """An informative call above a wasted one; the answers of both alike."""
    rows = advantages(GROUP, ChatFormat(tokenizer()), Options.of({"reward": "dense"}))
    informative, wasted = rows[1], rows[2]
    assert informative[0] > wasted[0]
    assert informative[-1] == wasted[-1] > rows[3][0]


def test_settings_have_the_names_of_the_command() -> None:
    """A name that is not known must not be passed over in silence."""
    made = Options.of({"reward": "otc", "stake": 0.5, "against": "previous", "statistic": "max", "skip": 2})
    assert (made.method.name, made.settings.stake, made.choice.skip) == ("otc", 0.5, 2)
    assert (made.settings.against, made.choice.statistic) == (Against.PREVIOUS, Statistic.MAX)
    with pytest.raises(ValueError, match="steak"):
        Options.of({"steak": 0.5})
    with pytest.raises(UsageError, match="no reward"):
        Options.of({"reward": "spare"})


def test_lengths_that_differ_are_refused() -> None:
    """Padding that was not taken off would shift every turn."""
    with pytest.raises(ValueError, match="different lengths"):
        advantages([Response("a", 1.0, [1, 2], [1, 1], [0.0])], ChatFormat(tokenizer()), Options())


class Queue:
    """What verl keeps a batch in."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)

    def kv_batch_get(self, keys: Any, partition_id: str, select_fields: list[str]) -> Mapping[str, Any]:
        return {name: self.fields[name] for name in select_fields if name in self.fields}

    def kv_batch_put(self, keys: Any, partition_id: str, fields: Mapping[str, Any]) -> str:
        self.fields.update(fields)
        return "written"


class Base:
    """verl's trainer, as far as the plug-in leans on it."""

    registered: ClassVar[dict[str, type]] = {}

    def __init__(self, config: Any) -> None:
        self.mode, self.tokenizer = config.trainer.v1.trainer_mode, tokenizer()

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        metrics["verl"] = 1.0
        return batch

    @classmethod
    def register(cls, name: str) -> Callable[[type], type]:
        return lambda trainer: cls.registered.setdefault(name, trainer)


def nested(rows: list[list[float]]) -> Any:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Queue]]:
    queue = Queue(
        {
            "uid": SimpleNamespace(tolist=lambda: [one.uid for one in GROUP]),
            "responses": nested([list(one.ids) for one in GROUP]),
            "response_mask": nested([list(one.mask) for one in GROUP]),
            "rm_scores": nested([[0.0] * (len(one.ids) - 1) + [one.score] for one in GROUP]),
            "entropy": nested([list(one.entropies) for one in GROUP]),
        }
    )
    contents: dict[str, dict[str, Any]] = {
        "transfer_queue": {"kv_batch_get": queue.kv_batch_get, "kv_batch_put": queue.kv_batch_put},
        "omegaconf": {"OmegaConf": SimpleNamespace(to_container=lambda told, resolve: told)},
        "tensordict": {"TensorDict": lambda fields, batch_size: fields},
        "verl": {},
        "verl.trainer": {},
        "verl.trainer.ppo": {},
        "verl.trainer.ppo.v1": {},
        "verl.trainer.ppo.v1.trainer_base": {"register_trainer": Base.register},
        "verl.trainer.ppo.v1.trainer_sync": {"PPOTrainerSync": Base},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    name = "governor_training.finetuning.verl_plugin"
    yield importlib.import_module(name), queue
    sys.modules.pop(name)
    Base.registered.clear()


def settings(**governor: Any) -> Any:
    trainer = SimpleNamespace(v1=SimpleNamespace(trainer_mode="governor_sync"))
    return SimpleNamespace(trainer=trainer, get=lambda name: governor or None)


def test_the_plugin_puts_its_advantages_in_the_place_of_verls(plugin: tuple[Any, Queue]) -> None:
    """As nested tensors of the responses' own lengths, which verl's actor trains on; verl's own step is made
    before. The base class must take the trainer for a synchronous one."""
    module, queue = plugin
    trainer = Base.registered[module.NAME](settings(reward="sparse"))
    metrics: dict[str, Any] = {}
    batch = SimpleNamespace(keys=["k"] * 4, partition_id="train", __len__=lambda: 4)
    batch = type("Batch", (), {"keys": batch.keys, "partition_id": "train", "__len__": lambda self: 4})()
    assert trainer._compute_advantage(batch, metrics) == "written"
    rows = [row.tolist() for row in queue.fields["advantages"].unbind()]
    assert [len(row) for row in rows] == [len(one.ids) for one in GROUP]
    assert means(rows, GROUP) == pytest.approx(normalised([1.0, 1.0, 0.0, 0.0]))
    assert (metrics["verl"], metrics["governor/score"]) == (1.0, 0.75)
    assert trainer.mode == "sync"


def test_without_entropies_the_plugin_says_which_setting_keeps_them_away(plugin: tuple[Any, Queue]) -> None:
    """verl makes no pass for the old log-probabilities when it takes the sampler's."""
    module, queue = plugin
    del queue.fields["entropy"]
    trainer = Base.registered[module.NAME](settings())
    batch = SimpleNamespace(keys=["k"] * 4, partition_id="train")
    with pytest.raises(RuntimeError, match="bypass_mode must be off"):
        trainer._compute_advantage(batch, {})
