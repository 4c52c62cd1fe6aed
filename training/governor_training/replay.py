"""The true value of each call, by replay: the same prefix, with the call's result and with a notice in its
place.

A call is *avoidable* if the task is done as well without its result, and *needed* otherwise. For a model that
samples, each side is continued several times; a greedy one gives the same continuation every time, so once is
enough and the run itself is the side with the result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import fmean

from governor.decision import Reason
from governor.notices import notice_for
from governor_training.agent import Agent, Call, Run, object_of
from governor_training.environment import Environment, Message, Toolbox

AVOIDABLE_LOSS = 0.1
"""The largest drop in the mean score at which a call still counts as avoidable."""


@dataclass(frozen=True, slots=True)
class Value:
    """What one call of one run was worth: the mean score with its result and without it."""

    call: Call
    with_result: float
    without: float

    @property
    def gain(self) -> float:
        """What the result adds to the score, in [-1, 1]."""
        return self.with_result - self.without

    @property
    def avoidable(self) -> bool:
        return self.gain <= AVOIDABLE_LOSS


async def values(agent: Agent, environment: Environment, run: Run, *, continuations: int = 1) -> list[Value]:
    """The value of each read-only call of `run`, in order. `agent` talks to the engine itself, not to a
    governor."""
    found = []
    for index, call in enumerate(run.calls):
        if not call.read_only:
            continue
        without = [await _without(agent, environment, run, index) for _ in range(continuations)]
        with_result = [run.score]
        if continuations > 1:
            with_result = [
                await _continue(agent, environment, run, index, None) for _ in range(continuations)
            ]
        found.append(Value(call, fmean(with_result), fmean(without)))
    return found


async def _without(agent: Agent, environment: Environment, run: Run, index: int) -> float:
    call = run.calls[index]
    repeated = any(earlier.signature == call.signature for earlier in run.calls[:index])
    text = notice_for(Reason.REPEATED_CALL if repeated else Reason.CONFIDENT_ANSWER)
    return await _continue(agent, environment, run, index, text)


async def _continue(
    agent: Agent, environment: Environment, run: Run, index: int, instead: str | None
) -> float:
    """Plays on after call `index`, whose result is replaced by the text `instead`, there and wherever it is
    repeated. Returns the score."""
    call = run.calls[index]
    again = Run(run.task, calls=list(run.calls[:index]))
    toolbox = environment.toolbox(run.task)
    for earlier in again.calls:
        _execute_again(earlier, toolbox)
    again.messages = _prefix(run, index)
    again.messages[-1]["content"] = call.result if instead is None else instead
    await agent.go_on(again, toolbox, {} if instead is None else {call.signature: instead})
    return again.score


def _execute_again(call: Call, toolbox: Toolbox) -> None:
    """What only reads left nothing behind, so that it need not be done again."""
    arguments = object_of(call.arguments)
    if not call.read_only and arguments is not None:
        toolbox.call(call.name, arguments)


def _prefix(run: Run, index: int) -> list[Message]:
    """The messages up to the result of call `index`, that result included."""
    seen = -1
    for place, message in enumerate(run.messages):
        seen += message["role"] == "tool"
        if seen == index:
            return copy.deepcopy(run.messages[: place + 1])
    raise ValueError(f"the run has no result of call {index}")
