"""What the model gets to see of a conversation's results, through the proxy, over its turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from governor.pruning import is_stub
from tests.server.scripted_upstream import Answer, Proxied, ScriptedUpstream, proxied, scripted
from tests.wire.generated import Generated, chat

EUROPE = ("c1", "lookup", '{"country": "Europe"}')
NORWAY = ("c2", "lookup", '{"country": "Norway"}')
LONG = "Norway is a country in the north of Europe. " * 40
GUESS, OTHER_GUESS = Generated(content="Bergen", sure=0.4), Generated(content="Oslo", sure=0.4)
SURE = Generated(content="Oslo")
PRUNING = {"policy": "low_value"}


class Talk:
    """An agent's conversation; the history keeps every result in full."""

    def __init__(self, proxy: Proxied, upstream: ScriptedUpstream) -> None:
        self._proxy, self._upstream = proxy, upstream
        self.messages: list[dict[str, Any]] = chat()["messages"]

    async def turn(self, result: str = "", *, of: str = "") -> list[Any]:
        """Sends the history with a new result; returns the messages that upstream then saw, request by
        request."""
        if of:
            self.messages.append({"role": "tool", "tool_call_id": of, "content": result})
        before = len(self._upstream.received)
        _, _, body = await self._proxy.chat(chat(*self.messages), x_governor_conversation="talk")
        self.messages.append(json.loads(body)["choices"][0]["message"])
        return [request.json["messages"] for request in self._upstream.received[before:]]


async def test_what_was_read_while_the_model_guessed_goes_when_it_knows() -> None:
    """And stays away, byte for byte, though the agent sends it in full each time."""
    script = [
        *(Generated(calls=[EUROPE]), GUESS),
        *(OTHER_GUESS, Generated(calls=[NORWAY])),
        *(SURE, SURE, Generated(content="Oslo.")),
        Generated(content="Oslo, as I said."),
    ]
    async with (
        scripted(*(Answer.whole(one) for one in script)) as upstream,
        proxied(upstream, pruning=PRUNING) as proxy,
    ):
        talk = Talk(proxy, upstream)
        await talk.turn()
        guessing = await talk.turn(LONG, of="c1")
        assert [messages[2]["content"] for messages in guessing] == [LONG, LONG]
        whole, without, asked = await talk.turn("Oslo", of="c2")
        assert whole[2]["content"] == LONG
        assert is_stub(without[2]["content"])
        assert asked == without
        talk.messages.append({"role": "user", "content": "Are you sure?"})
        (later,) = await talk.turn()
        assert later[: len(asked)] == asked
        assert talk.messages[2]["content"] == LONG
        assert proxy.metric("governor_pruned_results_total", reason="low_value") == 1


@pytest.mark.parametrize("broken", [Answer([b"{}"], 500), Answer.whole(GUESS)])
async def test_a_result_that_may_be_needed_stays(broken: Answer) -> None:
    """The probe without it fails, or gives another answer."""
    script = [
        *(Generated(calls=[EUROPE]), GUESS),
        *(OTHER_GUESS, Generated(calls=[NORWAY])),
        SURE,
    ]
    last = Answer.whole(Generated(content="Oslo."))
    answers = [*(Answer.whole(one) for one in script), broken, last]
    async with scripted(*answers) as upstream, proxied(upstream, pruning=PRUNING) as proxy:
        talk = Talk(proxy, upstream)
        await talk.turn()
        await talk.turn(LONG, of="c1")
        *_, asked = await talk.turn("Oslo", of="c2")
        assert asked[2]["content"] == LONG
        assert talk.messages[-1]["content"] == "Oslo."
