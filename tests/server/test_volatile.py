"""Tools that change their answers by themselves: what is kept of them, and what clients notice of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import digest
from governor_server import volatile
from governor_server.settings import ToolSettings
from governor_server.shared import Shared
from governor_server.volatile import VolatileTool, VolatileTools
from tests.server.records import Clock, Errors
from tests.server.redis_server import RedisServer
from tests.server.scripted_upstream import Answer, Proxied, proxied, scripted
from tests.server.waiting import until
from tests.wire.generated import Generated, chat

RULES = {"policy": "rules"}
KEYS = {"keys": [{"tenant": name, "sha256": digest(f"key-{name}")} for name in ("acme", "beta")]}
LOOKING = Generated(calls=[("c9", "lookup", '{"job": 7}')])
ANSWER = Generated(content="It is done.")


# What is kept


def test_each_tenant_has_its_own() -> None:
    """Tenants may have different tools of one name, and one that lies harms itself alone."""
    tools = VolatileTools(clock=Clock())
    tools.learn("acme", ["status", "price"])
    tools.learn("beta", ["status"])
    assert tools.of("acme") == {"status", "price"}
    assert tools.of("beta") == {"status"}
    assert tools.of("") == frozenset()
    assert repr(tools) == "<VolatileTools [3 tools of 2 tenants]>"


def test_a_tool_is_forgotten_some_time_after_it_was_last_seen() -> None:
    """What changes its answers still is seen again; what does not is governed again."""
    clock = Clock()
    tools = VolatileTools(ttl_s=240, clock=clock)
    tools.learn("", ["status", "price"])
    clock.now += 200
    tools.learn("", ["price"])
    clock.now += 100
    assert tools.of("") == {"price"}
    assert [(seen.last_seen - seen.first_seen) for seen in tools.all()] == [200]
    clock.now += 200
    assert (tools.of(""), len(tools)) == (frozenset(), 0)


def test_a_restart_forgets_nothing_but_what_has_expired(tmp_path: Path) -> None:
    """And what is written is the name of the tool and when it was seen."""
    clock, path = Clock(), tmp_path / "records.db"
    with closing(VolatileTools(str(path), ttl_s=100, clock=clock)) as tools:
        tools.learn("acme", ["status"])
        clock.now += 60
        tools.learn("acme", ["price"])
    clock.now += 60
    with closing(VolatileTools(str(path), ttl_s=100, clock=clock)) as tools:
        assert tools.of("acme") == {"price"}
    with closing(sqlite3.connect(path)) as file:
        rows = [json.loads(body) for (body,) in file.execute("SELECT body FROM volatile")]
    assert {frozenset(row) for row in rows} == {frozenset({"tenant", "tool", "first_seen", "last_seen"})}


def test_what_is_seen_in_every_request_is_written_now_and_then(tmp_path: Path) -> None:
    """A client sends its whole history each time."""
    clock = Clock()
    written: list[VolatileTool] = []
    store = closing(VolatileTools(str(tmp_path / "x.db"), ttl_s=240, clock=clock))
    with store as tools, pytest.MonkeyPatch.context() as patched:
        patched.setattr(tools._behind, "write", written.append)
        for _ in range(100):
            tools.learn("", ["status"])
            clock.now += 0.2
    assert len(written) == 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=60))
def test_no_tenant_fills_the_memory_or_takes_anothers_place(seen: list[tuple[str, int]]) -> None:
    """The names come from clients."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(volatile, "MAX_TOOLS_PER_TENANT", 3)
        patched.setattr(volatile, "MAX_TOOLS", 5)
        tools = VolatileTools(clock=Clock())
        for tenant, number in seen:
            tools.learn(tenant, [str(number), "x" * 10_000])
            assert str(number) in tools.of(tenant)
        assert len(tools) <= 5 and all(len(tools.of(tenant)) <= 3 for tenant in "ab")
        assert {(t.tenant, t.tool) for t in tools.all()} == {(n, t) for n in "ab" for t in tools.of(n)}


def test_processes_know_what_each_of_them_saw(redis_server: RedisServer) -> None:
    """A moment later, and also those that begin later."""
    errors, clock = Errors(), Clock()
    with ExitStack() as stack:

        def opened() -> VolatileTools:
            behind = stack.enter_context(closing(Shared(redis_server.url, errors)))
            return stack.enter_context(closing(VolatileTools(shared=behind, clock=clock)))

        mine, theirs = opened(), opened()
        mine.learn("acme", ["status"])
        until(lambda: theirs.of("acme") == {"status"})
        assert opened().of("acme") == {"status"}
    assert errors.count == 0


# What clients notice


def history(*results: str, tool: str = "lookup") -> list[dict[str, Any]]:
    """A question, and the same call with these results, one after the other."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Is job 7 done?"}]
    for number, result in enumerate(results):
        call = {"id": f"c{number}", "type": "function", "function": {"name": tool, "arguments": '{"job": 7}'}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": result})
    return messages


async def decided(proxy: Proxied, messages: list[dict[str, Any]], **headers: str) -> Mapping[str, Any]:
    """The decision on the call that the model makes next."""
    status, _, body = await proxy.chat(chat(messages=messages), x_governor_explain="1", **headers)
    assert status == 200
    decision: Mapping[str, Any] = json.loads(body)["governor"]["decisions"][0]
    return decision


def answers(count: int) -> list[Answer]:
    return [Answer.whole(LOOKING) for _ in range(count)]


async def test_what_one_conversation_saw_holds_for_all_of_its_tenant() -> None:
    """And for no other tenant; it is shown to the operator, and counted."""
    acme, beta = {"authorization": "Bearer key-acme"}, {"authorization": "Bearer key-beta"}
    unchanged = history("31 C")
    script = [
        Answer.whole(LOOKING),
        Answer.whole(ANSWER),
        *answers(2),
        Answer.whole(LOOKING),
        Answer.whole(ANSWER),
    ]
    async with scripted(*script) as upstream, proxied(upstream, governance=RULES, auth=KEYS) as proxy:
        assert (await decided(proxy, unchanged, **acme))["reason"] == "repeated_call"
        assert (await decided(proxy, history("31 C", "32 C"), **acme))["reason"] == "volatile"
        told = await decided(proxy, unchanged, **acme)
        assert (told["action"], told["reason"], told["tier"]) == ("pass", "volatile", 0)
        assert "may give another answer each time (times: 1)" in told["explanation"]
        assert (await decided(proxy, unchanged, **beta))["reason"] == "repeated_call"
        assert proxy.metric("governor_volatile_tools") == 1
        async with proxy.client.get("/governor/volatile") as response:
            shown = await response.json()
    (learned,) = shown["learned"]
    assert (learned["tenant"], learned["tool"], shown["configured"]) == ("acme", "lookup", [])


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("31 C", "repeated_call"),
        ("503 Service Unavailable", "no_rule"),
        ('{"success": false, "error": "no such job"}', "no_rule"),
        ("ENOENT: no such file or directory, open 'job7'", "no_rule"),
        ('[{"type": "text", "text": "The request timed out"}]', "no_rule"),
        ("No results found.", "no_rule"),
        ('{"job": 7, "status": "pending"}', "unfinished"),
    ],
)
async def test_a_retry_is_no_repeat_of_a_result(result: str, reason: str) -> None:
    """What failed, found nothing or goes on may be asked again."""
    script = [Answer.whole(LOOKING), Answer.whole(ANSWER)]
    async with scripted(*script) as upstream, proxied(upstream, governance=RULES) as proxy:
        assert (await decided(proxy, history(result)))["reason"] == reason


async def test_the_operator_names_volatile_tools_and_failures() -> None:
    """From the first call on, without anything to learn."""
    tools = {"read_only": ["lookup"], "volatile": ["look*"]}
    async with scripted(*answers(1)) as upstream, proxied(upstream, governance=RULES, tools=tools) as proxy:
        assert (await decided(proxy, history("31 C")))["reason"] == "volatile"
    tools = {"read_only": ["lookup"], "failures": ["fehler: "]}
    async with scripted(*answers(1)) as upstream, proxied(upstream, governance=RULES, tools=tools) as proxy:
        assert (await decided(proxy, history("Fehler: unbekannt")))["reason"] == "no_rule"


def test_a_pattern_of_failures_must_be_one() -> None:
    """It is said at start, and not when the first result comes."""
    with pytest.raises(ValueError, match="regular expression"):
        ToolSettings(failures=("(",))
