"""Governed requests through sockets: decisions, accidents, departures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from governor.conversation import AnsweredCall
from governor.policies import Evidence, Judgement
from governor.records import CallRecord
from governor.rewards import CallTurn, RewardSettings, judged
from tests.server.bodies import answer, assembled, chunks_of, parsed
from tests.server.departures import leave
from tests.server.scripted_upstream import (
    ABORT,
    EVENTS,
    HANG,
    JSON,
    Answer,
    Piece,
    Proxied,
    proxied,
    scripted,
)
from tests.server.waiting import PATIENCE_S, eventually
from tests.wire.generated import Generated, chat, made, stream_bytes

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
BOOK = ("c3", "book", '{"city": "Oslo"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
OSLO = Generated(content="Oslo", id="chatcmpl-2")
UNSURE = Generated(content="Oslo", sure=0.4)
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
BOTH = pytest.mark.parametrize("stream", [False, True])


class Broken:
    """A policy with a bug."""

    name = "broken"

    def judge(self, evidence: Evidence) -> Judgement:
        raise ZeroDivisionError


class DeadStore:
    """A record store that fails at everything."""

    def find(
        self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = ""
    ) -> dict[str, CallRecord]:
        raise OSError("no disk")

    def put(self, record: CallRecord) -> None:
        raise OSError("no disk")

    def owner(self, tenant: str, calls: Sequence[AnsweredCall], replies: Iterable[str] = ()) -> str:
        raise OSError("no disk")

    def began(self, conversation: str) -> float | None:
        raise OSError("no disk")

    def latest(self, record: CallRecord) -> CallRecord:
        raise OSError("no disk")

    async def shared(self) -> None:
        raise OSError("no disk")

    async def expect(self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = "") -> None:
        raise OSError("no disk")


def unmeasured(generated: Generated, stream: bool) -> Any:
    """What the client would have received without a governor."""
    plain = replace(generated, top=None)
    return plain.chunks(usage=True) if stream else plain.response()


# Decisions


@BOTH
async def test_a_known_answer_comes_without_the_call(stream: bool) -> None:
    """The agent gets a final message; the decision stands in the header, the metrics and the records."""
    async with scripted(answer(CALLING, stream), Answer.whole(OSLO)) as upstream, proxied(upstream) as proxy:
        status, headers, body = await proxy.chat(chat(stream=stream), x_governor_conversation="talk")
        decisions = await _decisions(proxy, "talk")
        assert proxy.metric(
            "governor_tool_calls_total", tool="lookup", decision="answer", reason="confident_answer"
        )
        assert proxy.metric("governor_probe_duration_seconds_count") == 1
        assert proxy.metric("governor_overhead_seconds_count") == 1
    message = assembled(body)
    assert (status, message.content, message.calls) == (200, "Let me look.\nOslo", ())
    assert headers["x-governor-mode"] == "enforce"
    assert headers["x-governor-conversation"] == "talk"
    assert headers.get("x-governor-decision") == (None if stream else "answer")
    assert [decision["decision"]["action"] for decision in decisions] == ["answer"]


@BOTH
async def test_a_withheld_call_beside_other_tools_becomes_a_notice(stream: bool) -> None:
    """The model goes on in the same message, and the effectful call goes out."""
    going_on = Generated(content="So I book.", calls=[BOOK])
    answers = [answer(CALLING, stream), Answer.whole(OSLO), answer(going_on, stream)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        _, headers, body = await proxy.chat(chat(stream=stream, tools=["lookup", "book"]))
    message = assembled(body)
    assert (message.content, message.calls) == ("Let me look.\nSo I book.", (BOOK,))
    assert message.finish_reason == "tool_calls"
    assert headers.get("x-governor-decision") == (None if stream else "notice")
    assert upstream.received[2].json["messages"][-1]["role"] == "tool"


@BOTH
async def test_an_uncertain_call_passes(stream: bool) -> None:
    """As if the governor were not there, but for the wait."""
    async with (
        scripted(answer(CALLING, stream), Answer.whole(UNSURE)) as upstream,
        proxied(upstream) as proxy,
    ):
        _, _, body = await proxy.chat(chat(stream=stream))
    assert parsed(body) == unmeasured(CALLING, stream)


async def test_only_calls_that_may_be_withheld_are_probed() -> None:
    """A probe costs tokens and time."""
    answers = [answer(Generated(content="Oslo."), True), answer(Generated(calls=[BOOK]), True)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        for _ in range(2):
            await proxy.chat(chat(stream=True, tools=["lookup", "book"]))
    assert len(upstream.received) == 2


@BOTH
async def test_observing_probes_in_the_background(stream: bool) -> None:
    """The client has its answer while the probe still waits; what would have been done is recorded."""
    release = asyncio.Event()
    probe = replace(Answer.whole(OSLO), before=[release])
    async with scripted(answer(CALLING, stream), probe) as upstream, proxied(upstream, "observe") as proxy:
        _, headers, body = await proxy.chat(chat(stream=stream), x_governor_conversation="talk")
        assert parsed(body) == unmeasured(CALLING, stream)
        assert headers.get("x-governor-decision") == (None if stream else "observe")
        (before,) = await _decisions(proxy, "talk")
        assert (before["decision"]["reason"], before["probe_before"]) == ("not_judged", None)
        release.set()
        (decision,) = await _until(lambda: _judged(proxy, "talk"))
    assert (decision["decision"]["action"], decision["decision"]["proposed"]) == ("pass", "answer")
    assert decision["probe_before"]["finished"]


@BOTH
async def test_the_record_of_a_call_is_completed_by_the_next_request(stream: bool) -> None:
    """It is found by the id of the call, and with it the conversation."""
    last = Generated(content="Oslo.")
    answers = [answer(CALLING, stream), Answer.whole(UNSURE), answer(last, stream)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        _, first, _ = await proxy.chat(chat(stream=stream))
        _, second, _ = await proxy.chat(chat(QUESTION, *made(NORWAY), stream=stream))
        conversation = first["x-governor-conversation"]
        assert second["x-governor-conversation"] == conversation
        (record,) = await _decisions(proxy, conversation)
        assert proxy.metric("governor_entropy_reduction_nats_count") == 1
        # As the sparse reward of training would count it.
        (value,) = judged([CallTurn(record["entropy_before"], record["entropy_after"])], RewardSettings())
        judgement = "informative" if value else "uninformative"
        assert proxy.metric("governor_judged_calls_total", judgement=judgement) == 1
    assert record["entropy_after"] is not None


@BOTH
async def test_conversations_with_the_same_ids_stay_apart(stream: bool) -> None:
    """Some models number their calls, so that every conversation has the same ids: each keeps its own name,
    and the records that are completed are its own, also where another began in the meantime."""
    ids = ("functions.lookup:0", "functions.lookup:1")
    asked = {place: {"role": "user", "content": f"What is in {place}?"} for place in ("Norway", "Peru")}

    def call(place: str, step: int) -> tuple[str, str, str]:
        return ids[step], "lookup", json.dumps({"country": "Norway" if step else place})

    names: dict[str, list[str]] = {place: [] for place in asked}
    answers = [answer(Generated(calls=[call(p, step)]), stream) for step in (0, 1) for p in asked]
    answers += [answer(OSLO, stream)] * 2
    async with scripted(*answers) as upstream, proxied(upstream, governance={"policy": "observe"}) as proxy:
        for step in (0, 1, 2):
            for place, question in asked.items():
                history = [message for before in range(step) for message in made(call(place, before))]
                _, headers, _ = await proxy.chat(chat(question, *history, stream=stream))
                names[place].append(headers["x-governor-conversation"])
        for place in asked:
            (name,) = set(names[place])
            records = await _decisions(proxy, name)
            assert [record["call_id"] for record in records] == list(ids)
            assert all(record["returned"] for record in records)
    assert names["Norway"][0] != names["Peru"][0]


async def test_the_same_question_call_and_id_are_taken_once() -> None:
    """Nothing in them says which of two conversations goes on. Each goes on as one of the two, and neither as
    both: a call has one result. A client that names its conversations has them told apart."""
    answers = [answer(CALLING, False)] * 2 + [answer(OSLO, False)] * 4
    async with scripted(*answers) as upstream, proxied(upstream, governance={"policy": "observe"}) as proxy:
        names = [(await proxy.chat(chat()))[1]["x-governor-conversation"] for _ in range(2)]
        back = [(await proxy.chat(chat(QUESTION, *made(NORWAY))))[1] for _ in range(2)]
        assert {headers["x-governor-conversation"] for headers in back} == set(names)
        (record,) = await _decisions(proxy, names[0])
        assert record["returned"]
        _, headers, _ = await proxy.chat(chat(QUESTION, *made(NORWAY)), x_governor_conversation=names[0])
    assert headers["x-governor-conversation"] == names[0]


async def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Under its name, by what is in the file, which has no text in it; also with ids that others have."""
    numbered = ("functions.lookup:0", *NORWAY[1:])
    peru = {"role": "user", "content": "And of Peru?"}
    calling = answer(Generated(calls=[numbered]), False)
    where = {"path": str(tmp_path / "records.db")}
    sections: dict[str, Any] = {"store": where, "governance": {"policy": "observe"}}
    async with scripted(calling, calling) as upstream, proxied(upstream, **sections) as proxy:
        _, first, _ = await proxy.chat(chat())
        await proxy.chat(chat(peru))
    async with scripted(answer(OSLO, False)) as upstream, proxied(upstream, **sections) as proxy:
        _, second, _ = await proxy.chat(chat(QUESTION, *made(numbered)))
        (record,) = await _decisions(proxy, first["x-governor-conversation"])
    assert second["x-governor-conversation"] == first["x-governor-conversation"]
    assert record["returned"] is not None


@BOTH
@pytest.mark.parametrize("level", ["1", "tokens"])
async def test_a_client_that_asks_reads_why(stream: bool, level: str) -> None:
    """In the body, or the last chunk."""
    async with scripted(answer(CALLING, stream), Answer.whole(OSLO)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream), x_governor_explain=level)
    last = chunks_of(body)[-1] if stream else json.loads(body)
    assert last["governor"]["decisions"][0]["reason"] == "confident_answer"
    assert ("tokens" in last["governor"]) is (level == "tokens")
    assert upstream.received[0].header("x-governor-explain") is None


async def test_the_token_that_opens_a_call_is_learned_from_upstream() -> None:
    """A ban on its id is surer than one on its text, and the operator need not know it."""
    answers = [answer(CALLING, False), Answer.whole(OSLO)]
    async with scripted(*answers) as upstream, proxied(upstream, call_start_id=None) as proxy:
        await _until(lambda: _ready(proxy))
        await proxy.chat(chat())
    assert upstream.received[1].json["logit_bias"] == {"8": -100}


# Time


async def test_text_does_not_wait_for_the_decision() -> None:
    """It is with the client before upstream has even begun the call."""
    chunks = CALLING.chunks()
    call = asyncio.Event()
    pieces: list[Piece] = [stream_bytes(chunks[:4], done=False), call, stream_bytes(chunks[4:])]
    stream = Answer(pieces, 200, [EVENTS], length=False)
    async with (
        scripted(stream, Answer.whole(OSLO)) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        early = b""
        while b"look." not in early:
            early += await response.content.readany()
        call.set()
        assert assembled(early + await response.content.read()).content == "Let me look.\nOslo"


@BOTH
async def test_a_slow_probe_lets_the_call_pass(stream: bool) -> None:
    """After the configured time, and upstream is told that nobody waits for it any more."""
    slow = Answer(before=[HANG])
    settings = {"timeout_s": 0.1}
    async with (
        scripted(answer(CALLING, stream), slow) as upstream,
        proxied(upstream, probe=settings) as proxy,
    ):
        _, _, body = await proxy.chat(chat(stream=stream))
        async with asyncio.timeout(PATIENCE_S):
            await upstream.gone.acquire()
        assert proxy.metric("governor_probe_failures_total", reason="timeout") == 1
    assert parsed(body) == unmeasured(CALLING, stream)


# Failing open


@BOTH
@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (Answer([b"{}"], 500), "status_500"),
        (Answer([b"nonsense"]), "malformed"),
        (Answer([b"[]"]), "malformed"),
        (Answer.whole(Generated(content="Oslo", top=None)), "no_logprobs"),
        (Answer([b"{", ABORT, b"}"]), "broken"),
    ],
)
async def test_a_failed_probe_lets_the_call_pass(stream: bool, probe: Answer, reason: str) -> None:
    """Whatever is wrong with it; it is counted."""
    async with scripted(answer(CALLING, stream), probe) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_probe_failures_total", reason=reason) == 1
    assert parsed(body) == unmeasured(CALLING, stream)


@BOTH
async def test_a_broken_policy_lets_the_call_pass(stream: bool) -> None:
    """And is counted."""
    async with scripted(answer(CALLING, stream)) as upstream, proxied(upstream) as proxy:
        proxy.app.proxy.governance = replace(proxy.app.proxy.governance, policy=Broken())
        _, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_fail_open_total", where="policy") == 1
    assert parsed(body) == unmeasured(CALLING, stream)


@BOTH
async def test_a_dead_store_costs_nothing_but_the_records(stream: bool) -> None:
    """The request is forwarded untouched when nothing can be looked up."""
    async with scripted(answer(CALLING, stream)) as upstream, proxied(upstream) as proxy:
        proxy.app.proxy.records = DeadStore()
        _, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_fail_open_total", where="request") == 1
    assert parsed(body) == parsed(b"".join(p for p in answer(CALLING, stream).pieces if isinstance(p, bytes)))


@pytest.mark.parametrize(
    "odd",
    [
        b"data: not json\n\n",
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": 7}}]}\n\n',
        b"data: 17\n\n",
    ],
)
async def test_a_chunk_that_nobody_understands_goes_on(odd: bytes) -> None:
    """It and all that follows, after all that waited: the governor gives up, not the client."""
    chunks = CALLING.chunks()
    source = stream_bytes(chunks[:9], done=False) + odd + stream_bytes(chunks[9:])
    async with scripted(Answer.stream(source)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True, logprobs=True, top_logprobs=20))
        assert proxy.metric("governor_fail_open_total", where="chunk") == 1
    assert [_loaded(event) for event in body.split(b"\n\n")] == [
        _loaded(event) for event in source.split(b"\n\n")
    ]


@pytest.mark.parametrize(
    "odd", [b"[]", b'"x"', b"not json", b'{"choices": 5}', b'{"choices": [{"message": 4}]}']
)
async def test_a_response_that_nobody_understands_goes_on(odd: bytes) -> None:
    """Byte for byte, if the client's own request gets it, too."""
    async with scripted(Answer([odd]), Answer([odd])) as upstream, proxied(upstream) as proxy:
        status, _, body = await proxy.chat(chat())
    assert (status, body) == (200, odd)


REFUSAL = b'{"error": {"message": "top_logprobs too large", "code": 400}}'


@pytest.mark.parametrize(
    "refusal", [Answer([REFUSAL], 400), Answer.stream(b"data: " + REFUSAL + b"\n\ndata: [DONE]\n\n")]
)
async def test_logprobs_that_upstream_refuses_are_done_without(refusal: Answer) -> None:
    """A server may allow fewer than are asked for, and vLLM says so in a stream of status 200: the client's
    own request is asked then."""
    async with scripted(refusal, answer(CALLING, True)) as upstream, proxied(upstream) as proxy:
        status, _, body = await proxy.chat(chat(stream=True))
        assert proxy.metric("governor_fail_open_total", where="refused") == 1
    assert status == 200
    assert assembled(body).calls == (NORWAY,)
    assert upstream.received[1].json == chat(stream=True)


@BOTH
@pytest.mark.parametrize("failure", [Answer([b"{}"], 500), Answer(before=[ABORT])])
async def test_a_failed_continuation_lets_the_calls_pass(stream: bool, failure: Answer) -> None:
    """The client gets what it would have had."""
    answers = [answer(CALLING, stream), Answer.whole(OSLO), failure, failure]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream, tools=["lookup", "book"]))
    assert parsed(body) == unmeasured(CALLING, stream)


async def test_a_stream_that_breaks_off_says_so() -> None:
    """What came is with the client, then an error as upstream tells its own, and no end that looks like
    one."""
    sent = stream_bytes(CALLING.chunks()[:9], done=False)
    answers = Answer([sent, 0.05, ABORT], 200, [EVENTS], length=False)
    received = b""
    async with scripted(answers) as upstream, proxied(upstream) as proxy:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response:
                while piece := await response.content.readany():
                    received += piece
    *chunks, error = chunks_of(received)
    assert chunks == replace(CALLING, top=None).chunks()[: len(chunks)]
    assert any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert error["error"]["type"] == "upstream_broken"
    assert b"[DONE]" not in received


async def test_an_error_event_of_upstream_goes_on() -> None:
    """vLLM tells a failure in the middle of a stream in an event, then ends it."""
    error = {"error": {"message": "boom", "type": "InternalServerError", "param": None, "code": 500}}
    chunks = [*replace(CALLING, top=None).chunks()[:5], error]
    async with scripted(Answer.stream(stream_bytes(chunks))) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True))
    assert chunks_of(body) == chunks
    assert body.endswith(b"data: [DONE]\n\n")


async def test_reviews_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observing is dropped and counted when upstream does not keep up with the probes."""
    monkeypatch.setattr("governor_server.proxy.MAX_REVIEWS", 1)
    answers = [answer(CALLING, False), Answer(before=[HANG]), answer(CALLING, False)]
    async with scripted(*answers) as upstream, proxied(upstream, "observe") as proxy:
        await proxy.chat(chat())
        await eventually(lambda: len(upstream.received) == 2)
        await proxy.chat(chat())
        await proxy.until("governor_fail_open_total", 1, where="review_queue")


async def test_a_stream_without_its_last_event_still_ends() -> None:
    """Some servers close the connection without saying that they are done."""
    source = stream_bytes(replace(CALLING, top=None).chunks(), done=False)
    async with scripted(Answer.stream(source)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True))
    assert chunks_of(body) == chunks_of(source)
    assert b"[DONE]" not in body


@BOTH
async def test_an_answer_in_the_wrong_form_goes_on(stream: bool) -> None:
    """JSON where a stream was asked for, or the reverse, is between the client and upstream; not so the
    logprobs in it."""
    wrong = answer(CALLING, not stream)
    async with scripted(wrong) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_fail_open_total", where="unreadable") == 1
    assert parsed(body) == unmeasured(CALLING, not stream)


# Departures

HALF = stream_bytes(CALLING.chunks()[:8], done=False)


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([Answer(before=[HANG])], 1),
        ([Answer([HALF, HANG], 200, [EVENTS], length=False)], 1),
        ([Answer.stream(CALLING), Answer(before=[HANG])], 2),
        ([Answer.stream(CALLING), Answer.whole(OSLO), Answer(before=[HANG])], 3),
        ([Answer.stream(CALLING), Answer.whole(OSLO), Answer([HALF, HANG], 200, [EVENTS], length=False)], 3),
    ],
    ids=["before the first byte", "in the stream", "during the probe", "before a continuation", "in it"],
)
async def test_a_client_that_leaves_a_stream_ends_the_work(answers: list[Answer], requests: int) -> None:
    """In every phase."""
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        await leave(proxy, upstream, chat(stream=True, tools=["lookup", "book"]), requests)


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([Answer(before=[HANG])], 1),
        ([Answer([b"{", HANG, b"}"], 200, [JSON])], 1),
        ([Answer.whole(CALLING), Answer(before=[HANG])], 2),
        ([Answer.whole(CALLING), Answer.whole(OSLO), Answer(before=[HANG])], 3),
    ],
    ids=["before the first byte", "in the body", "during the probe", "before a continuation"],
)
async def test_a_client_that_leaves_a_response_ends_the_work(answers: list[Answer], requests: int) -> None:
    """Upstream would otherwise generate to the end for nobody."""
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        await leave(proxy, upstream, chat(tools=["lookup", "book"]), requests)


async def _decisions(proxy: Proxied, conversation: str) -> list[dict[str, Any]]:
    async with proxy.client.get("/governor/decisions", params={"conversation": conversation}) as response:
        found: list[dict[str, Any]] = (await response.json())["decisions"]
        return found


async def _judged(proxy: Proxied, conversation: str) -> list[dict[str, Any]]:
    decisions = await _decisions(proxy, conversation)
    return [each for each in decisions if each["decision"]["reason"] != "not_judged"]


async def _ready(proxy: Proxied) -> bool:
    async with proxy.client.get("/readyz") as response:
        return response.status == 200


async def _until(look: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await look()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return found


def _loaded(event: bytes) -> Any:
    try:
        return json.loads(event.removeprefix(b"data: "))
    except ValueError:
        return event
