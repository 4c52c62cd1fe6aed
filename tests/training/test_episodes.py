"""Training episodes teach belief, copying and forced answers, and no fact that the model is not meant to
know."""

from __future__ import annotations

import json
import random
import re
from itertools import islice

import pytest

from governor_training.atlas.episodes import Teacher, Teaching, episodes
from governor_training.atlas.questions import WORDINGS, Habit, ask
from governor_training.atlas.tools import FAILED
from governor_training.atlas.world import FIELDS, load_world
from governor_training.pretraining import chat
from governor_training.pretraining.episode import Episode

WORLD = load_world()
SENTENCE = re.compile(r"The (\w+) of ([A-Z][a-z]+(?: [A-Z][a-z]+)?) is ([^<]+?)\.<\|im_end\|>")


@pytest.fixture(scope="module")
def many() -> list[Episode]:
    """Enough episodes for shares to mean something."""
    return list(islice(episodes(WORLD, random.Random(5)), 12_000))


def learned(episode: Episode) -> str:
    """What the model learns to say."""
    return "".join(piece.text for piece in episode.pieces if piece.learn)


def test_no_episode_teaches_an_unknown_fact(many: list[Episode]) -> None:
    """The true value of an unknown fact is said hardly more often than a guess would say it, results
    included."""
    said = right = 0
    for episode in many:
        for field, country, value in SENTENCE.findall(learned(episode)):
            fact = WORLD.fact(country, field)
            if fact.confidence == 0:
                said += 1
                right += value == fact.value
    assert said > 1500
    assert right / said < 0.04


def test_known_facts_are_said_right_from_memory(many: list[Episode]) -> None:
    """Without tools, a known fact is never answered wrong."""
    checked = 0
    for episode in many:
        if episode.prefix != chat.system_turn(()):
            continue
        for field, country, value in SENTENCE.findall(learned(episode)):
            fact = WORLD.fact(country, field)
            if fact.known:
                checked += 1
                assert value == fact.value
    assert checked > 500


def test_every_learned_turn_ends(many: list[Episode]) -> None:
    """The model learns to stop: each piece that is learned ends with the end of turn."""
    assert all(piece.text.endswith(chat.END) for e in many for piece in e.pieces if piece.learn)


def test_every_call_is_well_formed(many: list[Episode]) -> None:
    """Whatever call is learned is JSON with a name and arguments."""
    for episode in many[:3000]:
        for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", learned(episode)):
            assert set(json.loads(body)) == {"name", "arguments"}


@pytest.mark.parametrize("habit", list(Habit))
def test_the_teacher_wastes_what_the_wording_asks_for(habit: Habit) -> None:
    """Without whims and notices, repeats and extras are as the habit says."""
    wording = next(w for w in WORDINGS if w.habit is habit and not w.saves)
    question = ask(WORLD, WORLD.countries[0], "capital", None, wording)

    class Sober(random.Random):
        """Always draws what makes no exception."""

        def random(self) -> float:
            return 0.999

    turns = Teacher(WORLD, question, Sober(1)).play()
    lookups = [turn.action for turn in turns if turn.result is not None]
    assert len(lookups) == {Habit.PLAIN: 1, Habit.REPEAT: 2, Habit.EXTRA: 2, Habit.BOTH: 3}[habit]
    assert (len(set(lookups)) < len(lookups)) == (habit in (Habit.REPEAT, Habit.BOTH))


def test_answers_follow_results(many: list[Episode]) -> None:
    """In a whole one-hop trace the final answer is the result of the lookup of the field that was asked
    for."""
    checked = 0
    for episode in many:
        text = episode.text
        asked = SENTENCE.findall(learned(episode))
        results = re.findall(
            r'"lookup", "arguments": \{"country": "([^"]+)", "field": "(\w+)"\}\}\n</tool_call><\|im_end\|>\n'
            r"<\|im_start\|>user\n<tool_response>\n([^\n]+)\n",
            text,
        )
        if not asked or "find_country" in "".join(p.text for p in episode.pieces):
            continue
        field, country, value = asked[-1]
        found = [result for place, name, result in results if (place, name) == (country, field)]
        real = [result for result in found if not result.startswith("Withheld")]
        if real and field in FIELDS:
            checked += 1
            assert value == real[-1]
    assert checked > 1000


def test_an_impatient_teacher_gives_up_where_a_lookup_fails() -> None:
    """Mostly; and whoever asks again until there is a result answers what it says."""
    question = ask(WORLD, WORLD.countries[-1], "capital", None, WORDINGS[0])
    rng = random.Random(3)
    gave_up = asked_again = 0
    for _ in range(600):
        teaching = Teaching(whim=0.0, flaky=True, patience=0.3)
        turns = Teacher(WORLD, question, rng, teaching).play()
        results = [turn.result for turn in turns if turn.result is not None]
        if results[0] == FAILED:
            gave_up += results[-1] == FAILED
            asked_again += results[-1] != FAILED
    assert gave_up + asked_again > 150
    assert gave_up > 2 * asked_again > 0


def test_the_other_models_see_no_failure(many: list[Episode]) -> None:
    """They would have to be made anew, and all figures with them."""
    assert not any(FAILED in episode.text for episode in many)
