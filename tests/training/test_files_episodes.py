"""Training episodes of the files teach belief, copying and forced answers, and no value that the model is not
meant to know."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from itertools import islice

import jinja2
import pytest

from governor.notices import is_notice
from governor.pruning import is_stub
from governor_training.files.edits import WORDINGS, Edit, Habit, sample
from governor_training.files.episodes import PREFIX, Teacher, Turn, episodes
from governor_training.files.tools import SYSTEM, TOOLS
from governor_training.files.world import SERVICES, load_world
from governor_training.pretraining import chat
from governor_training.pretraining.episode import Episode

WORLD = load_world()
SENTENCE = re.compile(r"The (\w+) of (\w+) is (\d+)\.<\|im_end\|>")
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>")


@pytest.fixture(scope="module")
def many() -> list[Episode]:
    """Enough episodes for shares to mean something."""
    return list(islice(episodes(WORLD, random.Random(5)), 8000))


@pytest.fixture(scope="module")
def played() -> list[tuple[Edit, list[Turn]]]:
    """What the teacher did in many edits."""
    rng = random.Random(6)
    asked = [sample(rng) for _ in range(3000)]
    return [(edit, Teacher(WORLD, edit, rng).play()) for edit in asked]


def learned(episode: Episode) -> str:
    """What the model learns to say."""
    return "".join(piece.text for piece in episode.pieces if piece.learn)


def found(turns: list[Turn]) -> list[str]:
    """The values that searches gave, as the model sees them."""
    results = [str(turn.result) for turn in turns if '"name": "grep"' in turn.action]
    return [result for result in results if not is_notice(result) and not is_stub(result)]


def is_long(turn: Turn) -> bool:
    """Whether the turn gave a file or a listing that the model sees."""
    return "\n" in str(turn.result)


def test_no_episode_teaches_an_unknown_value(many: list[Episode]) -> None:
    """The true value of an unknown setting is said hardly more often than a guess would say it."""
    said = right = 0
    for episode in many:
        for key, service, value in SENTENCE.findall(learned(episode)):
            setting = WORLD.setting(service, key)
            if setting.confidence == 0:
                said += 1
                right += value == setting.value
    assert said > 1000
    assert right / said < 0.05


def test_known_values_are_said_right_from_memory(many: list[Episode]) -> None:
    """Before any call, a known value is never answered wrong."""
    checked = 0
    for episode in many:
        if "<tool_response>" in episode.text or "<tool_call>" in learned(episode):
            continue
        for key, service, value in SENTENCE.findall(learned(episode)):
            if WORLD.setting(service, key).known:
                checked += 1
                assert value == WORLD.setting(service, key).value
    assert checked > 500


def test_every_learned_turn_ends(many: list[Episode]) -> None:
    """The model learns to stop: each piece that is learned ends with the end of turn."""
    assert all(piece.text.rstrip("\n").endswith(chat.END) for e in many for piece in e.pieces if piece.learn)


def test_the_prefix_is_what_the_chat_template_renders() -> None:
    """The system turn of the episodes is that of the tasks."""
    template = jinja2.Environment()
    template.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Go."}]
    rendered = template.from_string(chat.CHAT_TEMPLATE).render(
        messages=messages, tools=TOOLS, add_generation_prompt=True
    )
    assert rendered == PREFIX + chat.user_turn("Go.") + chat.ASSISTANT


def test_every_call_is_well_formed(many: list[Episode]) -> None:
    """Whatever call is learned is JSON, of a tool that there is, with its arguments."""
    needed = {tool["function"]["name"]: set(tool["function"]["parameters"]["required"]) for tool in TOOLS}
    for episode in many:
        for body in CALL.findall(learned(episode)):
            call = json.loads(body)
            assert set(call) == {"name", "arguments"}
            assert set(call["arguments"]) == needed[call["name"]]


def test_what_is_written_and_said_was_found(played: list[tuple[Edit, list[Turn]]]) -> None:
    """The value of the file is written and confirmed, unchanged, even where it is not what is believed."""
    checked = surprises = 0
    for edit, turns in played:
        if not found(turns):
            continue
        value = found(turns)[0]
        assert set(found(turns)) == {value}
        assert json.loads(CALL.findall(turns[-2].action)[0])["arguments"] == {
            "path": edit.target,
            "text": f"{edit.key}={value}",
        }
        assert turns[-1].action == edit.sentence(value)
        checked += 1
        surprises += WORLD.setting(edit.service, edit.key).belief not in (None, value)
    assert checked > 2000
    assert surprises > 200


def test_a_file_and_a_search_of_it_agree(played: list[tuple[Edit, list[Turn]]]) -> None:
    """As they do in the tree: what is found stands in the file."""
    checked = 0
    for edit, turns in played:
        for turn in turns:
            if f'"read_file", "arguments": {{"path": "etc/{edit.service}.conf"' in turn.action and is_long(
                turn
            ):
                rows = dict(row.split("=") for row in str(turn.result).split("\n"))
                checked += len(found(turns))
                assert set(found(turns)) <= {rows[edit.key]}
    assert checked > 700


def test_reading_a_file_changes_no_belief(played: list[tuple[Edit, list[Turn]]]) -> None:
    """Before the search, the forced answer is from memory, whatever the file said; after it, it is what was
    found, whatever was read since."""
    before = after = same = 0
    for edit, turns in played:
        setting = WORLD.setting(edit.service, edit.key)
        for place, turn in enumerate(turns):
            if not any(map(is_long, turns[:place])):
                continue
            if values := found(turns[:place]):
                after += 1
                assert turn.answer_by_now == edit.sentence(values[0])
            elif setting.known:
                before += 1
                assert turn.answer_by_now == edit.sentence(setting.value)
            elif setting.belief is None and (later := found(turns)):
                same += turn.answer_by_now == edit.sentence(later[0])
    assert before > 200
    assert after > 1500
    assert same < 50


def test_most_of_what_is_read_is_not_needed(played: list[tuple[Edit, list[Turn]]]) -> None:
    """Whole files are asked for in most tasks, and every one of them by habit."""
    reading = sum(any('"read_file"' in turn.action for turn in turns) for _, turns in played)
    assert reading > 0.6 * len(played)


def test_nothing_is_read_after_the_write(played: list[tuple[Edit, list[Turn]]]) -> None:
    """One write, just before the last message."""
    for _, turns in played:
        assert ["write_file" in turn.action for turn in turns] == [False] * (len(turns) - 2) + [True, False]


def test_what_is_needed_is_never_a_stub(played: list[tuple[Edit, list[Turn]]]) -> None:
    """Where the value is not known, the model sees what was found, or nothing but notices."""
    stubs = 0
    for edit, turns in played:
        stubs += sum(is_stub(str(turn.result)) for turn in turns)
        if not WORLD.setting(edit.service, edit.key).known:
            searches = [turn for turn in turns if '"grep"' in turn.action]
            assert searches
            assert found(turns) or all(is_notice(str(turn.result)) for turn in searches)
    assert stubs > 300


def test_the_teacher_asks_again_for_what_it_does_not_know(played: list[tuple[Edit, list[Turn]]]) -> None:
    """After a notice it goes on to write what it knows, and repeats the search for what it does not know."""
    wrote = repeated = 0
    for edit, turns in played:
        first = next((turn for turn in turns if '"grep"' in turn.action), None)
        if first is None or not is_notice(str(first.result)):
            continue
        after = turns[turns.index(first) + 1]
        if WORLD.setting(edit.service, edit.key).known:
            wrote += 1
            assert "write_file" in after.action
        else:
            repeated += 1
            assert after.action == first.action
    assert wrote > 100
    assert repeated > 100


@pytest.mark.parametrize("habit", list(Habit))
def test_the_teacher_wastes_what_the_wording_asks_for(habit: Habit) -> None:
    """Without whims and notices, the calls are those of the habit."""
    wording = next(one for one in WORDINGS if one.habit is habit)
    service = next(iter(SERVICES))

    class Sober(random.Random):
        """Always draws what makes no exception."""

        def random(self) -> float:
            return 0.999

    turns = Teacher(WORLD, Edit(service, "port", wording), Sober(1)).play()
    calls = [json.loads(CALL.findall(turn.action)[0]) for turn in turns[:-2]]
    own = f"etc/{service}.conf"
    names = []
    for place, call in enumerate(calls):
        aside = call["arguments"]["path"] not in (own, "etc")
        names.append("again" if call in calls[:place] else "aside" if aside else call["name"])
    wanted = {
        Habit.PLAIN: ["grep"],
        Habit.LOOK: ["list_dir", "grep"],
        Habit.READ: ["read_file", "grep"],
        Habit.REPEAT: ["read_file", "grep", "again"],
        Habit.CHECK: ["read_file", "grep", "aside"],
        Habit.ASIDE: ["grep", "aside"],
        Habit.THOROUGH: ["list_dir", "read_file", "grep", "again", "aside"],
    }
    assert names == wanted[habit]


def test_no_result_is_learned(many: list[Episode]) -> None:
    """The model says calls and answers; what the tools say is not its own."""
    assert not any("<tool_response>" in learned(episode) for episode in many)
