"""Where upstream sends a client, it comes back to the governor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from governor_server.redirects import own_address, own_path
from tests.server.scripted_upstream import HANG, Answer, proxied, scripted
from tests.wire.generated import chat

ROOTS = [
    URL(root) for root in ("http://vllm:8000", "http://other:9000", "https://gateway/llm", "http://[::1]:9")
]


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("http://vllm:8000/v1/chat/completions", "/v1/chat/completions"),
        ("http://vllm:8000/v1/x?y=1&y=%20#z", "/v1/x?y=1&y=%20#z"),
        ("HTTP://VLLM:8000/a%2Fb", "/a%2Fb"),
        ("http://%76llm:8000/a", "/a"),
        ("http://vllm.:8000/a", "/a"),
        ("https://vllm:8000/a", "/a"),
        ("//vllm:8000/a", "/a"),
        ("http://me:secret@vllm:8000/a", "/a"),
        ("http://vllm:8000", "/"),
        ("http://vllm:8000?x=1", "/?x=1"),
        ("http://vllm:8000//elsewhere/a", "/elsewhere/a"),
        ("http://other:9000/a", "/a"),
        ("http://[::1]:9/a", "/a"),
        ("https://gateway/llm/v1/a", "/v1/a"),
        ("http://gateway:80/llm/v1/a", "/v1/a"),
        ("https://gateway/llm", "/"),
        ("https://gateway/v1/a", "/v1/a"),
        ("/llm/v1/a", "/v1/a"),
        ("/llms/v1/a", "/llms/v1/a"),
        ("/v1/a", "/v1/a"),
        ("a/b", "a/b"),
        ("", ""),
        ("http://vllm/a", "http://vllm/a"),
        ("http://vllm:8001/a", "http://vllm:8001/a"),
        ("http://elsewhere:8000/a", "http://elsewhere:8000/a"),
        ("http://vllm:8000.elsewhere/a", "http://vllm:8000.elsewhere/a"),
        ("http://vllm@elsewhere:8000/a", "http://vllm@elsewhere:8000/a"),
        ("http://[::1/a", "http://[::1/a"),
        ("mailto:me@vllm", "mailto:me@vllm"),
    ],
)
def test_an_address_of_upstream_becomes_a_path(address: str, own: str) -> None:
    """Of any of the servers, in any spelling; whatever leads elsewhere stays as it is."""
    assert own_path(address, ROOTS) == own


@pytest.mark.parametrize(
    ("value", "own"),
    [
        (b"5; url=http://vllm:8000/a", b"5; url=/a"),
        (b"0;URL='http://vllm:8000/a'", b"0;URL='/a'"),
        (b"0, url=http://elsewhere/a", b"0, url=http://elsewhere/a"),
        (b"5", b"5"),
        (b"\xff", b"\xff"),
    ],
)
def test_a_refresh_holds_an_address(value: bytes, own: bytes) -> None:
    assert own_address(b"refresh", value, ROOTS) == own


@given(st.text(max_size=40), st.sampled_from(["", "http://vllm:8000", "//vllm:8000/", "https://gateway"]))
def test_no_address_fails_or_changes_twice(rest: str, start: str) -> None:
    """What is the governor's own is a path, which stays one."""
    once = own_path(start + rest, ROOTS)
    assert own_path(once, ROOTS[:2]) == once
    assert not once.startswith("http://vllm:8000/")


@pytest.mark.parametrize("governed", [True, False])
@pytest.mark.parametrize("name", ["location", "content-location"])
async def test_a_client_that_is_sent_on_stays_here(name: str, governed: bool) -> None:
    """vLLM answers a slash too many with 307 and its own address."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        there = Answer(
            [b""], 307, [(name, f"{upstream.url}/v1/chat/completions?a"), ("x-other", upstream.url)]
        )
        upstream.script.extend([there, Answer([b"{}"])])
        path = "/v1/chat/completions/" if governed else "/v1/embeddings/"
        async with proxy.client.post(path, json=chat(), allow_redirects=False) as response:
            assert response.headers[name] == "/v1/chat/completions?a"
            assert response.headers["x-other"] == upstream.url


async def test_a_redirect_of_a_replica_leads_here_too() -> None:
    """Each may name itself, or the one that it takes for the first."""
    async with scripted() as first, scripted() as second:
        sections: dict[str, Any] = {"upstream": {"url": first.url, "replicas": [{"url": second.url}]}}
        async with proxied(first, **sections) as proxy:
            for upstream, other in ((first, second), (second, first)):
                upstream.script.extend([Answer([b""], 307, [("location", f"{other.url}/v1/x")])] * 2)
            for _ in range(2):
                async with proxy.client.get("/v1/x/", allow_redirects=False) as response:
                    assert response.headers["location"] == "/v1/x"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_whole(status: int) -> None:
    """Whatever length its head tells: that of the body that there would be."""
    async with (
        scripted(
            Answer(before=[b"HTTP/1.1 %d Fine\r\ncontent-length: 5\r\n\r\n" % status, HANG])
        ) as upstream,
        proxied(upstream) as proxy,
        proxy.client.get("/v1/models") as response,
    ):
        assert (response.status, await response.read()) == (status, b"")


async def test_a_protocol_that_nobody_offered_to_change_stays() -> None:
    """Behind 101 the client's connection would be a tunnel."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        upstream.script.append(
            Answer(before=[b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"])
        )
        async with proxy.client.get("/v1/models") as response:
            assert response.status == 502
