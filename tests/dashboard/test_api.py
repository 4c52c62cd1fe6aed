"""What the page asks for: figures of the records, names of any kind, and no text that is not kept."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from governor_server.dashboard import live
from tests.dashboard import traffic
from tests.server import logs
from tests.server.bodies import answer
from tests.server.scripted_upstream import Answer, Proxied, proxied, scripted
from tests.wire.generated import Generated, chat

NORWAY = ("c1", "lookup", '{"country": "Norway"}')


@asynccontextmanager
async def serving(**sections: Any) -> AsyncIterator[Proxied]:
    async with scripted() as upstream, proxied(upstream, **sections) as proxy:
        yield proxy
    assert not [request for request in upstream.received if request.target != "/health"]


async def asked(proxy: Proxied, path: str, status: int = 200) -> Any:
    async with proxy.client.get(f"/dashboard/api/{path}") as response:
        assert response.status == status, await response.text()
        assert status == 422 or response.headers["cache-control"] == "no-store"
        return await response.json()


def talk(number: int, **fields: Any) -> list[Any]:
    return traffic.conversation(number, time.time(), Random(number), **fields)


async def test_before_any_call_there_are_zeros() -> None:
    """And no division by them."""
    async with serving() as proxy:
        found = await asked(proxy, "overview")
        assert found["total"]["calls"] == found["conversations"] == 0
        assert found["since"] is None
        assert (await asked(proxy, "tools"))["tools"] == []
        assert (await asked(proxy, "conversations"))["count"] == 0


async def test_the_figures_are_those_of_the_records() -> None:
    """The same as the routes of the operator's give."""
    async with serving(prices={"currency": "EUR", "per_call": {"*": 1.0}}) as proxy:
        # All of them over for so long that they are compared.
        before = time.time() - 100.0
        records = [r for number in range(40) for r in traffic.conversation(number, before, Random(number))]
        for record in records:
            proxy.app.store.put(record)
        for turn in logs.turns(records):
            proxy.app.turns.put(turn)
        found = await asked(proxy, "overview")
        assert found["total"]["calls"] == len(records)
        assert found["total"]["withheld"] == sum(r.decision["action"] != "pass" for r in records)
        assert found["conversations"] == 40
        assert (found["currency"], found["priced"]) == ("EUR", True)
        async with proxy.client.get("/governor/effect") as response:
            effect = await response.json()
        assert effect["governed"]["conversations"] + effect["holdout"]["conversations"] == 40
        for measure in ("calls", "tokens", "seconds", "money"):
            assert found["effect"][measure] == pytest.approx(effect[measure])
        tools = (await asked(proxy, "tools"))["tools"]
        assert sum(row["calls"] for row in tools) == len(records)
        rows = (await asked(proxy, "conversations?limit=200"))["conversations"]
        assert sum(row["calls"] for row in rows) == len(records)


async def test_conversations_are_found() -> None:
    """By part of a name or a tool, by arm and by what happened in them; a page at a time, newest first."""
    async with serving() as proxy:
        for number in range(30):
            for record in talk(number):
                proxy.app.store.put(record)
        everything = await asked(proxy, "conversations?limit=200")
        assert everything["count"] == 30
        assert everything["conversations"][0]["conversation"] == "agent-000029"
        some = await asked(proxy, "conversations?start=10&limit=5")
        assert some["conversations"] == everything["conversations"][10:15]
        assert (await asked(proxy, "conversations?text=AGENT-00002"))["count"] == 10
        mailed = await asked(proxy, "conversations?text=mail&limit=200")
        assert mailed["count"] and all("send_email" in row["tools"] for row in mailed["conversations"])
        assert (await asked(proxy, "conversations?arm=holdout"))["count"] == 3
        held = await asked(proxy, "conversations?only=withheld&limit=200")
        assert held["conversations"] == [row for row in everything["conversations"] if row["withheld"]]
        await asked(proxy, "conversations?only=nonsense", status=422)
        assert len((await asked(proxy, "conversations?limit=-5&start=-3"))["conversations"]) == 1


@pytest.mark.parametrize("name", ["acme/talk 1", "a?b#c&d=e", "ünï/☃", "<script>", "100%"])
async def test_a_conversation_of_any_name_can_be_linked_to(name: str) -> None:
    """Clients choose the names."""
    async with serving() as proxy:
        (record, *_) = talk(1, conversation=name)
        proxy.app.store.put(record)
        address = URL(f"/dashboard/api/conversation/{quote(name, safe='')}", encoded=True)
        async with proxy.client.get(address) as response:
            assert response.status == 200
            found = await response.json()
        assert found["conversation"] == name
        assert [call["tool"] for turn in found["turns"] for call in turn["calls"]] == [record.tool]


async def test_an_unknown_conversation_is_none() -> None:
    """It may have been forgotten since the link was made."""
    async with serving() as proxy:
        assert "error" in await asked(proxy, "conversation/nobody", status=404)


@pytest.mark.parametrize("kept", [False, True])
async def test_texts_are_shown_only_where_they_are_kept(kept: bool, tmp_path: Path) -> None:
    """A governed conversation, from the wire to the page."""
    store = {"path": str(tmp_path / "records.db"), "keep_conversations": kept}
    replies = [
        answer(Generated(content="Let me see.", calls=[NORWAY]), False),
        Answer.whole(Generated(content="Rome", sure=0.4)),
        answer(Generated(content="It is Oslo."), False),
    ]
    async with (
        scripted(*replies) as upstream,
        proxied(upstream, store=store, tools={"read_only": ["lookup"]}, observe={"probe": False}) as proxy,
    ):
        headers = {"x-governor-conversation": "talk"}
        question = {"role": "user", "content": "What is the capital of Norway?"}
        body = chat(question)
        async with proxy.client.post("/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200
        proxy.app.store.close()
        if proxy.app.transcripts is not None:
            proxy.app.transcripts.close()
        found = await asked(proxy, "conversation/talk")
    (turn,) = found["turns"]
    text = json.dumps(found)
    assert ("Norway" in text) is kept
    assert turn["calls"][0]["tool"] == "lookup"
    if kept:
        tokens = turn["transcript"]["tokens"]
        written = "".join(token[0] for token in tokens)
        assert "Let me see." in written
        assert {kind for _, _, kind in tokens} >= {"content", "call"}
        assert all(entropy >= 0 for _, entropy, _ in tokens)
    else:
        assert turn["transcript"] is None


async def test_figures_are_streamed_to_all_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """As events, with what came since."""
    monkeypatch.setattr(live, "TICK_S", 0.02)
    async with serving() as proxy, proxy.client.get("/dashboard/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert (await _ticked(response))["total"]["calls"] == 0
        records = talk(7)
        for record in records:
            proxy.app.store.put(record)
        for _ in range(100):
            if (await _ticked(response))["total"]["calls"] == len(records):
                break
        else:
            pytest.fail("the new calls never came")


async def _ticked(response: Any) -> Any:
    async for line in response.content:
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    pytest.fail("the stream ended")


async def test_who_looks_is_let_go_when_the_proxy_drains() -> None:
    """At once, and nobody is taken in any more: the end must not wait for a browser."""
    async with serving() as proxy:
        async with proxy.client.get("/dashboard/events") as response:
            await _ticked(response)
            proxy.app.drain()
            await response.content.read()
        async with proxy.client.get("/dashboard/events") as response:
            assert response.status == 503


async def test_viewers_are_not_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a connection."""
    monkeypatch.setattr("governor_server.dashboard.routes.MOST_VIEWERS", 1)
    async with serving() as proxy, proxy.client.get("/dashboard/events") as response:
        await _ticked(response)
        async with proxy.client.get("/dashboard/events") as other:
            assert other.status == 503


async def test_what_if_nothing_was_recorded() -> None:
    """It says so, and is no error."""
    async with serving() as proxy:
        found = await asked(proxy, "whatif")
        assert (found["conversations"], found["points"][0]["best"]) == (0, None)
