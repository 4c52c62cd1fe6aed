"""A data set with a module of tools is an environment; what is wrong with one is told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor_training.dataset import (
    DatasetEnvironment,
    DatasetError,
    ToolModule,
    contains,
    exact,
    f1,
    load_module,
    load_rows,
    scorer,
)
from governor_training.environment import NotEnoughTasks, Split

TOOLS = '''
from typing import Annotated, Literal

READ_ONLY = ["search"]
REPLAYABLE = True
SYSTEM = "Be brief."
import json as _json

def search(query: Annotated[str, "what to look for"], limit: int = 3, kind: Literal["page", "all"] = "all",
           tags: list[str] | None = None) -> list[str]:
    """Find passages."""
    return [query] * limit

def remember(text: str) -> str:
    """Keep a text."""
    raise RuntimeError("full")

def _hidden(x: str) -> str:
    return x
'''


def tools(tmp_path: Path, text: str = TOOLS) -> ToolModule:
    path = tmp_path / "my_tools.py"
    path.write_text(text, "utf-8")
    return ToolModule(load_module(str(path)))


def dataset(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_tool_definitions_come_from_the_functions(tmp_path: Path) -> None:
    """Names, descriptions, types and what is required; private and imported functions are no tools."""
    module = tools(tmp_path)
    search, remember = (definition["function"] for definition in module.schemas)
    assert (search["name"], search["description"], remember["name"]) == (
        "search",
        "Find passages.",
        "remember",
    )
    assert search["parameters"] == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to look for"},
            "limit": {"type": "integer"},
            "kind": {"enum": ["page", "all"]},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["query"],
    }
    assert (set(module.read_only), set(module.effectful)) == ({"search"}, {"remember"})


def test_results_are_texts_and_failures_are_told(tmp_path: Path) -> None:
    """The model reads JSON of what is no string, and what went wrong."""
    module = tools(tmp_path)
    assert module.call("search", {"query": "x", "limit": 2}) == '["x", "x"]'
    assert module.call("remember", {"text": "x"}) == "error: RuntimeError: full"
    assert module.call("search", {}).startswith("error: TypeError")
    assert module.call("_hidden", {"x": "1"}).startswith("error: there is no tool")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("REPLAYABLE = True", "", "REPLAYABLE"),
        ('READ_ONLY = ["search"]', "", "READ_ONLY"),
        ('"search"]', '"serach"]', "did you mean search"),
        ("text: str", "text", "no type hint"),
        ("text: str", "text: set", "none that JSON has"),
        ('"""Keep a text."""', "", "no docstring"),
        ("def remember(text: str)", "async def remember(text: str)", "coroutine"),
        ("def remember(text: str)", "def remember(*text: str)", "a name of its own"),
        ("import json as _json", "import no_such_module", "cannot import"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """In one line that says what to change, and effects above all: they would be had many times."""
    with pytest.raises(DatasetError, match=message) as caught:
        tools(tmp_path, TOOLS.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([["a", "b"]], "line 1"),
        ([{"question": "a", "answer": "b"}, {"question": "c"}], "line 2"),
        ([{"question": "a", "answer": []}], '"answer"'),
        ([{"question": "a", "answer": "b"}] * 2, "twice"),
    ],
)
def test_a_bad_data_set_is_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    """With the line that is wrong."""
    with pytest.raises(DatasetError, match=message):
        load_rows(dataset(tmp_path, *rows))


def test_tasks_are_the_rows_of_one_split(tmp_path: Path) -> None:
    """The same for the same seed, never of both splits, and no more than there are."""
    rows = load_rows(dataset(tmp_path, *({"question": f"q{n}", "answer": n} for n in range(80))))
    environment = DatasetEnvironment("d", rows, tools(tmp_path), exact)
    seen = {task.id for task in environment.tasks(20, 1, Split.TRAIN)}
    held = environment.tasks(20, 1, Split.HELD_OUT)
    assert [task.id for task in held] == [task.id for task in environment.tasks(20, 1, Split.HELD_OUT)]
    assert not seen & {task.id for task in held}
    assert held[0].messages[0] == {"role": "system", "content": "Be brief."}
    with pytest.raises(NotEnoughTasks, match="asked for 81"):
        environment.tasks(81, 1, Split.TRAIN)


def test_the_best_of_several_answers_counts(tmp_path: Path) -> None:
    """And a scorer that leaves [0, 1] is told."""
    rows = load_rows(dataset(tmp_path, {"question": "q", "answer": ["Paris", "the city of light"]}))
    module = tools(tmp_path)
    environment = DatasetEnvironment("d", rows, module, exact)
    task = environment.tasks(1, 1, rows[0].split)[0]
    assert environment.score(task, "City of light!", module) == 1.0
    assert environment.score(task, "London", module) == 0.0
    with pytest.raises(DatasetError, match=r"in \[0, 1\]"):
        DatasetEnvironment("d", rows, module, lambda said, right: 2.0).score(task, "", module)


def test_scorers_on_known_cases() -> None:
    """SQuAD's normalisation; words, not letters."""
    assert exact("The Paris.", "paris") == 1.0
    assert contains("It is Paris, of course.", "Paris") == 1.0
    assert contains("Parisian", "Paris") == 0.0
    assert f1("the red car", "red bus") == pytest.approx(0.5)
    assert scorer("operator:eq")("a", "a") == 1
    with pytest.raises(DatasetError, match="no scorer"):
        scorer("f2")


@given(st.text(), st.text())
def test_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    """And 1 for what is exact."""
    assert f1(a, b) == f1(b, a)
    assert 0.0 <= f1(a, b) <= 1.0
    assert f1(a, a) == 1.0
