"""The true value of each call, by replay: the same prefix, with the call's result and with a notice in its
place.

A call is *avoidable* if the question is answered as well without its result, and *needed* otherwise. For a
model that samples, each side is continued several times; a greedy one gives the same continuation every
time, so once is enough and the run itself is the side with the result.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from statistics import fmean

from governor.decision import Reason
from governor.notices import notice_for
from governor_training.atlas.agent import Agent, Call, Run
from governor_training.atlas.tools import Toolbox
from governor_training.atlas.world import World

AVOIDABLE_LOSS = 0.1
"""The largest drop in the share of right answers at which a call still counts as avoidable (sampling models
only)."""


@dataclass(frozen=True, slots=True)
class Value:
    """What one call of one run was worth: the share of right answers with its result and without it."""

    call: Call
    with_result: float
    without: float

    @property
    def avoidable(self) -> bool:
        return self.with_result - self.without <= AVOIDABLE_LOSS


async def values(agent: Agent, world: World, run: Run, *, continuations: int = 1) -> list[Value]:
    """The value of each read-only call of `run`, in order. `agent` talks to the engine itself, not to a
    governor."""
    found = []
    for index, call in enumerate(run.calls):
        if not call.read_only:
            continue
        without = [await _without(agent, world, run, index) for _ in range(continuations)]
        with_result = [run.correct]
        if continuations > 1:
            with_result = [await _with(agent, world, run, index) for _ in range(continuations)]
        found.append(Value(call, fmean(with_result), fmean(without)))
    return found


async def _without(agent: Agent, world: World, run: Run, index: int) -> bool:
    call = run.calls[index]
    repeated = any(earlier.signature == call.signature for earlier in run.calls[:index])
    text = notice_for(Reason.REPEATED_CALL if repeated else Reason.CONFIDENT_ANSWER)
    return await _continue(agent, world, run, index, text)


async def _with(agent: Agent, world: World, run: Run, index: int) -> bool:
    return await _continue(agent, world, run, index, None)


async def _continue(agent: Agent, world: World, run: Run, index: int, instead: str | None) -> bool:
    """Plays on after call `index`, whose result is replaced by the text `instead`, there and wherever it is
    repeated."""
    call = run.calls[index]
    again = Run(run.question, calls=list(run.calls[:index]))
    toolbox = Toolbox(world)
    toolbox.notes = [note for earlier in run.calls[:index] if (note := _saved(earlier)) is not None]
    again.messages = _prefix(run, index)
    again.messages[-1]["content"] = call.result if instead is None else instead
    await agent.go_on(again, toolbox, {} if instead is None else {call.signature: instead})
    return again.correct


def _prefix(run: Run, index: int) -> list[dict[str, object]]:
    """The messages up to the result of call `index`, that result included."""
    seen = -1
    for place, message in enumerate(run.messages):
        seen += message["role"] == "tool"
        if seen == index:
            return copy.deepcopy(run.messages[: place + 1])
    raise ValueError(f"the run has no result of call {index}")


def _saved(call: Call) -> str | None:
    return None if call.read_only else str(json.loads(call.arguments).get("text"))
