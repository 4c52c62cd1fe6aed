"""Whether `/governor/effect` can be believed: simulated deployments through the real proxy.

    python -m benchmarks.effect --deployments 200

In each deployment agents ask an enforcing proxy with a holdout, over real sockets. They count their own
calls, tokens and seconds. A scripted upstream plays a model that goes on calling when it knows the answer:
how often it would call, and from which call on it is sure, is drawn for each conversation, and so are the
lengths of its prompts and the time that a tool takes. At the end `/governor/effect` is asked, and its
estimates and intervals are compared with the truth: the mean difference between the arms by what all clients
of all deployments counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any, Final

from governor.experiment import Arm
from tests.server.scripted_upstream import Answer, Proxied, Received, ScriptedUpstream, proxied, scripted
from tests.wire.generated import Generated, stream_bytes

MEASURES: Final = ("calls", "tokens", "seconds")
AT_ONCE: Final = 40
"""Conversations of a deployment that are under way together."""
TOOL_S: Final = (0.05, 0.1, 0.2)
"""Mean seconds of a tool, one of them for each deployment."""
GENERATION_S: Final = 0.04
PROBE_S: Final = 0.03
HOLDOUTS: Final = (0.5, 0.3, 0.2)
SETTLE_S: Final = 0.05

TOOL: Final = {
    "type": "function",
    "function": {
        "name": "lookup",
        "parameters": {"type": "object", "properties": {"page": {"type": "integer"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Task:
    """What upstream would do in one conversation: `proposals` calls before it answers by itself, sure of its
    answer after `needed` of them; `prompt` tokens at first and `page` more with each result."""

    proposals: int
    needed: int
    prompt: int
    page: int

    @classmethod
    def drawn(cls, lots: Random) -> Task:
        proposals = 1
        while proposals < 8 and lots.random() < 0.6:
            proposals += 1
        needed = sum(lots.random() < 0.5 for _ in range(proposals))
        return cls(
            proposals,
            needed,
            round(200 * lots.lognormvariate(0, 0.3)),
            round(150 * lots.lognormvariate(0, 0.5)),
        )


@dataclass(slots=True)
class Counted:
    """What a client counted in one conversation."""

    conversation: str = ""
    calls: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0


class Model(ScriptedUpstream):
    """Plays the model. What it is to do stands in the first message."""

    def answer_to(self, request: Received) -> Answer:
        """The answer to any request of the proxy."""
        body = request.json
        task = Task(**json.loads(body["messages"][0]["content"])["task"])
        results = sum(message["role"] == "tool" for message in body["messages"])
        usage = {"prompt_tokens": task.prompt + task.page * results}
        if body.get("tool_choice") == "none":
            sure = results >= task.needed
            said = Generated(f"page {task.needed}", sure=0.99 if sure else 0.4)
            return _answer(body, said, PROBE_S, {**usage, "completion_tokens": 4})
        if results >= task.proposals:
            return _answer(body, Generated("It is done."), GENERATION_S, {**usage, "completion_tokens": 8})
        call = (f"call-{id(request):x}-{results}", "lookup", json.dumps({"page": results}))
        said = Generated(calls=[call], top=20 if body.get("logprobs") else None)
        return _answer(body, said, GENERATION_S, {**usage, "completion_tokens": 20})


def _answer(body: Mapping[str, Any], said: Generated, after_s: float, usage: Mapping[str, int]) -> Answer:
    usage = {**usage, "total_tokens": sum(usage.values())}
    if not body.get("stream"):
        return Answer([after_s, json.dumps({**said.response(), "usage": usage}).encode()], length=False)
    wanted = bool((body.get("stream_options") or {}).get("include_usage"))
    chunks = said.chunks(usage=wanted)
    if wanted:
        chunks[-1] = {**chunks[-1], "usage": usage}
    return Answer(
        [after_s, stream_bytes(chunks)],
        headers=(("content-type", "text/event-stream; charset=utf-8"),),
        length=False,
    )


async def converse(proxy: Proxied, task: Task, tool_s: float, streams: bool, lots: Random) -> Counted:
    """One conversation of an agent, by its own count."""
    counted = Counted()
    asked = json.dumps({"task": asdict(task), "mark": lots.getrandbits(64)})
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    start = time.perf_counter()
    while True:
        body: dict[str, Any] = {"model": "atlas", "messages": messages, "tools": [TOOL], "temperature": 0}
        if streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        status, headers, answered = await proxy.chat(body)
        assert status == 200, answered
        message, usage = read_stream(answered) if streams else read_whole(answered)
        counted.conversation = headers["x-governor-conversation"]
        counted.tokens += usage["prompt_tokens"] + usage["completion_tokens"]
        messages.append(message)
        calls = message.get("tool_calls") or []
        if not calls:
            counted.seconds = time.perf_counter() - start
            return counted
        counted.calls += len(calls)
        await asyncio.sleep(lots.expovariate(1 / tool_s) if tool_s else 0.0)
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "A page."} for call in calls]


def read_whole(answered: bytes) -> tuple[dict[str, Any], Mapping[str, int]]:
    """Message and usage of a whole response, as clients send it back."""
    response = json.loads(answered)
    message = response["choices"][0]["message"]
    kept = {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)}
    return kept, response["usage"]


def read_stream(answered: bytes) -> tuple[dict[str, Any], Mapping[str, int]]:
    """The same of a stream."""
    calls: dict[int, dict[str, Any]] = {}
    content = ""
    usage: Mapping[str, int] = {}
    for line in answered.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            for piece in choice["delta"].get("tool_calls") or []:
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                call = calls.setdefault(piece["index"], empty)
                call["id"] += piece.get("id") or ""
                for key, text in piece["function"].items():
                    call["function"][key] += text
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | ({"tool_calls": list(calls.values())} if calls else {}), usage


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment: what its clients counted by arm, and what the proxy said."""

    holdout: float
    tool_s: float
    counted: Mapping[str, Sequence[Counted]]
    said: Mapping[str, Any]
    client_difference: Mapping[str, float] = field(default_factory=dict)


async def deployment(number: int, seed: int, conversations: int) -> Deployment:
    """Play one deployment."""
    lots = Random(f"{seed}/{number}")
    holdout, tool_s = HOLDOUTS[number % len(HOLDOUTS)], TOOL_S[number // len(HOLDOUTS) % len(TOOL_S)]
    experiment = {"holdout": holdout, "exploration": 0.0, "labels": 0.0, "salt": str(number)}
    governance = {"policy": "threshold"}
    async with (
        scripted(kind=Model) as upstream,
        proxied(upstream, "enforce", experiment=experiment, governance=governance) as proxy,
    ):
        places = asyncio.Semaphore(AT_ONCE)

        async def one(place: int) -> Counted:
            own = Random(f"{seed}/{number}/{place}")
            async with places:
                return await converse(proxy, Task.drawn(own), tool_s, place % 2 == 0, own)

        await asyncio.sleep(lots.uniform(0, 0.01))
        counted = await asyncio.gather(*map(one, range(conversations)))
        await asyncio.sleep(SETTLE_S + max(each.seconds for each in counted))
        async with proxy.client.get("/governor/effect") as response:
            said = await response.json()
        arm = partial(proxy.app.proxy.governance.experiment.arm, enforcing=True)
        by_arm: dict[str, list[Counted]] = {Arm.GOVERNED: [], Arm.HOLDOUT: []}
        for each in counted:
            by_arm[arm(each.conversation)].append(each)
    found = Deployment(holdout, tool_s, by_arm, said)
    if not all(by_arm.values()):
        return found
    return replace(found, client_difference={name: difference(by_arm, name) for name in MEASURES})


def difference(by_arm: Mapping[str, Sequence[Counted]], measure: str) -> float:
    """Governed minus holdout, by the clients' count."""
    governed, held_out = (
        [getattr(each, measure) for each in by_arm[arm]] for arm in (Arm.GOVERNED, Arm.HOLDOUT)
    )
    return fmean(governed) - fmean(held_out)


def summary(found: Sequence[Deployment]) -> Iterator[dict[str, Any]]:
    """By measure: the truth, the bias of the estimates, and how often the intervals cover the truth. What is
    true of seconds depends on how long the tools take: it is that of all deployments with the same tools."""
    truths = {tool_s: pooled([each for each in found if each.tool_s == tool_s]) for tool_s in TOOL_S}
    for measure in MEASURES:
        truth = difference(pooled(found), measure)
        true_of = {
            tool_s: difference(by_arm, measure) for tool_s, by_arm in truths.items() if all(by_arm.values())
        }
        said = [(each, each.said[measure]) for each in found if each.said[measure]]
        errors = [
            estimate["value"] - each.client_difference[measure]
            for each, estimate in said
            if each.client_difference
        ]
        sure = [(true_of[each.tool_s], estimate) for each, estimate in said if estimate["low"] is not None]
        covered = sum(estimate["low"] <= true <= estimate["high"] for true, estimate in sure)
        yield {
            "measure": measure,
            "truth": truth,
            "truths": {str(tool_s): true for tool_s, true in true_of.items()},
            "mean_estimate": fmean(estimate["value"] for _, estimate in said),
            "off_the_clients": fmean(errors) / abs(truth),
            "off_the_clients_error": stdev(errors) / sqrt(len(errors)) / abs(truth)
            if len(errors) > 1
            else 0.0,
            "worst_off_the_clients": max(map(abs, errors)) / abs(truth),
            "intervals": len(sure),
            "covered": covered / len(sure) if sure else None,
            "width": fmean(each["high"] - each["low"] for _, each in sure) if sure else None,
        }


def pooled(found: Sequence[Deployment]) -> dict[str, list[Counted]]:
    """The conversations of several deployments, by arm."""
    return {
        arm: [each for deployed in found for each in deployed.counted[arm]]
        for arm in (Arm.GOVERNED, Arm.HOLDOUT)
    }


async def run(arguments: argparse.Namespace) -> list[Deployment]:
    """All deployments, one after the other, with a word on how far it is."""
    found: list[Deployment] = []
    start = time.monotonic()
    for number in range(arguments.deployments):
        found.append(await deployment(number, arguments.seed, arguments.conversations))
        left = (time.monotonic() - start) / len(found) * (arguments.deployments - len(found))
        print(
            f"\r{len(found)} of {arguments.deployments} deployments, {left:.0f} s left ",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    return found


def main() -> int:
    """Plays, prints, and fails where an interval covers the truth too rarely or an estimate is biased."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.effect", description=(__doc__ or "").split("\n\n", 1)[0]
    )
    parser.add_argument("--deployments", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--conversations", type=int, default=60, help="in each deployment (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of all lots (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/effect.json"),
        help="figures as JSON (default: build/effect.json)",
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found = asyncio.run(run(arguments))
    rows = list(summary(found))
    whole = sum(len(deployed.counted[arm]) for deployed in found for arm in (Arm.GOVERNED, Arm.HOLDOUT))
    compared = sum(
        deployed.said[arm]["conversations"] for deployed in found for arm in ("governed", "holdout")
    )
    print(
        f"{len(found)} deployments, {whole} conversations by the clients, {compared} compared;"
        f" seed {arguments.seed}"
    )
    print("| | truth | mean estimate | off the clients' own count | intervals | cover the truth | width |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cover = "-" if row["covered"] is None else f"{row['covered']:.1%}"
        width = "-" if row["width"] is None else f"{row['width']:.3g}"
        print(
            f"| {row['measure']} | {row['truth']:.4g} | {row['mean_estimate']:.4g} "
            f"| {row['off_the_clients']:+.2%} (worst {row['worst_off_the_clients']:.1%}) "
            f"| {row['intervals']} of {len(found)} | {cover} | {width} |"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"deployments": len(found), "seed": arguments.seed, "rows": rows}, indent=1)
    )
    held = all(abs(row["off_the_clients"]) <= 0.03 and (row["covered"] or 0.0) >= 0.93 for row in rows)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
