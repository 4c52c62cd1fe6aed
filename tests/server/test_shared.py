"""Processes that share their state through a real Redis, and what one that fails costs them: the sharing."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from governor_server import shared
from governor_server.cli import main
from governor_server.errors import SettingsError
from governor_server.feedback import Feedback, FeedbackStore
from governor_server.shared import Shared
from governor_server.store import RecordStore
from tests.server.bodies import answer
from tests.server.records import SECRET, Clock, Errors, answered, kept, record
from tests.server.redis_server import RedisServer
from tests.server.scripted_upstream import Answer, Proxied, proxied, scripted
from tests.server.waiting import PATIENCE_S, at_once, never_waiting, until
from tests.wire.generated import Generated, chat, made

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
OSLO = Generated(content="Oslo", id="chatcmpl-2")
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}

Open = Callable[..., RecordStore]


@pytest.fixture
def errors() -> Errors:
    """The failures of all stores of a test."""
    return Errors()


@pytest.fixture
def opened(redis_server: RedisServer, errors: Errors) -> Iterator[Open]:
    """Opens the store of another process, as often as it is called."""
    with ExitStack() as stack:

        def open(**more: Any) -> RecordStore:
            behind = stack.enter_context(closing(Shared(redis_server.url, errors)))
            return stack.enter_context(closing(RecordStore(shared=behind, clock=Clock(), **more)))

        yield open


def known(process: RecordStore) -> set[str]:
    return {each.call_id for each in process.recent(10_000)}


def test_what_one_puts_all_know(opened: Open, redis_server: RedisServer, errors: Errors) -> None:
    """Also those that begin later; and each call is kept once, however often it is measured."""
    one, other = opened(), opened()
    one.put(record("a", "talk"))
    until(lambda: kept(other, "talk", "a") is not None)
    (measured,) = other.find("", [answered("a")]).values()
    other.put(replace(measured, entropy_after=0.5))
    until(lambda: (found := kept(one, "talk", "a")) is not None and found.entropy_after == 0.5)
    (late,) = opened().recent(9)
    assert late.entropy_after == 0.5
    assert redis_server.client.xlen("governor:records") == 1
    assert errors.count == 0


def test_a_process_keeps_the_text_of_its_own_calls(opened: Open) -> None:
    """Redis gives back what it was given, which is without: that must not replace the whole record."""
    one, other = opened(), opened()
    one.put(record("a"))
    until(lambda: kept(other, "c", "a") is not None)
    other.put(record("b"))
    until(lambda: kept(one, "c", "b") is not None)
    whole, numbers = kept(one, "c", "a"), kept(other, "c", "a")
    assert whole is not None and whole.probe_before is not None and whole.probe_before.text == SECRET
    assert numbers is not None and numbers.probe_before is not None and numbers.probe_before.text == ""


async def test_what_was_delivered_is_known_everywhere(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick the tool: the client has its message once another process can find the record."""
    monkeypatch.setattr(shared, "CATCH_UP_S", PATIENCE_S)
    one, other = opened(), opened()
    for number in range(50):
        one.put(record(str(number)))
        await one.shared()
        await other.expect("", [answered(str(number))])
        assert kept(other, "c", str(number)) is not None


async def test_an_equal_call_that_has_its_result_is_not_the_one_that_is_expected(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of another conversation; the one that waits for its result is found."""
    monkeypatch.setattr(shared, "CATCH_UP_S", PATIENCE_S)
    one, other = opened(), opened()
    other.put(replace(record("lookup:0", "before"), returned=1_000_000.0))
    one.put(record("lookup:0", "now"))
    await one.shared()
    await other.expect("", [answered("lookup:0")])
    assert [each.conversation for each in other.find("", [answered("lookup:0")]).values()] == ["now"]


def test_processes_complete_a_record_together(opened: Open) -> None:
    """The first answer here, the result there, the second answer at a third one: nobody overwrites what
    another has found out, and who comes later reads all of it."""
    one, other, third = opened(), opened(), opened()
    begun = replace(record("a"), probe_before=None)
    one.put(begun)
    until(lambda: kept(other, "c", "a") is not None and kept(third, "c", "a") is not None)
    one.put(record("a"))
    other.put(replace(begun, returned=1_000_001.0, outcome="ok"))
    third.put(replace(begun, entropy_after=0.5))

    def whole(process: RecordStore) -> bool:
        found = kept(process, "c", "a")
        return found is not None and None not in (found.probe_before, found.returned, found.entropy_after)

    until(lambda: all(map(whole, (one, other, third))))
    one.put(begun)
    assert whole(one)
    assert whole(opened())


async def test_a_call_that_nobody_knows_is_not_waited_for_long(opened: Open) -> None:
    """It was made before there was a governor, say; and what is here is not waited for at all."""
    one = opened()
    assert shared.CATCH_UP_S < 0.1
    await one.expect("", [answered("unknown")])
    one.put(record("a"))
    await one.shared()
    at_once(one.expect("", [answered("a")]))
    assert list(one.find("", [answered("a")])) == ["a"]


async def test_a_client_that_leaves_meanwhile_disturbs_nothing(opened: Open, errors: Errors) -> None:
    """Whatever the moment in which its request is cancelled, the next one finds its records."""
    one, other = opened(), opened()
    for number in range(100):
        one.put(record(str(number)))
        waiting = asyncio.create_task(other.expect("", [answered(str(number))]))
        await asyncio.sleep(number / 50_000)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(PATIENCE_S):
        while len(other) < 100:
            await other.expect("", [answered("99")])
    assert known(other) == known(one)
    assert errors.count == 0


async def test_a_redis_that_is_killed_is_missed_by_nobody(
    opened: Open,
    redis_server: RedisServer,
    errors: Errors,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each process goes on with its memory; what it put meanwhile is shared once a Redis is back, even one
    that knows nothing. The failures are counted, and told once."""
    caplog.set_level(logging.INFO, "governor_server.shared")
    one, other = opened(), opened()
    one.put(record("before"))
    until(lambda: kept(other, "c", "before") is not None)
    redis_server.kill()
    until(lambda: errors.count >= 4)
    one.put(record("meanwhile"))
    at_once(one.expect("", [answered("unknown")]))
    assert kept(one, "c", "meanwhile") is not None
    assert {"before", "meanwhile"} == known(one)
    redis_server.start()
    until(lambda: {"before", "meanwhile"} == known(other))
    other.put(record("after"))
    until(lambda: kept(one, "c", "after") is not None)
    until(lambda: caplog.messages.count("Redis works again") == 2)
    assert len([text for text in caplog.messages if "nothing is shared" in text]) == 2


async def test_a_redis_that_hangs_delays_no_request(
    opened: Open, redis_server: RedisServer, errors: Errors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a few hundredths of a second, and only until it was noticed."""
    monkeypatch.setattr(shared, "ANSWER_TIMEOUT_S", 4.0)
    one, other = opened(), opened()
    redis_server.halt()
    one.put(record("a"))
    await one.expect("", [answered("unknown")])
    assert errors.count == 0
    until(lambda: errors.count > 0)
    at_once(one.expect("", [answered("unknown")]))
    redis_server.go_on()
    until(lambda: kept(other, "c", "a") is not None)


def test_without_redis_a_process_begins_with_what_it_has(
    redis_server: RedisServer, opened: Open, errors: Errors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file, say; and it shares that there is a Redis as soon as there is one."""
    monkeypatch.setattr(shared, "START_TIMEOUT_S", None)
    redis_server.kill()
    path = str(tmp_path / "records.db")
    with closing(RecordStore(path, clock=Clock())) as before:
        before.put(record("a"))
    late = opened(path=path)
    assert known(late) == {"a"}
    until(lambda: errors.count > 0)
    redis_server.start()
    other = opened()
    late.put(record("b"))
    until(lambda: kept(other, "c", "b") is not None)


def test_a_redis_that_stays_away_fills_no_memory(
    redis_server: RedisServer, opened: Open, errors: Errors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded, and what is more than that is dropped and counted, at once."""
    monkeypatch.setattr(shared, "QUEUE_SIZE", 10)
    monkeypatch.setattr(shared, "MAX_BACKOFF_S", 30.0)
    redis_server.kill()
    one = opened()
    with never_waiting(monkeypatch):
        for number in range(500):
            one.put(record(str(number)))
    assert errors.count > 200
    assert len(one) == 500


def test_a_redis_without_room_is_a_redis_that_is_down(
    opened: Open, redis_server: RedisServer, errors: Errors
) -> None:
    """It takes nothing, and says so: the records stay in memory until it does."""
    one, other = opened(), opened()
    redis_server.client.config_set("maxmemory", "1")
    one.put(record("a"))
    until(lambda: errors.count > 0)
    assert kept(one, "c", "a") is not None
    redis_server.client.config_set("maxmemory", "0")
    until(lambda: kept(other, "c", "a") is not None)


def test_feedback_is_shared(redis_server: RedisServer, errors: Errors) -> None:
    """The last word of a source counts, whoever took it, and none counts after its time."""
    clock = Clock()
    with ExitStack() as stack:

        def open() -> FeedbackStore:
            behind = stack.enter_context(closing(Shared(redis_server.url, errors)))
            return stack.enter_context(closing(FeedbackStore(shared=behind, ttl_s=10, clock=clock)))

        one, other = open(), open()
        one.put([Feedback("talk", "judge", 0.0, clock.now), Feedback("talk", "user", 0.5, clock.now)])
        until(lambda: other.score("talk") == 0.25)
        clock.now += 6
        other.put([Feedback("talk", "judge", 1.0, clock.now)])
        until(lambda: one.score("talk") == 0.75)
        assert open().scores() == {"talk": 0.75}
        clock.now += 6
        assert one.score("talk") == other.score("talk") == open().score("talk") == 1.0
    assert errors.count == 0


# Whole proxies


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_at_another_replica(
    redis_server: RedisServer, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call is known there, its measurement is completed there, and both replicas say so."""
    monkeypatch.setattr(shared, "CATCH_UP_S", PATIENCE_S)
    answers = [answer(CALLING, stream), Answer.whole(replace(OSLO, sure=0.4)), answer(OSLO, stream)]
    where = {"path": ":memory:", "redis_url": redis_server.url}
    async with (
        scripted(*answers) as upstream,
        proxied(upstream, store=where) as one,
        proxied(upstream, store=where) as other,
    ):
        _, first, _ = await one.chat(chat(stream=stream))
        _, second, _ = await other.chat(chat(QUESTION, *made(NORWAY), stream=stream))
        conversation = first["x-governor-conversation"]
        assert second["x-governor-conversation"] == conversation
        await _post(other, "/governor/feedback", {"conversation": conversation, "passed": True})
        async with asyncio.timeout(PATIENCE_S):
            while not (complete := await _complete(one, conversation)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [decision["score"] for decision in complete] == [1.0]


async def test_without_redis_requests_are_answered_and_failures_counted(redis_server: RedisServer) -> None:
    """By each replica for itself, and not later."""
    answers = [answer(CALLING, False), Answer.whole(replace(OSLO, sure=0.4)), answer(OSLO, False)]
    redis_server.kill()
    where = {"path": ":memory:", "redis_url": redis_server.url}
    async with scripted(*answers) as upstream, proxied(upstream, store=where) as proxy:
        _, first, _ = await proxy.chat(chat())
        status, second, _ = await proxy.chat(chat(QUESTION, *made(NORWAY)))
        assert status == 200
        assert second["x-governor-conversation"] == first["x-governor-conversation"]
        assert proxy.metric("governor_store_errors_total") > 0
        assert proxy.metric("governor_fail_open_total", where="request") == 0


async def _post(proxy: Proxied, path: str, body: Any) -> None:
    async with proxy.client.post(path, json=body) as response:
        assert response.status == 200


async def _complete(proxy: Proxied, conversation: str) -> list[dict[str, Any]]:
    """The decisions of a conversation that are measured and scored."""
    async with proxy.client.get("/governor/decisions", params={"conversation": conversation}) as response:
        decisions: list[dict[str, Any]] = orjson.loads(await response.read())["decisions"]
    return [each for each in decisions if each["entropy_after"] is not None and each["score"] is not None]


# Settings


def test_the_client_of_redis_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is told in a line that says how to get it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(SettingsError, match=r"pip install '.\[redis\]'"):
        Shared("redis://127.0.0.1")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("server: {workers: 2}", "set store.redis_url"),
        ("store: {redis_url: 'http://:hunter2@a'}", "store.redis_url must begin with one of redis://"),
        (
            "store: {redis_url: 'redis://:hunter2@a', keep_conversations: true, path: ':memory:'}",
            "needs a file",
        ),
        ("store: {redis_url: 'redis://:hunter2@a:99999'}", "store.redis_url: Port out of range"),
    ],
)
def test_a_mistake_is_one_line_without_the_password(
    settings: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    config = tmp_path / "governor.yaml"
    config.write_text(settings)
    arguments = ["serve", "--config", str(config), "--upstream", "http://127.0.0.1:9", "--port", "0"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert part in said and said.count("\n") == 1
    assert "hunter2" not in said


def test_the_password_is_masked_where_settings_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """People paste it into reports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOVERNOR_STORE__REDIS_URL", "redis://:hunter2@a")
    assert main(["serve", "--workers", "2", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "  workers: 2\n" in printed
    assert "hunter2" not in printed
