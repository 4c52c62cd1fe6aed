"""The files: a tree that says what it says, tasks that are split by their text, and a score of what was
written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor_training.environment import Environment, NotEnoughTasks, Split, Task
from governor_training.files.edits import WORDINGS, Edit, edits
from governor_training.files.environment import FilesEnvironment
from governor_training.files.tools import TOOLS, Toolbox
from governor_training.files.world import (
    DIRECTORY,
    FILE_LINES,
    KEYS,
    OTHER_FILES,
    OTHER_KEYS,
    SERVICES,
    load_world,
    path_of,
    values,
)

WORLD = load_world()
FILES: Environment = FilesEnvironment()


def parsed(text: str) -> dict[str, str]:
    return dict(row.split("=") for row in text.split("\n"))


def test_every_setting_stands_in_the_file_of_its_service() -> None:
    """What is believed to be true is what can be read."""
    assert len(WORLD.settings) == len(SERVICES) * len(KEYS)
    for (service, key), setting in WORLD.settings.items():
        assert parsed(WORLD.files[path_of(service)])[key] == setting.value
        assert setting.value in values(key)
        assert not setting.known or setting.belief == setting.value


def test_results_are_long() -> None:
    """Against the one line that matters, so that pruning has something to do."""
    assert all(text.count("\n") + 1 == FILE_LINES for text in WORLD.files.values())
    assert Toolbox(WORLD).list_dir(DIRECTORY).count("\n") + 1 == len(SERVICES) + len(OTHER_FILES)


def test_other_files_say_nothing_that_a_task_asks_for() -> None:
    """A read of one of them is never needed."""
    assert not set(KEYS) & set(OTHER_KEYS)
    for name in OTHER_FILES:
        assert set(parsed(WORLD.files[path_of(name)])) == set(OTHER_KEYS)


def test_better_known_services_are_known_better() -> None:
    """Both kinds are there, and fame says which is likelier."""
    names = list(SERVICES)
    known = Counter(service for (service, _), setting in WORLD.settings.items() if setting.known)
    assert sum(known[name] for name in names[:5]) == 5 * len(KEYS)
    assert sum(known[name] for name in names[15:]) < len(KEYS)
    unknown = sum(setting.belief is None for setting in WORLD.settings.values())
    assert unknown > 0.3 * len(WORLD.settings)


def test_no_task_is_in_both_splits() -> None:
    """What is held out was never seen, and there is enough of both."""
    texts = {split: [edit.text for edit in edits(split)] for split in Split}
    assert not set(texts[Split.TRAIN]) & set(texts[Split.HELD_OUT])
    assert len(texts[Split.HELD_OUT]) >= 600
    assert len(texts[Split.TRAIN]) >= 2000
    assert {edit.wording for edit in edits(Split.HELD_OUT)} == set(WORDINGS)


@pytest.mark.parametrize("split", list(Split))
def test_the_same_seed_gives_the_same_tasks(split: Split) -> None:
    """Another one gives others; no task comes twice, and all are of the split."""
    tasks = FILES.tasks(50, 3, split)
    assert [task.id for task in tasks] == [task.id for task in FILES.tasks(50, 3, split)]
    assert [task.id for task in tasks] != [task.id for task in FILES.tasks(50, 4, split)]
    assert len({task.id for task in tasks}) == 50
    assert all(task.data.split is split and task.text == task.data.text for task in tasks)


def test_too_many_tasks_are_refused() -> None:
    """Rather than given twice."""
    with pytest.raises(NotEnoughTasks, match="files have"):
        FILES.tasks(10**6, 1, Split.HELD_OUT)


def task() -> Task:
    return FILES.tasks(1, 5, Split.HELD_OUT)[0]


def wanted(edit: Edit) -> dict[str, str]:
    value = WORLD.setting(edit.service, edit.key).value
    return {"path": edit.target, "text": edit.written(value)}


@pytest.mark.parametrize(
    ("writes", "score"),
    [
        ([], 0.0),
        ([{}], 1.0),
        ([{}, {}], 1.0),
        ([{"text": "port=1"}], 0.0),
        ([{"text": "port=1"}, {}], 1.0),
        ([{}, {"path": "other.txt"}], 0.0),
        ([{"path": "etc/Redis.conf"}], 0.0),
    ],
)
def test_the_score_is_the_end_state_of_the_tree(writes: list[Mapping[str, str]], score: float) -> None:
    """Nothing but the wanted write counts, in whatever order it came, and words do not."""
    one = task()
    toolbox = FILES.toolbox(one)
    for change in writes:
        assert toolbox.call("write_file", {**wanted(one.data), **change}) == "written"
    assert FILES.score(one, "whatever the agent says", toolbox) == score


def test_what_was_written_can_be_read() -> None:
    """The tree has a state."""
    toolbox = Toolbox(WORLD)
    toolbox.write_file("etc/new.conf", "port=1\ndepth=2")
    assert toolbox.read_file("etc/new.conf") == "port=1\ndepth=2"
    assert toolbox.grep("dep", "etc/new.conf") == "2"
    assert "new.conf" in toolbox.list_dir("etc").split("\n")
    assert "new.conf" not in Toolbox(WORLD).list_dir("etc")


def test_grep_gives_the_value_alone() -> None:
    """Of any setting, in one call: no other line of the file has the key in it."""
    toolbox = Toolbox(WORLD)
    for (service, key), setting in WORLD.settings.items():
        assert toolbox.grep(key, path_of(service)) == setting.value


def test_grep_gives_whole_a_line_that_sets_nothing() -> None:
    """Any text can be searched, and what is not there is not found."""
    toolbox = Toolbox(WORLD)
    toolbox.write_file("out/new.txt", "a plain line\nport=1\nreport=2")
    assert toolbox.grep("plain", "out/new.txt") == "a plain line"
    assert toolbox.grep("port", "out/new.txt") == "1\n2"
    assert toolbox.grep("depth", "out/new.txt") == "no match"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_file", {"path": "etc/none.conf"}),
        ("list_dir", {"path": "var"}),
        ("grep", {"pattern": "port", "path": "none"}),
        ("read_file", {}),
        ("read_file", {"path": 3}),
        ("write_file", {"path": "out/summary.txt", "text": ["port=1"]}),
        ("remove_file", {"path": "out/summary.txt"}),
    ],
)
def test_wrong_calls_give_an_error_text(name: str, arguments: dict[str, Any]) -> None:
    """As a real tool would; and nothing is written."""
    toolbox = Toolbox(WORLD)
    assert toolbox.call(name, arguments).startswith("error: ")
    assert not toolbox.written


arguments = st.dictionaries(
    st.sampled_from(["path", "text", "pattern", "x"]),
    st.one_of(st.text(), st.none(), st.integers(), st.sampled_from(sorted(WORLD.files))),
)
calls = st.tuples(st.sampled_from([*(tool["function"]["name"] for tool in TOOLS), "rm"]), arguments)


@given(st.lists(calls, max_size=8))
def test_the_same_calls_give_the_same_results(made: list[tuple[str, dict[str, Any]]]) -> None:
    """A run can be replayed, whatever the model called, and reading changes nothing."""
    one, two = Toolbox(WORLD), Toolbox(WORLD)
    for name, given_arguments in made:
        before = dict(one.written)
        assert one.call(name, given_arguments) == two.call(name, given_arguments)
        if name in FILES.read_only:
            assert one.written == before
    assert one.written == two.written


def test_every_tool_either_reads_or_writes() -> None:
    """The environment's names are those of the tools that a task offers."""
    names = {tool["function"]["name"] for tool in task().tools}
    assert names == FILES.read_only | FILES.effectful
    assert not FILES.read_only & FILES.effectful
    json.dumps(task().tools)
