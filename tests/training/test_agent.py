"""Agent and replay, on a toy environment that is known in full."""

from __future__ import annotations

from typing import Any

from governor_training import replay
from governor_training.agent import Agent
from tests.training.toy import Toy, ToyModel, response


async def test_a_task_is_played_to_its_end() -> None:
    """Calls in order with their results, the answer, the score, and the tokens of every request."""
    toy = Toy()
    run = await Agent(ToyModel(), toy).ask(toy.task(3))
    assert [(call.name, call.result, call.read_only) for call in run.calls] == [("fetch", "3", True)] * 2
    assert (run.answer, run.correct, run.turns, run.requests) == ("3", True, 3, 3)
    assert run.tokens["prompt"] == 10 * (1 + 3 + 5)


async def test_what_the_tools_left_behind_is_scored() -> None:
    """The right answer alone is not enough where it was to be saved."""
    toy = Toy(saves=True)
    run = await Agent(ToyModel(), toy).ask(toy.task(1))
    assert [call.read_only for call in run.calls] == [True, False]
    assert run.correct
    bare = await Agent(ToyModel(), toy).ask(Toy(saves=False).task(1))
    assert not bare.correct


async def test_values_are_what_happens_without_the_result() -> None:
    """3 is not known: its first fetch is needed where nothing repeats it, the repeat is not. 2 is known."""
    toy = Toy()
    agent = Agent(ToyModel(), toy)
    avoidable = {}
    for number in (1, 2, 3):
        run = await agent.ask(toy.task(number))
        avoidable[number] = [value.avoidable for value in await replay.values(agent, toy, run)]
    assert avoidable == {1: [False], 2: [True], 3: [False, True]}


async def test_a_replay_does_again_what_had_an_effect_and_nothing_else() -> None:
    """Else the replayed end state is another one, and every call before it looks needed."""
    toy = Toy(saves=True)
    agent = Agent(ToyModel(), toy)
    run = await agent.ask(toy.task(2))
    run.calls = [run.calls[1], run.calls[0]]
    run.messages = [run.messages[0], *run.messages[3:5], *run.messages[1:3]]
    (value,) = await replay.values(agent, toy, run)
    assert value.avoidable


async def test_malformed_arguments_are_told_to_the_model() -> None:
    """They are counted, no tool is called, and the conversation goes on."""

    async def clumsy(body: dict[str, Any], conversation: str) -> dict[str, Any]:
        if len(body["messages"]) > 1:
            return response(body, text="2")
        broken = response(body, call=("fetch", {}))
        broken["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = "{"
        return broken

    toy = Toy()
    run = await Agent(clumsy, toy).ask(toy.task(2))
    assert run.malformed == 1
    assert run.calls[0].result.startswith("error")
    assert run.correct


async def test_a_conversation_ends_at_the_limit_of_turns() -> None:
    """A model that never answers gives a wrong run, not an endless one."""

    async def stubborn(body: dict[str, Any], conversation: str) -> dict[str, Any]:
        return response(body, call=("fetch", {}))

    toy = Toy()
    run = await Agent(stubborn, toy, max_turns=3).ask(toy.task(2))
    assert (run.turns, len(run.calls), run.correct) == (3, 3, False)
