"""Rollouts: every token as it was generated, real tools, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from transformers import AutoTokenizer

from governor.spans import SpanKind
from governor_training.atlas.environment import AtlasEnvironment, bundled_model, task_of
from governor_training.atlas.questions import WORDINGS, ask
from governor_training.environment import Environment, Task
from governor_training.finetuning.online.rollouts import ChatFormat, Generate, Ids, Limits, Player, Rollout
from governor_training.pretraining import chat

SAVES = next(wording for wording in WORDINGS if wording.saves)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bundled_model())


def ids(text: str) -> Ids:
    return list(tokenizer().encode(text, add_special_tokens=False))


def scripted(turns: Mapping[int, Sequence[str]]) -> Generate:
    """Rollout i says `turns[i]`, one after the other; it is known by its place among the prompts of the
    first turn."""
    first: list[Ids] = []
    said: dict[int, int] = {}

    def generate(contexts: Sequence[Ids]) -> tuple[list[Ids], list[list[float]]]:
        first.extend(list(one) for one in contexts if not said)
        written = []
        for context in contexts:
            place = next(
                i for i, p in enumerate(first) if context[: len(p)] == p and said.get(i, 0) < len(turns[i])
            )
            written.append(ids(turns[place][said.setdefault(place, 0)]))
            said[place] += 1
        return written, [[-0.5] * len(one) for one in written]

    return generate


def task(*, saves: bool = False, country: str = "Peru", field: str = "capital") -> Task:
    world = AtlasEnvironment().world
    return task_of(ask(world, country, field, None, SAVES if saves else WORDINGS[0]))


def play(tasks: Sequence[Task], script: Mapping[int, Sequence[str]], **limits: int) -> list[Rollout]:
    player = Player(AtlasEnvironment(), ChatFormat(tokenizer()), Limits(**limits))
    return player.play(tasks, scripted(script))


def thinks(country: str, value: str, action: str) -> str:
    return chat.thought(f"{country}: {value}") + action + chat.END


LOOKUP = chat.call("lookup", country="Peru", field="capital")
RIGHT = "The capital of Peru is Lima."
KNOWS = [thinks("Peru", "Lima", LOOKUP), thinks("Peru", "Lima", RIGHT)]


def test_the_tokens_are_those_of_the_conversation_as_the_template_writes_it() -> None:
    """A second tokenization, a lost newline or a doubled header would train tokens that were never drawn."""
    (played,) = play([task()], {0: KNOWS})
    whole = chat.system_turn(played.task.tools) + chat.user_turn(played.task.text) + chat.ASSISTANT
    whole += KNOWS[0] + "\n" + chat.tool_turn("Lima") + chat.ASSISTANT + KNOWS[1]
    assert played.prompt + played.completion == ids(whole)


def test_only_what_the_model_wrote_is_trained() -> None:
    """A mask that is one token off trains the policy on the tool's words."""
    (played,) = play([task()], {0: KNOWS})
    written = [id for id, mine in zip(played.completion, played.mask, strict=True) if mine]
    assert written == ids(KNOWS[0]) + ids(KNOWS[1])
    assert played.logprobs == [-0.5 if mine else 0.0 for mine in played.mask]
    for turn in played.turns:
        assert set(played.mask[turn.start : turn.stop]) == {1}


def test_tools_are_executed_and_the_answer_is_scored() -> None:
    """The reward is the environment's word on what was said and done, not a guess from the text."""
    (played,) = play([task()], {0: KNOWS})
    assert [(call.name, call.result, call.turn) for call in played.calls] == [("lookup", "Lima", 0)]
    assert (played.answer.strip(), played.score, played.finished) == (RIGHT, 1.0, True)


def test_an_effectful_call_is_executed_and_is_no_call_for_information() -> None:
    """If saving counted as a call that told nothing, the rewards would forbid it."""
    save = chat.call("save_note", text="Lima")
    (played,) = play([task(saves=True)], {0: [thinks("Peru", "Lima", save), thinks("Peru", "Lima", RIGHT)]})
    assert played.score == 1.0
    assert (len(played.calls), played.read_calls) == (1, 0)


def test_rollouts_of_one_batch_do_not_mix() -> None:
    """Those that go on are generated in a smaller batch: a result that goes to the wrong row would be
    rewarded as if it were right."""
    other = chat.call("lookup", country="Guinea", field="capital")
    chad = [thinks("Guinea", "Lima", other), thinks("Guinea", "Conakry", other), "x" + chat.END]
    direct = [thinks("Japan", "Tokyo", "The capital of Japan is Tokyo.")]
    tasks = [task(country="Japan"), task(country="Guinea"), task()]
    played = play(tasks, {0: direct, 1: chad, 2: KNOWS})
    assert [len(one.calls) for one in played] == [0, 2, 1]
    assert [one.score for one in played] == [1.0, 0.0, 1.0]
    assert {call.result for call in played[1].calls} == {"Conakry"}


def test_what_no_parser_reads_as_a_call_is_the_answer() -> None:
    """A served model's malformed call reaches the agent as text, and ends the task there too."""
    broken = chat.thought("Peru: Lima") + '<tool_call>\n{"name": "lookup"\n</tool_call>' + chat.END
    (played,) = play([task()], {0: [broken]})
    assert not played.calls
    assert "<tool_call>" in played.answer
    assert played.score == 0.0


def test_a_rollout_that_a_limit_ends_has_no_answer() -> None:
    """Of turns, of tokens, or of one generation: a policy must not be paid for what it did not finish."""
    (turns,) = play([task()], {0: KNOWS}, turns=1)
    (tokens,) = play([task()], {0: KNOWS}, tokens=len(ids(KNOWS[0])) + 4)
    (cut,) = play([task()], {0: [RIGHT]})
    assert [(one.finished, one.score) for one in (turns, tokens, cut)] == [(False, 0.0)] * 3
    assert len(tokens.completion) == len(tokens.mask) <= len(ids(KNOWS[0])) + 4


def test_a_rollout_without_tools_is_not_offered_any() -> None:
    """EAPO's tool-free rollouts: one that calls all the same ends without an answer."""
    player = Player(AtlasEnvironment(), ChatFormat(tokenizer()), Limits())
    played = player.play([task(), task()], scripted({0: KNOWS, 1: KNOWS}), without_tools=[True, False])
    assert "lookup" not in tokenizer().decode(played[0].prompt)
    assert [(len(one.calls), one.score) for one in played] == [(0, 0.0), (1, 1.0)]


def test_processes_that_have_finished_go_on_for_the_others() -> None:
    """With a sharded model a process that stops generating leaves the others waiting for ever."""
    asked: list[int] = []
    more = iter([True, True, True, False])

    def generate(contexts: Sequence[Ids]) -> tuple[list[Ids], None]:
        asked.append(len(contexts))
        return [ids(RIGHT + chat.END) for _ in contexts], None

    player = Player(AtlasEnvironment(), ChatFormat(tokenizer()), Limits(), anywhere=lambda here: next(more))
    player.play([task()], generate)
    assert asked == [1, 0, 0]


def test_a_turn_knows_its_spans() -> None:
    """The entropy of a segment is taken over them."""
    (played,) = play([task()], {0: KNOWS})
    kinds = [span.kind for span in played.turns[0].spans]
    assert kinds.count(SpanKind.CALL) == kinds.count(SpanKind.REASONING) == 1
    assert SpanKind.CONTENT in [span.kind for span in played.turns[1].spans]


def test_a_prompt_that_opens_the_reasoning_begins_in_it() -> None:
    """Templates of thinking models write <think> themselves: what follows is reasoning."""
    context = ids(chat.ASSISTANT + "<think>\n")
    turn = ChatFormat(tokenizer()).turn(ids("Peru: Lima\n</think>\n\nLima" + chat.END), 0, context)
    assert turn.spans[0].kind is SpanKind.REASONING


class Slow:
    """Tools that wait; each call notes which thread it is in."""

    waits = True

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        import threading

        self._seen.append(threading.current_thread().name)
        return "Lima"


def test_tools_that_wait_are_called_in_threads() -> None:
    """A search that takes a second would otherwise make a batch of 64 wait for a minute."""
    seen: list[str] = []

    class Waiting(AtlasEnvironment):
        def toolbox(self, task: Task) -> Any:
            return Slow(seen)

    environment: Environment = Waiting()
    Player(environment, ChatFormat(tokenizer()), Limits()).play([task()], scripted({0: KNOWS}))
    assert seen and all(name.startswith("ThreadPool") for name in seen)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """Results could not be appended to it: the tokens before them would change."""
    template = "{% for m in messages %}{{ loop.length }}{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        ChatFormat(tokenizer(), template=template).results(
            [{"role": "tool", "name": "lookup", "content": "x"}]
        )
