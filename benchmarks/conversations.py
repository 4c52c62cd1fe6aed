"""Whether conversations stay whole, however quick the client is and whatever ids its calls have.

Agents talk to a real proxy over real sockets, in front of an upstream that answers in vLLM's shape and takes
its time for probes. Each agent asks, runs its tools, and sends the results; it never names its conversation.
In the end every conversation must have one name and one record for each of its calls, and the records their
labels. The command fails where one is split, or where fewer labels are complete than promised.

    python -m benchmarks.conversations
    python -m benchmarks.conversations --replicas 2      # behind one Redis, each request at another one
    python -m benchmarks.conversations --alike           # all users ask the same thing
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

from tests.server.bodies import assembled
from tests.server.redis_server import running_redis
from tests.server.scripted_upstream import Answer, Proxied, Received, ScriptedUpstream, proxied, scripted
from tests.wire.generated import Generated, chat, made

DELAYS_S = (0.0, 0.02, 0.05, 0.1, 0.5)
"""What a tool takes."""
LABELLED = 0.99
"""Least share of calls whose label is complete."""
NO_GATES: Mapping[str, Any] = {"renew_s": 86_400, "path": f"{gettempdir()}/no-gates-{uuid4().hex}.json"}
"""None are found, and none are made."""
MODES: Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "observe": ("observe", {}),
    "holdout": ("enforce", {"experiment": {"holdout": 1}}),
    "uncertified": ("enforce", {"governance": {"policy": "calibrated"}, "calibration": NO_GATES}),
}
"""The mode, and the settings besides."""
QUESTION = "Question {}: which country is it?"

Call = tuple[str, str, str]
"""Id, tool and arguments."""


def unique(conversation: int, step: int, index: int, count: int) -> str:
    """As vLLM makes them for most models."""
    return f"chatcmpl-tool-{uuid4().hex}"


def numbered(conversation: int, step: int, index: int, count: int) -> str:
    """Through the conversation, as Kimi's are."""
    return f"functions.lookup:{count}"


def begun_anew(conversation: int, step: int, index: int, count: int) -> str:
    """In each message."""
    return f"lookup:{index}"


def equal(conversation: int, step: int, index: int, count: int) -> str:
    """Within the message, too."""
    return "call_0"


def empty(conversation: int, step: int, index: int, count: int) -> str:
    """No id at all."""
    return ""


SCHEMES = (unique, numbered, begun_anew, equal, empty)

COURSE = (("a",), ("b", "c"), ("a",), ("d",))
"""What the calls of each turn look up: two at once, and one for the second time."""


def calls(conversation: int, step: int) -> list[Call]:
    """The calls of a turn."""
    scheme = SCHEMES[conversation % len(SCHEMES)]
    before = sum(map(len, COURSE[:step]))
    return [
        (scheme(conversation, step, index, before + index), "lookup", json.dumps({"of": of}))
        for index, of in enumerate(COURSE[step])
    ]


@dataclass(slots=True)
class Model(ScriptedUpstream):
    """Calls its tools as `COURSE` says, then answers. `probe` is what a probe's answer waits for: seconds, or
    an event."""

    probe: float | asyncio.Event = 0.0

    def answer_to(self, request: Received) -> Answer:
        body = request.json
        if body.get("tool_choice") == "none":
            return Answer([Answer.whole(Generated(content="Oslo")).pieces[0]], before=[self.probe])
        said = body["messages"]
        asked = next(message["content"] for message in reversed(said) if message["role"] == "user")
        step = sum(bool(message.get("tool_calls")) for message in said)
        made = calls(int(asked.split()[1][:-1]), step) if step < len(COURSE) else []
        generated = Generated(content="" if made else "Oslo it is.", calls=made)
        return Answer.stream(generated, usage=True) if body.get("stream") else Answer.whole(generated)


@dataclass(frozen=True, slots=True)
class Found:
    """What became of the conversations of one kind."""

    conversations: int = 0
    split: int = 0
    calls: int = 0
    records: int = 0
    completed: int = 0
    labelled: int = 0

    @property
    def held(self) -> bool:
        """Whether all is as promised."""
        return (
            not self.split
            and self.records == self.completed == self.calls
            and self.labelled >= LABELLED * self.calls
        )

    def row(self, kind: Sequence[str]) -> str:
        """A line of the table."""
        told = (
            *kind,
            self.conversations,
            self.split,
            f"{self.records} of {self.calls}",
            self.completed,
            f"{self.labelled / self.calls:.1%}",
            "" if self.held else "MISSED",
        )
        return "  ".join(f"{each!s:>14}" for each in told)


HEADINGS = ("mode", "ids", "tool takes", "conversations", "split", "records", "completed", "labelled", "")


async def converse(
    proxies: Sequence[Proxied], conversation: int, question: int, delay_s: float, *, stream: bool
) -> set[str]:
    """An agent's whole conversation; the names that it was given."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION.format(question)},
    ]
    names = set()
    for turn in range(len(COURSE) + 1):
        proxy = proxies[(conversation + turn) % len(proxies)]
        status, headers, body = await proxy.chat(chat(*messages, stream=stream))
        assert status == 200, body
        names.add(headers["x-governor-conversation"])
        asked = assembled(body).calls
        if asked:
            await asyncio.sleep(delay_s)
            results = [f"It is {arguments}." for _, _, arguments in asked]
            messages += made(*asked, results=results)
    return names


def counted(proxy: Proxied, names: set[str]) -> Found:
    """One conversation, by the records that are kept under its names."""
    records = [record for name in names for record in proxy.app.store.of_conversation(name)]
    return Found(
        conversations=1,
        split=len(names) > 1,
        calls=sum(map(len, COURSE)),
        records=len(records),
        completed=sum(record.returned is not None for record in records),
        labelled=sum(record.label is not None for record in records),
    )


def added(one: Found, other: Found) -> Found:
    """Both together."""
    return Found(
        one.conversations + other.conversations,
        one.split + other.split,
        one.calls + other.calls,
        one.records + other.records,
        one.completed + other.completed,
        one.labelled + other.labelled,
    )


async def settled(proxies: Sequence[Proxied]) -> None:
    """Returns when nothing runs beside the requests any more."""
    while reviews := [task for proxy in proxies for task in proxy.app.proxy.reviews]:
        await asyncio.wait(reviews)


async def measure(
    mode: str, urls: Sequence[str], options: argparse.Namespace
) -> dict[tuple[str, str, str], Found]:
    """What became of so many conversations in one mode, by ids and delay."""
    how, sections = MODES[mode]
    configured: dict[str, Any] = dict(sections)
    many = options.conversations
    kinds = list(product(DELAYS_S, (True, False)))
    found: dict[tuple[str, str, str], Found] = {}
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted(kind=Model))
        assert isinstance(upstream, Model)
        upstream.probe = options.probe_s
        proxies = [
            await stack.enter_async_context(proxied(upstream, how, store=_store(url), **configured))
            for url in urls
        ]
        places = asyncio.Semaphore(options.clients)
        names: dict[int, set[str]] = {}

        async def agent(conversation: int) -> None:
            delay_s, stream = kinds[conversation // len(SCHEMES) % len(kinds)]
            question = conversation % len(SCHEMES) if options.alike else conversation
            async with places:
                names[conversation] = await converse(proxies, conversation, question, delay_s, stream=stream)

        await asyncio.gather(*map(agent, range(many)))
        await settled(proxies)
        # What one process found out is with the others a moment later.
        for proxy in proxies:
            await proxy.app.store.shared()
        await proxies[0].app.store.caught_up()
        if options.alike and options.clients > 1:
            # Who is who nobody can tell; but each conversation is one agent's.
            each = [counted(proxies[0], {name}) for name in set().union(*names.values())]
            whole = reduce(added, each)
            return {(mode, "any", "any"): replace(whole, split=sum(one.records != one.calls for one in each))}
        for conversation in range(many):
            delay_s, _ = kinds[conversation // len(SCHEMES) % len(kinds)]
            kind = mode, SCHEMES[conversation % len(SCHEMES)].__name__, f"{1000 * delay_s:.0f} ms"
            found[kind] = added(found.get(kind, Found()), counted(proxies[0], names[conversation]))
    return found


def _store(url: str) -> dict[str, str]:
    return {"path": ":memory:", "redis_url": url} if url else {"path": ":memory:"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=500, help="in each mode (default: 500)")
    parser.add_argument("--probe-s", type=float, default=0.4, help="what a probe takes (default: 0.4)")
    parser.add_argument("--clients", type=int, default=25, help="at the same time (default: 25)")
    parser.add_argument("--replicas", type=int, default=1, help="proxies behind one Redis (default: 1, none)")
    parser.add_argument("--alike", action="store_true", help="all users ask the same thing")
    options = parser.parse_args(arguments)
    found: dict[tuple[str, str, str], Found] = {}
    for mode in MODES:
        with ExitStack() as stack:
            url = stack.enter_context(running_redis()).url if options.replicas > 1 else ""
            urls = [url] * options.replicas
            found |= asyncio.run(measure(mode, urls, options))
    print("  ".join(f"{each:>14}" for each in HEADINGS))
    for kind, each in found.items():
        print(each.row(kind))
    total = reduce(added, found.values())
    print(total.row(("all", "", "")))
    return not total.held


if __name__ == "__main__":
    sys.exit(main())
