"""A conversation as tokens: what the model generated, and how certain it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from governor.rewards import SpanChoice
from governor.spans import Markup, spans
from governor.tokens import tokens_from_logprobs
from governor_training.atlas.environment import AtlasEnvironment, bundled_model
from governor_training.environment import Split
from governor_training.errors import UsageError
from governor_training.finetuning.segments import CONTEXT, Encoded, Encoder, exact_entropies
from governor_training.finetuning.trajectory import Trajectory
from governor_training.inprocess import InProcess
from tests.training.finetuning.conversations import QUESTION, calling, conversation, logged, result

QWEN_LIKE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and message.reasoning and loop.last %}
        {{- '<think>\\n' + message.reasoning + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}{{- call.function.arguments | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Drops earlier reasoning, as Qwen3's does, and takes arguments as objects."""


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    found = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()
    add_fused_lm_head(found, outputs=("log_probs", "entropy"))
    yield found


def generated(encoder: Encoder, sequence: Encoded, turn: int) -> str:
    start, stop = sequence.span(turn)
    text: str = encoder.tokenizer.decode(sequence.ids[start:stop])
    return text


def templated(encoder: Encoder, template: str) -> Encoder:
    tokenizer = type(encoder.tokenizer).from_pretrained(bundled_model())
    tokenizer.chat_template = template
    return Encoder(tokenizer)


def test_what_was_generated_is_told_from_what_was_read(encoder: Encoder) -> None:
    """A result that is trained on teaches the model to make up results."""
    talk = conversation([logged("c1", 0)])
    (sequence,) = encoder.encode(talk)
    assert generated(encoder, sequence, 0).startswith("<think>\nNorway: Oslo\n</think>\n\n<tool_call>")
    assert generated(encoder, sequence, 0).endswith("</tool_call><|im_end|>")
    assert generated(encoder, sequence, 1).endswith("The capital of Norway is Oslo.<|im_end|>")
    own = [token for token, turn in zip(sequence.ids, sequence.turns, strict=True) if turn != CONTEXT]
    assert "tool_response" not in encoder.tokenizer.decode(own)
    whole = encoder.tokenizer.apply_chat_template(list(talk.messages), tokenize=False)
    assert encoder.tokenizer.decode(sequence.ids) == whole.rstrip()


def test_the_tokens_are_those_that_were_generated(encoder: Encoder, engine: InProcess) -> None:
    """A log holds texts; training on other tokens than those of the run would teach something else."""
    (task,) = AtlasEnvironment().tasks(1, 3, Split.TRAIN)
    body = {"messages": list(task.messages), "tools": list(task.tools), "temperature": 0, "logprobs": True}
    (answer,) = engine.answer([body])
    choice = answer["choices"][0]
    talk = Trajectory("x", [*task.messages, choice["message"]], tools=list(task.tools))
    (sequence,) = encoder.encode(talk)
    start, stop = sequence.span(0)
    texts = [encoder.tokenizer.decode([token]) for token in sequence.ids[start:stop]]
    assert texts == [token["token"] for token in choice["logprobs"]["content"]]
    assert start == answer["usage"]["prompt_tokens"]


def test_a_template_that_drops_reasoning_gives_a_sequence_for_each_turn(encoder: Encoder) -> None:
    """What the model saw in each turn was another history; and arguments are objects where it wants them."""
    other = templated(encoder, QWEN_LIKE)
    first, second = other.encode(conversation([logged("c1", 0)]))
    assert generated(other, first, 0) == '<think>\nNorway: Oslo\n</think>\n\n{"id": "c1"}<|im_end|>'
    assert set(second.turns) == {CONTEXT, 1}
    assert "<think>" not in other.tokenizer.decode(second.ids[: second.span(1)[0]])


def test_a_client_that_forgets_reasoning_is_heeded(encoder: Encoder) -> None:
    """The template would show it, the client did not send it."""
    talk = conversation([logged("c1", 0)], forgetful=True)
    _, second = encoder.encode(talk)
    assert "<think>" not in encoder.tokenizer.decode(second.ids[: second.span(1)[0]])


def test_given_turns_are_context(encoder: Encoder) -> None:
    """They are another row's to learn from."""
    (sequence,) = encoder.encode(conversation([logged("c1", 0)], given=1))
    assert set(sequence.turns) == {CONTEXT, 1}


def test_a_template_that_rewrites_the_beginning_is_refused(encoder: Encoder) -> None:
    """Rather than trained on with a mask that is wrong."""
    rewriting = templated(
        encoder, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UsageError, match="chat template"):
        rewriting.encode(conversation([]))


def test_the_exact_entropies_are_those_of_the_whole_distribution(encoder: Encoder, model: Any) -> None:
    """Each token's is of the distribution that it was drawn from, and context has none. Off by one, and
    every segment is its neighbour."""
    talks = [conversation([logged("c1", 0)]), conversation([])]
    sequences = [encoder.encode(talk)[0] for talk in talks]
    found = exact_entropies(model, sequences, 0)
    for sequence, values in zip(sequences, found, strict=True):
        logprobs = log_softmax(model(torch.tensor([sequence.ids])).logits[0].double(), -1)
        expected = (logprobs.exp() * -logprobs).sum(-1).tolist()
        assert len(values) == len(sequence.ids)
        for place, turn in enumerate(sequence.turns):
            wanted = 0.0 if turn == CONTEXT else expected[place - 1]
            assert values[place] == pytest.approx(wanted, abs=1e-3)


def test_the_governors_estimate_is_near_the_exact_value(
    encoder: Encoder, model: Any, played: Sequence[Trajectory]
) -> None:
    """From twenty logprobs and from all 1,536. It is farthest off where the model guesses among eighty
    countries, and there both are far from 0."""
    differences = []
    for talk in played:
        sequences = encoder.encode(talk)
        exact: dict[int, float | None] = {}
        for sequence, values in zip(sequences, exact_entropies(model, sequences, 0), strict=True):
            exact |= encoder.segment_entropies(sequence, values, SpanChoice(), [])
        for call in talk.calls:
            if call.before is not None and (value := exact[call.turn]) is not None:
                differences.append(abs(call.before - value))
    assert len(differences) > 30
    assert fmean(differences) < 0.06
    assert max(differences) < 0.5


def test_with_all_logprobs_estimate_and_exact_value_agree(
    encoder: Encoder, model: Any, engine: InProcess
) -> None:
    """The two ways of measuring a segment are the same but for the tail."""
    (task,) = AtlasEnvironment().tasks(1, 5, Split.TRAIN)
    size = engine.vocab_size
    body = {"messages": list(task.messages), "tools": list(task.tools), "temperature": 0}
    (answer,) = engine.answer([{**body, "logprobs": True, "top_logprobs": size}])
    choice = answer["choices"][0]
    tokens = tokens_from_logprobs(choice["logprobs"]["content"], size)
    texts = [token.text for token in tokens]
    estimated = encoder.segment_entropies(
        Encoded([0] * len(tokens), [0] * len(tokens)), [t.entropy.value for t in tokens], SpanChoice(), []
    )
    talk = Trajectory("x", [*task.messages, choice["message"]], tools=list(task.tools))
    (sequence,) = encoder.encode(talk)
    (values,) = exact_entropies(model, [sequence], 0)
    exact = encoder.segment_entropies(sequence, values, SpanChoice(), [])
    start, stop = sequence.span(0)
    assert spans(texts, Markup()) == spans(
        [encoder.tokenizer.decode([token]) for token in sequence.ids[start:stop]], Markup()
    )
    assert [t.entropy.value for t in tokens] == pytest.approx(values[start:stop], abs=1e-3)
    assert estimated.keys() == exact.keys()


def test_quotations_of_results_do_not_count(encoder: Encoder) -> None:
    """The results of the conversation are what is compared with."""
    words = "the capital of the northern country is a city on a fjord"
    messages = [
        QUESTION,
        calling("c1"),
        result("c1", words),
        {"role": "assistant", "content": f"I see : {words}"},
    ]
    talk = replace(conversation([]), messages=messages)
    (sequence,) = encoder.encode(talk)
    start, stop = sequence.span(1)
    ones = [1.0] * (start + 2) + [0.0] * (len(sequence.ids) - start - 2)
    kept = encoder.segment_entropies(sequence, ones, SpanChoice(), [words])[1]
    everything = encoder.segment_entropies(sequence, ones, SpanChoice(quote=0), [words])[1]
    assert kept is not None and everything is not None
    assert kept > everything
    assert stop > start
