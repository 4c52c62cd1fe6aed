"""What the governor relies on in vLLM, asked of vLLM itself: a new version that changes it fails here."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from governor_server.engine import Engine

TOOL = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
}


def post(engine: Engine, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        engine.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def chat(engine: Engine, text: str = "Hello", **fields: Any) -> dict[str, Any]:
    body = {"model": "atlas", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    return post(engine, "/v1/chat/completions", body)


def test_every_generated_token_comes_with_its_twenty_likeliest_rivals(engine: Engine) -> None:
    """Token entropy is estimated from them."""
    answer = chat(engine, tools=[TOOL], logprobs=True, top_logprobs=20)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert all(len(token["top_logprobs"]) >= 20 for token in content)


def test_a_banned_token_is_never_chosen_though_its_logprob_stays(engine: Engine) -> None:
    """The probe bans the token that starts a call, and reads entropies of the unbanned distribution."""
    first_token: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    shown: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    free = chat(engine, **first_token, **shown)["choices"][0]
    (chosen,) = free["token_ids"]
    banned = chat(engine, **first_token, **shown, logit_bias={str(chosen): -100})["choices"][0]
    assert banned["token_ids"] != [chosen]
    before, after = (
        {rival["token"]: rival["logprob"] for rival in each["logprobs"]["content"][0]["top_logprobs"]}
        for each in (free, banned)
    )
    assert after[f"token_id:{chosen}"] == pytest.approx(before[f"token_id:{chosen}"], abs=1e-3)


def test_the_tokenizer_tells_the_id_of_the_call_start_token(engine: Engine) -> None:
    """One id: the ban is on a token, not on a text."""
    answer = post(engine, "/tokenize", {"prompt": "<tool_call>", "add_special_tokens": False})
    assert len(answer["tokens"]) == 1


def test_the_same_prefix_is_served_from_the_cache(engine: Engine) -> None:
    """That is what makes a probe cheap, also when it forbids tools and asks for logprobs."""
    text = "What is it? " * 60
    chat(engine, text, tools=[TOOL])
    again = chat(engine, text, tools=[TOOL], tool_choice="none", logprobs=True, top_logprobs=20)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128


def test_requests_with_a_seed_do_not_end_the_engine(engine: Engine) -> None:
    """Prefilled in chunks they would, and so a client could end it for all."""
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: chat(engine, "is it? " * (100 + seed), seed=seed), range(12)))
    assert len(answers) == 12
    assert engine.running
