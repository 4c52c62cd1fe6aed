"""The probe's request leaves the prefix alone, and its answer is only taken for one if it is."""

from __future__ import annotations

import copy
import json
from math import log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.errors import ProbeFailed
from governor.probe import ProbeAnswer, ProbeSettings, fingerprint, probe_answer, probe_request, without_calls
from governor.spans import Markup

VOCAB = 100
SETTINGS = ProbeSettings(call_start_id=7)
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
    "tools": [{"type": "function", "function": {"name": "lookup"}}],
    "stop": ["\n\n"],
    "response_format": {"type": "text"},
    "cache_salt": "s",
}


def response(*tokens: tuple[str, float], content: str | None = None, **choice: Any) -> dict[str, Any]:
    """A chat response; each token with its probability, the rest of it on one other token."""
    logprobs = [
        {"token": text, "logprob": log(p), "top_logprobs": [{"logprob": log(p)}, {"logprob": log(1 - p)}]}
        for text, p in tokens
    ]
    text = "".join(t for t, _ in tokens if not t.startswith("<")) if content is None else content
    return {
        "choices": [
            {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": logprobs}}
            | choice
        ],
        "usage": {"prompt_tokens": 30, "completion_tokens": 3},
    }


def reason(answer: Any) -> str:
    """Why this response is no answer."""
    with pytest.raises(ProbeFailed) as caught:
        probe_answer(answer, VOCAB)
    return caught.value.reason


def test_the_prefix_stays_the_clients() -> None:
    """Messages, tools and whatever else shapes the prompt are the same objects, so that the cache serves
    them."""
    request = probe_request(BODY, SETTINGS)
    for key in ("model", "messages", "tools", "stop", "response_format", "cache_salt"):
        assert request[key] is BODY[key]
    assert "chat_template_kwargs" not in request


def test_the_probe_is_short_greedy_and_measured() -> None:
    """One whole answer with logprobs, and no tools."""
    request = probe_request(BODY | {"stream": True, "n": 1, "temperature": 0.7, "max_tokens": 4000}, SETTINGS)
    expected = {"stream": False, "n": 1, "temperature": 0, "max_tokens": 48, "tool_choice": "none"}
    assert request | expected | {"logprobs": True, "top_logprobs": 20} == request


@pytest.mark.parametrize(
    "field",
    [
        "stream_options",
        "seed",
        "max_completion_tokens",
        "min_tokens",
        "request_id",
        "return_tokens_as_token_ids",
    ],
)
def test_what_is_meant_for_the_clients_own_answer_is_left_out(field: str) -> None:
    """It would make the probe fail, collide with the answer, or hide the tokens' texts."""
    assert field not in probe_request(BODY | {field: 1}, SETTINGS)


def test_a_known_id_is_banned_by_a_bias() -> None:
    """Beside the client's own biases."""
    request = probe_request(BODY | {"logit_bias": {"3": 5, "7": 1}}, SETTINGS)
    assert request["logit_bias"] == {"3": 5, "7": -100}
    assert "bad_words" not in request


def test_without_an_id_the_text_is_banned() -> None:
    """Beside the client's own bad words; a model without a marker has nothing to ban."""
    assert probe_request(BODY, ProbeSettings())["bad_words"] == ["<tool_call>"]
    assert probe_request(BODY | {"bad_words": ["x"]}, ProbeSettings())["bad_words"] == ["x", "<tool_call>"]
    assert "bad_words" not in probe_request(BODY, ProbeSettings(call_start=""))


def test_template_arguments_are_added_to_the_clients() -> None:
    """The probe's own win."""
    settings = ProbeSettings(chat_template_kwargs={"enable_thinking": False})
    body = BODY | {"chat_template_kwargs": {"enable_thinking": True, "language": "en"}}
    kwargs = probe_request(body, settings)["chat_template_kwargs"]
    assert kwargs == {"enable_thinking": False, "language": "en"}
    assert probe_request(BODY, settings)["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_forced_generation_keeps_the_clients_sampling() -> None:
    """It becomes the client's message: only the calls are gone."""
    body = BODY | {"temperature": 0.7, "stream": True, "seed": 1, "max_completion_tokens": 99}
    assert without_calls(body, SETTINGS) == body | {"tool_choice": "none", "logit_bias": {"7": -100}}


@given(st.dictionaries(st.sampled_from(["logit_bias", "chat_template_kwargs"]), st.just({"1": 2})))
def test_the_clients_request_is_not_changed(extra: dict[str, Any]) -> None:
    """It is still to be sent, or to be recorded."""
    body = BODY | extra
    before = copy.deepcopy(body)
    probe_request(body, ProbeSettings(1, 1, 1, chat_template_kwargs={"a": 1}))
    without_calls(body, ProbeSettings())
    assert body == before


def test_an_answers_figures_are_over_its_own_tokens() -> None:
    """The end of turn is certain by nature and would dilute the mean; the extremes are over every other
    token."""
    answer = probe_answer(response(("Os", 0.75), ("lo", 0.95), ("<|im_end|>", 0.999)), VOCAB)
    assert (answer.text, answer.finished, answer.tokens) == ("Oslo", True, 2)
    assert answer.least_margin == pytest.approx(0.5)
    assert answer.logprob == pytest.approx(log(0.75) + log(0.95))
    assert answer.max_entropy == pytest.approx(-0.75 * log(0.75) - 0.25 * log(0.25))
    assert answer.mean_entropy < answer.max_entropy
    assert (answer.prompt_tokens, answer.completion_tokens) == (30, 3)


def test_reasoning_is_no_part_of_the_answer() -> None:
    """Where the template opens it in the prompt, only its end is in the tokens."""
    tokens = (("hm", 0.51), ("</think>", 0.9), ("Oslo", 0.9))
    assert probe_answer(response(*tokens, content="Oslo"), VOCAB).tokens == 1


def test_an_answer_that_was_cut_off_is_not_finished() -> None:
    """It may go on to say anything."""
    assert not probe_answer(response(("Os", 0.9), finish_reason="length"), VOCAB).finished


@pytest.mark.parametrize("usage", [None, "x", {}, {"prompt_tokens": None}])
def test_unknown_costs_are_counted_as_nothing(usage: Any) -> None:
    """A missing usage is no reason to lose the answer."""
    answer = probe_answer(response(("Oslo", 0.9)) | {"usage": usage}, VOCAB)
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_answer_is_none(content: str) -> None:
    """The model had nothing to say without the call."""
    assert reason(response(("\n", 0.9), ("<|im_end|>", 0.9), content=content)) == "empty"


def test_an_answer_the_engine_took_for_reasoning_is_none() -> None:
    """`content` is null then, whatever the tokens say."""
    answer = response(("Oslo", 0.9))
    answer["choices"][0]["message"]["content"] = None
    assert reason(answer) == "empty"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "lookup"}',
        '{"name": "lookup", "arguments": {}}',
        ' [{"name": "lookup"',
        '```json\n{"arguments": {}',
        "<function=lookup>",
    ],
)
def test_a_call_in_disguise_is_no_answer(text: str) -> None:
    """Small models write the call without its marker once that is banned; the client must never read it as
    text."""
    assert reason(response(("x", 0.9), content=text)) == "call"


def test_a_tool_call_is_no_answer() -> None:
    """Some engines call in spite of "none"."""
    assert reason(response(("x", 0.9), message={"content": "Oslo", "tool_calls": [{}]})) == "call"


def test_a_model_without_call_markers_can_answer() -> None:
    """The empty marker is in no text."""
    markup = Markup(call=("", ""))
    assert probe_answer(response(("Oslo", 0.9)), VOCAB, markup).text == "Oslo"


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, "x"])
def test_an_answer_without_logprobs_is_none(logprobs: Any) -> None:
    """Nothing was measured."""
    assert reason(response(("Oslo", 0.9), logprobs=logprobs)) == "no_logprobs"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": ["x"]},
        {"choices": [{}]},
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": 1}}]},
        response(("Oslo", 0.9), logprobs={"content": [{"token": "Oslo"}]}),
    ],
)
def test_a_malformed_response_is_one_error(answer: Any) -> None:
    """The caller counts it by its reason and lets the call pass."""
    assert reason(answer) == "malformed"


def test_answers_are_the_same_but_for_case_and_whitespace() -> None:
    """The fingerprint tells it, also after the text is gone."""
    first, same, other = (ProbeAnswer(t, True, 0, 0, 1, 0, 1, 1) for t in ("Oslo ", "oslo", "Bergen"))
    assert first.same_answer(same)
    assert not first.same_answer(other)
    assert first.fingerprint == fingerprint("OSLO")


def test_a_recorded_answer_of_the_engine_is_read() -> None:
    """Bytes as the engine sent them."""
    answer = probe_answer(recorded("chat_after_tool_none"), 256)
    assert answer.text == "The weather in Cairo is 31 C and sunny."
    assert (answer.finished, answer.tokens, answer.completion_tokens) == (True, 12, 13)
    assert 0.0 < answer.mean_entropy < answer.max_entropy
    assert 0.0 <= answer.least_margin < 1.0


def test_a_recorded_call_in_spite_of_none_is_refused() -> None:
    """With `tool_choice: none` and no ban the engine returns the call as content."""
    with pytest.raises(ProbeFailed, match="call"):
        probe_answer(recorded("chat_tools_none"), 256)


def recorded(name: str) -> dict[str, Any]:
    """The body of a recorded response."""
    text = (Path(__file__).parents[1] / "wire" / f"{name}.txt").read_text()
    body: dict[str, Any] = json.loads(text.split("# BODY\n", 1)[1])
    return body
