"""Upstream's answers are read as far as somebody needs them, and nobody can tell."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.tokens import Unread, tokens_from_logprobs
from governor_server.answers import chunk, parsed
from governor_server.sse import Event
from tests.wire.recorded import recorded

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def read_to_the_end(value: Any) -> Any:
    """`value` with everything in it parsed."""
    if isinstance(value, Unread):
        return orjson.loads(value.raw)
    if isinstance(value, dict):
        return {key: read_to_the_end(inner) for key, inner in value.items()}
    return [read_to_the_end(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["chat_tools_none", "chat_plain", "n2", "err_model"])
def test_what_is_left_unread_is_what_upstream_sent(name: str) -> None:
    body = recorded(name).body
    assert read_to_the_end(parsed(body)) == orjson.loads(body)


def test_the_logprobs_of_an_answer_are_left_unread() -> None:
    (choice,) = parsed(recorded("chat_tools_none").body)["choices"]
    assert isinstance(choice["logprobs"], Unread)


def test_what_is_measured_is_read_of_them() -> None:
    body = recorded("chat_tools_none").body
    (choice,) = parsed(body)["choices"]
    of_all = orjson.loads(body)["choices"][0]["logprobs"]["content"]
    content = choice["logprobs"].parse(choice["logprobs"].raw)["content"]
    assert tokens_from_logprobs(content, 1000) == tokens_from_logprobs(of_all, 1000)


LOGPROBS = {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": []}]}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"logprobs": LOGPROBS}, {"logprobs": LOGPROBS}]},
        {"choices": [], "logprobs": LOGPROBS},
        {"logprobs": LOGPROBS},
        {"choices": [{"delta": {"logprobs": LOGPROBS}, "logprobs": LOGPROBS}]},
        {"logprobs": LOGPROBS, "choices": [{"logprobs": {"content": []}}]},
        {"choices": {"logprobs": LOGPROBS}},
        {"choices": [[{"logprobs": LOGPROBS}]]},
        [{"choices": [{"logprobs": LOGPROBS}]}],
    ],
)
def test_of_odd_bodies_nothing_is_taken_away(body: Any) -> None:
    assert read_to_the_end(parsed(orjson.dumps(body))) == body


@given(st.dictionaries(st.sampled_from(["choices", "logprobs", "delta", "x"]), JSON, max_size=3), JSON, JSON)
def test_any_body_reads_the_same(body: dict[str, Any], delta: Any, more: Any) -> None:
    whole = {**body, "choices": [{"delta": delta, "logprobs": LOGPROBS, "more": more}]}
    assert read_to_the_end(parsed(orjson.dumps(whole))) == whole


def test_what_is_broken_in_the_logprobs_is_told_when_they_are_read() -> None:
    body = orjson.dumps({"choices": [{"logprobs": LOGPROBS}]}).replace(b'"token":"x"', b'"token":"\xff"')
    (choice,) = parsed(body)["choices"]
    with pytest.raises(ValueError, match="utf-8"):
        choice["logprobs"].parse(choice["logprobs"].raw)


@pytest.mark.parametrize("data", [b"[]", b"[[1, 2]]", b"null", b"1"])
def test_a_chunk_is_an_object(data: bytes) -> None:
    with pytest.raises(TypeError):
        chunk(Event(b"data: " + data + b"\n\n", data), parsed)


@pytest.mark.parametrize("body", [b"", b"{", b'{"choices":[{"logprobs":{"content":[{]}}]}', b"\xff"])
def test_what_is_no_json_is_told(body: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(body)
