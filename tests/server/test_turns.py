"""What the turns of conversations took: recorded as the client had them, and kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from governor.turn_record import TurnRecord
from governor_server.turns import TurnStore
from tests.server.bodies import answer
from tests.server.records import Clock
from tests.server.scripted_upstream import Answer, Proxied, proxied, scripted
from tests.wire.generated import Generated, chat, made

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
BOOK = ("c3", "book", '{"city": "Oslo"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
OSLO = Generated(content="Oslo", id="chatcmpl-2")
UNSURE = Generated(content="Oslo", sure=0.4)
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
BOTH = pytest.mark.parametrize("stream", [False, True])


def turn(name: str, after: float = 0.0, **fields: Any) -> TurnRecord:
    """A turn so many seconds after the time at which a test's clock stands."""
    created = Clock().now + after
    return TurnRecord(name, "governed", created, Clock().now, created + 1, 1.0, **fields)


async def asked(proxy: Proxied, stream: bool, *messages: Any) -> None:
    status, _, raw = await proxy.chat(chat(QUESTION, *messages, stream=stream))
    assert status == 200, raw


# Recorded


@BOTH
async def test_a_conversation_is_recorded_to_its_last_answer(stream: bool) -> None:
    """The turn with the call and the one that answers, with upstream's count of each."""
    script = [answer(CALLING, stream), Answer.whole(UNSURE), answer(OSLO, stream)]
    async with scripted(*script) as upstream, proxied(upstream) as proxy:
        await asked(proxy, stream)
        await asked(proxy, stream, *made(NORWAY))
        first, last = proxy.app.turns.all()
    assert (first.conversation, first.begun) == (last.conversation, last.begun)
    assert (first.arm, first.proposed, first.delivered) == ("governed", 1, {"lookup": 1})
    assert (last.proposed, last.delivered) == (0, {})
    assert first.usage == last.usage == {"prompt_tokens": 100, "completion_tokens": 20}
    assert first.own_usage == {"prompt_tokens": 100, "completion_tokens": 20}


@BOTH
async def test_a_withheld_call_is_proposed_and_not_delivered(stream: bool) -> None:
    """The probe that stands for it is the governor's own."""
    async with scripted(answer(CALLING, stream), Answer.whole(OSLO)) as upstream, proxied(upstream) as proxy:
        await asked(proxy, stream)
        (found,) = proxy.app.turns.all()
    assert (found.proposed, found.delivered) == (1, {})
    assert found.own_usage["prompt_tokens"] == 100


async def test_parallel_calls_count_one_by_one() -> None:
    """Of two calls one is withheld: the agent makes one."""
    both = Generated(calls=[NORWAY, BOOK])
    async with scripted(Answer.whole(both), Answer.whole(OSLO)) as upstream, proxied(upstream) as proxy:
        await asked(proxy, False)
        (found,) = proxy.app.turns.all()
    assert (found.proposed, found.delivered) == (2, {"book": 1})


async def test_what_is_asked_after_the_message_is_counted_too() -> None:
    """A held-out conversation is measured behind the client's back, for its tokens."""
    script = [Answer.whole(CALLING), Answer.whole(UNSURE)]
    async with scripted(*script) as upstream, proxied(upstream, "observe") as proxy:
        await asked(proxy, False)
        await asyncio.gather(*proxy.app.proxy.reviews)
        (found,) = proxy.app.turns.all()
    assert (found.arm, found.delivered) == ("observed", {"lookup": 1})
    assert found.own_usage == {"prompt_tokens": 100, "completion_tokens": 20}


async def test_talk_without_calls_is_not_recorded() -> None:
    """It is in neither arm."""
    async with scripted(Answer.whole(OSLO)) as upstream, proxied(upstream) as proxy:
        await asked(proxy, False)
        assert proxy.app.turns.all() == ()


# Kept


def test_a_restart_keeps_the_turns(tmp_path: Path) -> None:
    path = str(tmp_path / "records.db")
    store = TurnStore(path, clock=Clock())
    store.put(turn("a", delivered={"lookup": 1}))
    store.put(turn("a", 5.0, usage={"prompt_tokens": 3}))
    store.close()
    again = TurnStore(path, clock=Clock())
    assert again.all() == (
        turn("a", delivered={"lookup": 1}),
        turn("a", 5.0, usage={"prompt_tokens": 3}),
    )
    again.close()


def test_a_turn_is_kept_once() -> None:
    """It is recorded again when what was asked after it is known."""
    store = TurnStore(clock=Clock())
    store.put(turn("a"))
    store.put(turn("a", own_usage={"prompt_tokens": 7}))
    assert [each.own_usage for each in store.all()] == [{"prompt_tokens": 7}]


def test_the_oldest_go_first_and_none_outlives_its_time() -> None:
    clock = Clock()
    store = TurnStore(max_turns=2, ttl_s=100.0, clock=clock)
    for number in range(3):
        store.put(turn(f"talk {number}", float(number)))
    assert [each.conversation for each in store.all()] == ["talk 1", "talk 2"]
    clock.now += 101.5
    assert [each.conversation for each in store.all()] == ["talk 2"]
