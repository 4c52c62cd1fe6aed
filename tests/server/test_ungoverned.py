"""Requests with tools that pass ungoverned are counted by why, and each reason is told once."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.request import Untouched
from governor_server.ungoverned import ADVICE, OTHER_APIS, Ungoverned, UngovernedRequests, has_list, other_api
from governor_server.upstream import Stream
from tests.server.scripted_upstream import Answer, Proxied, proxied, scripted

METRIC = "governor_ungoverned_requests_total"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "lookup", "parameters": {}}}
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"

WITH_TOOLS: list[tuple[str, Any, dict[str, str], Ungoverned]] = [
    ("/v1/responses", {"input": "Hi", "tools": [TOOL]}, {}, Ungoverned.RESPONSES_API),
    ("/v1/messages", {"messages": [], "tools": [{"name": "a"}]}, {}, Ungoverned.MESSAGES_API),
    ("/v1/completions", {"prompt": "Hi", "tools": [TOOL]}, {}, Ungoverned.COMPLETIONS_API),
    ("/cohere/v2/chat", {**ASKED, "tools": [TOOL]}, {}, Ungoverned.COHERE_API),
    ("/v1//responses", {"input": "Hi", "tools": [TOOL]}, {}, Ungoverned.RESPONSES_API),
    ("/v1/messages/?beta=true", {"messages": [], "tools": [{"name": "a"}]}, {}, Ungoverned.MESSAGES_API),
    (CHAT, {**ASKED, "tools": [TOOL]}, {"x-governor": "off"}, Ungoverned.HEADER_OFF),
    (CHAT, {**ASKED, "tools": [TOOL], "tool_choice": "required"}, {}, Ungoverned.FORCED_CALL),
    (CHAT, {**ASKED, "tools": [TOOL], "n": 2}, {}, Ungoverned.SEVERAL_CHOICES),
    (CHAT, {**ASKED, "tools": [TOOL], "prompt_logprobs": 1}, {}, Ungoverned.OTHER_LOGPROBS),
    (CHAT, {**ASKED, "tools": [TOOL], "echo": True}, {}, Ungoverned.OTHER_DECODING),
    (CHAT, {**ASKED, "tools": [TOOL], "stream": "yes"}, {}, Ungoverned.MALFORMED),
    (CHAT, {**ASKED, "functions": [{"name": "lookup"}]}, {}, Ungoverned.LEGACY_FUNCTIONS),
    (CHAT, b'{"messages": [], "tools": [{}], ', {}, Ungoverned.MALFORMED),
]
WITHOUT_TOOLS: list[tuple[str, Any, dict[str, str]]] = [
    ("/v1/responses", {"input": '"tools": [1]'}, {}),
    ("/v1/responses", {"input": "Hi", "tools": []}, {}),
    ("/v1/messages", {"messages": []}, {}),
    ("/v1/embeddings", {"input": "Hi", "tools": [TOOL]}, {}),
    (CHAT, ASKED, {"x-governor": "off"}),
    (CHAT, {**ASKED, "n": 2}, {}),
    (CHAT, ASKED, {}),
    (CHAT, b"{", {}),
]


async def post(proxy: Proxied, path: str, body: Any, headers: dict[str, str]) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with proxy.client.post(path, data=data, headers=headers) as response:
        await response.read()


def counted(proxy: Proxied) -> dict[Ungoverned, float]:
    found = {reason: proxy.metric(METRIC, reason=reason.value) for reason in Ungoverned}
    return {reason: count for reason, count in found.items() if count}


@pytest.mark.parametrize(("path", "body", "headers", "reason"), WITH_TOOLS)
async def test_a_request_with_tools_that_is_not_governed_is_counted_by_why_and_told_once(
    path: str, body: Any, headers: dict[str, str], reason: Ungoverned, caplog: pytest.LogCaptureFixture
) -> None:
    """Or an operator would take an agent that is not governed for one that makes no useless calls."""
    answers = [Answer.whole({"choices": []}) for _ in range(2)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        with caplog.at_level(logging.WARNING):
            await post(proxy, path, body, headers)
            await post(proxy, path, body, headers)
        assert counted(proxy) == {reason: 2}
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert [received.body for received in upstream.received] == [sent, sent]
    warnings = [record.getMessage() for record in caplog.records if "not governed" in record.getMessage()]
    assert len(warnings) == 1 and ADVICE[reason] in warnings[0]


@pytest.mark.parametrize(("path", "body", "headers"), WITHOUT_TOOLS)
async def test_a_request_without_tools_is_not_counted(path: str, body: Any, headers: dict[str, str]) -> None:
    """There is nothing to govern in it."""
    async with scripted(Answer.whole({"choices": []})) as upstream, proxied(upstream) as proxy:
        await post(proxy, path, body, headers)
        assert counted(proxy) == {}


async def test_a_body_that_comes_in_pieces_is_looked_at_on_its_way() -> None:
    """Wherever it was cut, once, and handed on as it came."""
    whole = json.dumps({"input": "x" * 200, "tools": [TOOL], "metadata": {"tools": [1]}}).encode()
    for cut in range(1, len(whole)):
        found: list[str] = []

        async def pieces(cut: int = cut) -> AsyncIterator[bytes]:
            yield whole[:cut]
            yield whole[cut:]

        body = Stream(pieces(), len(whole))
        watched = UngovernedRequests(found.append).watched(Ungoverned.RESPONSES_API, body)
        assert isinstance(watched, Stream) and watched.length == len(whole)
        assert b"".join([piece async for piece in watched.pieces]) == whole
        assert found == ["responses_api"], cut


async def test_a_large_upload_that_streams_is_counted_too() -> None:
    """Agents send pictures; the proxy does not wait for the end of those."""
    body = json.dumps({"input": "x" * 300_000, "tools": [TOOL]}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    async with scripted(Answer.whole({})) as upstream, proxied(upstream) as proxy:
        async with proxy.client.post("/v1/responses", data=pieces()) as response:
            assert response.status == 200
        assert counted(proxy) == {Ungoverned.RESPONSES_API: 1}
        assert upstream.received[0].body == body


KEYS = st.sampled_from(["tools", "input", "a"]) | st.text(max_size=6)
TEXTS = st.text(max_size=20) | st.sampled_from(['"tools": [1]', "tools", '\\"tools\\": [{}]'])
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def holds(value: Any) -> bool:
    """Whether a list that is not empty stands under `tools` somewhere."""
    if isinstance(value, list):
        return any(map(holds, value))
    if not isinstance(value, dict):
        return False
    own = value.get("tools")
    return (isinstance(own, list) and bool(own)) or any(map(holds, value.values()))


@given(VALUES, st.sampled_from([None, 2]))
def test_the_cheap_look_agrees_with_the_parsed_body(value: Any, indent: int | None) -> None:
    """However it is written: text that looks like a key is not one."""
    assert has_list(json.dumps(value, indent=indent).encode(), b"tools") is holds(value)


def test_every_reason_has_advice_and_every_api_a_reason() -> None:
    """A reason of the core that is not known here would be an error in the middle of a request."""
    assert set(ADVICE) == set(Ungoverned)
    own = {reason.value for reason in Untouched} - {Untouched.NO_TOOLS.value}
    assert own <= {reason.value for reason in Ungoverned}
    assert set(OTHER_APIS.values()) < set(Ungoverned)


@pytest.mark.parametrize("api", OTHER_APIS)
@pytest.mark.parametrize("spelled", ["/{}", "{}/", "/.{}", "/x/..{}", "{};a=b"])
def test_an_api_is_known_by_any_spelling_of_its_path(api: str, spelled: str) -> None:
    """As a chat is: an agent whose base URL ends in a slash is not governed either."""
    assert other_api(spelled.format(api)) is OTHER_APIS[api]
