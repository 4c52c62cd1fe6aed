"""What is governed, what is added to it, and how that is taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.request import ClientView, Untouched, untouched
from tests.wire.generated import Generated, chat, made
from tests.wire.recorded import recorded

CALL = ("c1", "lookup", "{}")
GENERATIONS = [
    Generated(content="Oslo is the capital."),
    Generated(content="\n", calls=[CALL]),
    Generated(reasoning="Think first.", content="Oslo."),
    Generated(reasoning="Hm.", content="Let me look.", calls=[CALL, ("c2", "lookup", '{"a": 1}')]),
]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, None),
        ({"n": 1, "stream": True, "logprobs": True, "top_logprobs": 3}, None),
        ({"tool_choice": "required"}, Untouched.FORCED_CALL),
        ({"tool_choice": {"type": "function", "function": {"name": "lookup"}}}, Untouched.FORCED_CALL),
        ({"n": 2}, Untouched.SEVERAL_CHOICES),
        ({"prompt_logprobs": 0}, Untouched.OTHER_LOGPROBS),
        ({"logprob_token_ids": [1]}, Untouched.OTHER_LOGPROBS),
        ({"return_tokens_as_token_ids": True}, Untouched.OTHER_LOGPROBS),
        ({"echo": True}, Untouched.OTHER_DECODING),
        ({"use_beam_search": True}, Untouched.OTHER_DECODING),
        ({"top_logprobs": 5}, Untouched.MALFORMED),
        ({"top_logprobs": "5", "logprobs": True}, Untouched.MALFORMED),
        ({"messages": "x"}, Untouched.MALFORMED),
        ({"messages": ["x"]}, Untouched.MALFORMED),
        ({"stream": "yes"}, Untouched.MALFORMED),
        ({"tools": []}, Untouched.NO_TOOLS),
    ],
)
def test_only_free_choices_between_calls_and_text_are_governed(
    fields: dict[str, Any], why: Untouched | None
) -> None:
    """What the client decided itself, and what cannot be measured, goes upstream as it is."""
    assert untouched(chat() | fields) == why


@pytest.mark.parametrize("body", [None, [], "x", 1, {}])
def test_what_is_no_chat_request_is_left_alone(body: object) -> None:
    """Anything that JSON can hold is judged without an exception."""
    assert untouched(body) is Untouched.MALFORMED


def test_a_conversation_with_results_is_measured_without_tools() -> None:
    """The turn after the last result tells what the result was worth, even when no more calls are
    possible."""
    question = {"role": "user", "content": "?"}
    assert untouched(chat(question, *made(CALL), tools=())) is None


@pytest.mark.parametrize(
    "name", ["err_badjson_type", "err_top_logprobs_nolog", "err_toolchoice_notools", "err_stream_plp"]
)
def test_a_request_that_upstream_refuses_is_not_made_acceptable(name: str) -> None:
    """Injecting logprobs into a request that asks for top_logprobs alone would turn its error into an
    answer."""
    recording = recorded(name)
    assert recording.status == 400
    assert untouched(recording.request) is not None


@pytest.mark.parametrize(("asked", "sent"), [(None, 20), (0, 20), (2, 20), (20, 20), (25, 25), (-1, -1)])
def test_never_fewer_logprobs_are_asked_for_than_the_client_wants(asked: int | None, sent: int) -> None:
    """The client's number wins if it is larger; -1 is the whole vocabulary."""
    body = chat(logprobs=True, top_logprobs=asked)
    request = ClientView.of(body, 20).request(body)
    assert (request["logprobs"], request["top_logprobs"]) == (True, sent)
    assert {key: request[key] for key in body if "logprobs" not in key} == chat()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("asked", [None, 0, 1, 2, 20])
def test_the_client_receives_what_it_would_have_received(generation: Generated, asked: int | None) -> None:
    """Logprobs, their number and the chunks that exist for their sake are as if the governor had asked for
    none."""
    fields: dict[str, Any] = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    view = ClientView.of(chat(**fields), 20)
    expected = Generated(generation.content, generation.reasoning, generation.calls, top=asked)
    assert view.response(generation.response()) == expected.response()
    assert _seen(view, generation.chunks(usage=True)) == expected.chunks(usage=True)


@given(asked=st.integers(0, 20), kept=st.lists(st.integers(0, 40), max_size=8))
def test_taking_out_twice_is_taking_out_once(asked: int, kept: list[int]) -> None:
    """A client's view of its own view is the same."""
    view = ClientView.of(chat(logprobs=True, top_logprobs=asked), 20)
    for chunk in Generated(content=" ".join(map(str, kept)), calls=[CALL]).chunks():
        seen = view.chunk(chunk)
        assert seen is not None
        assert view.chunk(seen) == seen


def test_what_the_client_asked_for_in_full_is_the_same_object() -> None:
    """The proxy sends the original bytes for a chunk that it did not have to change."""
    view = ClientView.of(chat(logprobs=True, top_logprobs=20), 20)
    chunks = Generated(content="Oslo.", calls=[CALL]).chunks()
    assert all(view.chunk(chunk) is chunk for chunk in chunks)


def test_chunks_with_token_ids_stay() -> None:
    """vLLM sends swallowed tokens to a client that asked for their ids, so only the logprobs go."""
    chunks = recorded("chat_tools_auto_stream_tokenids").chunks
    seen = _seen(ClientView.of(chat(return_token_ids=True), 20), chunks)
    assert len(seen) == len(chunks)
    assert [chunk["choices"][0].get("token_ids") for chunk in seen] == [
        chunk["choices"][0].get("token_ids") for chunk in chunks
    ]
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in seen)


@pytest.mark.parametrize("name", ["reason_auto_stream", "reason_none_stream", "chat_tools_auto_stream"])
def test_recorded_streams_keep_every_delta(name: str) -> None:
    """Only chunks without anything in them but logprobs disappear."""
    chunks = recorded(name).chunks
    seen = _seen(ClientView.of(chat(), 20), chunks)
    assert _deltas(seen) == [delta for delta in _deltas(chunks) if delta]
    assert seen[-1].get("usage") == chunks[-1].get("usage")


def test_unknown_fields_and_nulls_stay() -> None:
    """A field that is null is not a field that is absent."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}, "new": None}]}
    seen = ClientView.of(chat(), 20).chunk(chunk | {"future": {"a": None}})
    assert seen == {
        "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "new": None}],
        "future": {"a": None},
    }


def test_an_error_in_the_stream_is_not_touched() -> None:
    """vLLM tells a failure in the middle of a stream as an event of its own."""
    error = {"error": {"message": "boom", "type": "InternalServerError", "code": 500}}
    assert ClientView.of(chat(), 20).chunk(error) is error


def _seen(view: ClientView, chunks: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    return [seen for chunk in chunks if (seen := view.chunk(chunk)) is not None]


def _deltas(chunks: list[Any]) -> list[dict[str, Any]]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["delta"] for choice in choices if not choice.get("finish_reason")]
