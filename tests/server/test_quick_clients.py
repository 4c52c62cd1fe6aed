"""Clients that are back before anything was measured, with ids that name nothing: their conversations stay
whole, each call has one record, and the labels are completed by whatever comes last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.conversations import COURSE, MODES, SCHEMES, Model, calls, converse, settled
from governor.records import CallRecord
from tests.server.bodies import answer, assembled
from tests.server.scripted_upstream import EVENTS, HANG, Answer, Proxied, proxied, scripted
from tests.server.waiting import eventually
from tests.wire.generated import Generated, chat, made, stream_bytes

BOTH = pytest.mark.parametrize("stream", [False, True])
QUESTION = {"role": "user", "content": "Question 1: which country is it?"}
OSLO = Generated(content="Oslo")


@asynccontextmanager
async def slow(mode: str) -> AsyncIterator[tuple[Proxied, asyncio.Event]]:
    """A proxy whose upstream answers no probe before the event is set."""
    how, sections = MODES[mode]
    release = asyncio.Event()
    configured: dict[str, Any] = dict(sections)
    async with scripted(kind=Model) as upstream, proxied(upstream, how, **configured) as proxy:
        assert isinstance(upstream, Model)
        upstream.probe = release
        try:
            yield proxy, release
        finally:
            release.set()


def records_of(proxy: Proxied, name: str) -> Sequence[CallRecord]:
    return proxy.app.store.of_conversation(name)


@BOTH
@pytest.mark.parametrize("scheme", range(len(SCHEMES)), ids=[scheme.__name__ for scheme in SCHEMES])
@pytest.mark.parametrize("mode", MODES)
async def test_a_quick_clients_conversation_stays_whole(mode: str, scheme: int, stream: bool) -> None:
    """The whole conversation is over before a single probe has answered. Its calls are on record all the
    same, under one name and in their order; then the probes come, and with them every label."""
    async with slow(mode) as (proxy, release):
        names = await converse([proxy], scheme, scheme, 0.0, stream=stream)
        (name,) = names
        before = records_of(proxy, name)
        made_in_order = [json.dumps({"of": of}) for turn in COURSE for of in turn]
        assert [record.decision["arguments"] for record in before] == made_in_order
        assert [record.step for record in before] == [0, 1, 1, 2, 3]
        assert all(record.returned and record.outcome == "ok" for record in before)
        assert {record.decision["reason"] for record in before} == {"not_judged"}
        release.set()
        await settled([proxy])
        after = records_of(proxy, name)
        assert [record.key for record in after] == [record.key for record in before]
        assert all(record.judged and record.label is not None for record in after)
        assert proxy.metric("governor_labels_total", label="low_value") == len(after)


@pytest.mark.parametrize("mode", MODES)
async def test_two_users_who_ask_the_same_stay_apart(mode: str) -> None:
    """At the same time, with numbered calls: neither's calls are counted as the other's, whoever is
    quicker."""
    async with slow(mode) as (proxy, release):
        agents = [converse([proxy], 1, 1, 0.0, stream=stream) for stream in (False, True, False)]
        seen = set().union(*await asyncio.gather(*agents))
        release.set()
        await settled([proxy])
        steps = [[record.step for record in records_of(proxy, name)] for name in seen]
    assert steps == [[0, 1, 1, 2, 3]] * 3


@BOTH
async def test_a_client_that_leaves_with_its_message_cancels_no_review(stream: bool) -> None:
    """It has what it wanted, and closes the connection, in a stream before upstream has said that it is done.
    The record was there before the end of the message; what came of it is measured still."""
    call = Generated(calls=[("", "lookup", '{"of": "a"}')])
    end = Answer([stream_bytes(call.chunks(), done=False), HANG], headers=(EVENTS,), length=False)
    calling = end if stream else Answer.whole(call)
    async with scripted(calling, Answer.whole(OSLO)) as upstream, proxied(upstream, "observe") as proxy:
        store = proxy.app.store
        async with proxy.client.post("/v1/chat/completions", json=chat(QUESTION, stream=stream)) as response:
            received = b""
            while b'"finish_reason":"tool_calls"' not in received:
                received += await response.content.readany()
            (record,) = store.recent(9)
            response.close()
        await eventually(lambda: store.latest(record).judged)
        assert store.latest(record).probe_before is not None


async def test_a_client_that_shortens_its_history_keeps_its_conversation() -> None:
    """It drops the oldest turns, or puts a summary in place of them; what is left leads back."""
    async with slow("observe") as (proxy, release):
        turns = [made(*calls(1, n), results=["It is so."] * len(COURSE[n])) for n in range(3)]
        names = []
        for history in ([], turns[:1], turns[:2], turns[1:2]):
            messages = [message for turn in history for message in turn]
            _, headers, _ = await proxy.chat(chat(QUESTION, *messages))
            names.append(headers["x-governor-conversation"])
        release.set()
    assert len(set(names)) == 1


async def test_calls_withheld_before_do_not_part_a_conversation() -> None:
    """Two notices, and then the call passes, all under one id: no client has the first two in its history."""
    call = ("lookup:0", "lookup", '{"of": "a"}')
    other = ("lookup:0", "lookup", '{"of": "b"}')
    third = ("lookup:0", "lookup", '{"of": "c"}')
    rules = {"policy": "rules", "action": "notice", "max_notices": 2}
    known = [QUESTION, *made(call, results=["1"]), *made(other, results=["2"])]
    answers = [Generated(calls=[each]) for each in (call, other, call, other, third)] + [OSLO]
    async with (
        scripted(*(answer(generated, False) for generated in answers)) as upstream,
        proxied(upstream, governance=rules) as proxy,
    ):
        names = []
        for messages in ([QUESTION], known[:3], known, [*known, *made(third, results=["3"])]):
            _, headers, body = await proxy.chat(chat(*messages))
            names.append(headers["x-governor-conversation"])
        await settled([proxy])
        (name,) = set(names)
        records = records_of(proxy, name)
    assert [(record.generation, record.decision["action"]) for record in records] == [
        (0, "pass"),
        (0, "pass"),
        (0, "notice"),
        (1, "notice"),
        (2, "pass"),
    ]
    assert [record.returned is not None for record in records] == [True, True, False, False, True]
    assert assembled(body).content == "Oslo"


async def test_a_result_that_is_sent_again_is_the_same_result() -> None:
    """A client repeats a request that went wrong: no second conversation, and no second result."""
    call = ("", "lookup", '{"of": "a"}')
    # Upstream is asked twice: it might have refused what was added.
    failing = [Answer.whole({}, 503)] * 2
    answers = [answer(Generated(calls=[call]), False), *failing, answer(OSLO, False)]
    async with (
        scripted(*answers) as upstream,
        proxied(upstream, governance={"policy": "observe"}) as proxy,
    ):
        _, first, _ = await proxy.chat(chat(QUESTION))
        back = chat(QUESTION, *made(call))
        status, _, _ = await proxy.chat(back)
        _, again, _ = await proxy.chat(back)
        (record,) = proxy.app.store.recent(9)
    assert (status, again["x-governor-conversation"]) == (503, first["x-governor-conversation"])
    assert record.returned is not None


async def test_the_order_of_requests_is_that_of_their_histories() -> None:
    """A clock that is set back, or another replica's, does not put the second call before the first."""
    call, other = (("", "lookup", json.dumps({"of": of})) for of in "ab")
    answers = [answer(Generated(calls=[each]), False) for each in (call, other)]
    async with (
        scripted(*answers) as upstream,
        proxied(upstream, governance={"policy": "observe"}) as proxy,
    ):
        proxy.app.store._clock = proxy.app.proxy.clock = lambda: 5.0
        _, headers, _ = await proxy.chat(chat(QUESTION))
        proxy.app.proxy.clock = lambda: 3.0
        await proxy.chat(chat(QUESTION, *made(call)))
        records = records_of(proxy, headers["x-governor-conversation"])
    assert [record.decision["arguments"] for record in records] == ['{"of": "a"}', '{"of": "b"}']
    assert records[0].created < records[1].created


@BOTH
@pytest.mark.parametrize("action", ["answer", "notice"])
async def test_a_conversation_goes_on_where_all_its_calls_were_withheld(action: str, stream: bool) -> None:
    """The client has a plain message, and the user asks on: nothing of the call is in the history, and the
    conversation stays in its arm under its name. What it takes from here on is counted with the rest."""
    call = Generated(content="Let me look.", calls=[("lookup:0", "lookup", '{"of": "a"}')])
    between = [Answer.whole(OSLO)] + ([answer(OSLO, stream)] if action == "notice" else [])
    answers = [answer(call, stream), *between, answer(Generated(content="So it is."), stream)]
    async with scripted(*answers) as upstream, proxied(upstream, governance={"action": action}) as proxy:
        _, first, body = await proxy.chat(chat(QUESTION, stream=stream))
        said = {"role": "assistant", "content": assembled(body).content}
        more = {"role": "user", "content": "Are you sure?"}
        _, second, _ = await proxy.chat(chat(QUESTION, said, more, stream=stream))
        await settled([proxy])
        turns = proxy.app.turns.all()
    assert said["content"] == "Let me look.\nOslo"
    assert second["x-governor-conversation"] == first["x-governor-conversation"]
    assert {turn.conversation for turn in turns} == {first["x-governor-conversation"]}
    assert len(turns) == 2
