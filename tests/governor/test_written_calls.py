"""A call that is written as text is never taken for an answer, in the markup of any tool parser, whole or
cut; an ordinary answer is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.markup import LEAST_LETTERS, CallWatch, answer_part, reads_as_call
from governor.spans import Markup
from governor.tool_parsers import BY_NAME, REASONING_MARKERS, TOOL_PARSERS, parser_of
from tests.governor.ordinary_answers import ANSWERS, PLAIN_ANSWERS, PLAIN_TOOLS, TOOLS
from tests.governor.written_calls import WRITES

NAMES = (
    "get_weather",
    "lookup",
    "Search",
    "github.create_issue",
    "search-web",
    "mcp__fs__read",
    "wetter_für",
)
ARGUMENTS: tuple[Mapping[str, Any], ...] = (
    {"city": "Paris"},
    {"country": "Norway", "field": "capital"},
    {"query": 'a "quoted" <b> text, with (all) [kinds] {of} things'},
    {"n": 5, "deep": {"list": [1, 2]}},
    {"ort": "Köln\nam Rhein"},
)
BEFORE = ("", " ", "\n", "\t", "\n\n\t ", "Let me look that up.\n", "Sure: ", "I need it.\n\n```\n")

PARSERS = st.sampled_from(sorted(WRITES))
TOOL = st.sampled_from(NAMES)
GIVEN = st.sampled_from(ARGUMENTS)
TEXT_BEFORE = st.sampled_from(BEFORE)

SPECIAL = re.compile(r"<[|｜][^<>]*?[|｜]?>|\[[A-Z_]+\]|<\w+\|>")
"""What an engine strips where the markers are special tokens, as it does with `tool_choice: none`."""


def test_there_is_a_sample_for_every_parser_of_the_table() -> None:
    assert sorted(WRITES) == sorted(BY_NAME)
    assert len(BY_NAME) == len(TOOL_PARSERS)


def test_the_table_has_every_parser_of_the_engine_that_is_installed() -> None:
    """A new version of vLLM may come with a format that the governor would deliver as an answer."""
    engine = find_spec("vllm")
    if engine is None or engine.origin is None:
        pytest.skip("vLLM is not installed")
    assert registered(Path(engine.origin).parent / "tool_parsers" / "__init__.py") == set(BY_NAME)


def registered(source: Path) -> set[str]:
    """The names that a file registers, read without importing the engine, which takes half a minute."""
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_TOOL_PARSERS_TO_REGISTER":
            return set(ast.literal_eval(node.value))
    raise AssertionError("the parsers are registered in another way: read them anew")


@pytest.mark.parametrize("name", sorted(WRITES))
def test_every_sample_holds_the_markers_of_its_row(name: str) -> None:
    """The table and the samples were read from the same source, and say the same."""
    text, row = WRITES[name]("get_weather", {"city": "Paris"}), BY_NAME[name]
    assert row.bare or row.opening[0].replace(">", "") in text or any(mark in text for mark in row.opening)
    assert row.bare or row.closing in text or row.closing.removesuffix(">") in text


@pytest.mark.parametrize("parser", sorted(WRITES))
def test_a_written_call_is_no_answer(parser: str) -> None:
    """Whatever its tool and arguments, and whatever stands before it."""
    assert [text for text in written(parser) if not reads_as_call(text, NAMES)] == []


@pytest.mark.parametrize("parser", sorted(WRITES))
def test_nor_is_one_whose_special_tokens_were_stripped(parser: str) -> None:
    stripped = [SPECIAL.sub("", text) for text in written(parser)]
    assert [text for text in stripped if not reads_as_call(text, NAMES)] == []


@pytest.mark.parametrize("parser", sorted(WRITES))
def test_nor_is_one_that_was_cut(parser: str) -> None:
    """Anywhere behind the first characters of its markup."""
    for before, name in product(("", "\t", "Let me look that up.\n", "Sure: "), ("lookup", "mcp__fs__read")):
        text = WRITES[parser](name, ARGUMENTS[2])
        cuts = (before + text[:cut] for cut in range(least_cut(text, before), len(text)))
        assert [cut for cut in cuts if not reads_as_call(cut, NAMES)] == []


def written(parser: str) -> Iterator[str]:
    for before, name, arguments in product(BEFORE, NAMES, ARGUMENTS):
        yield before + WRITES[parser](name, arguments)


def least_cut(text: str, before: str) -> int:
    """How much of a call tells that it is one: of a marker two characters, or one where nothing else stands
    before it; of a word, some letters."""
    text = text.lstrip()
    if text[0].isalnum():
        return LEAST_LETTERS if not before.strip() else text.index("[") + 1
    return 1 if not before.strip() else 3 if text.startswith("`") else 2


@pytest.mark.parametrize("tool", NAMES)
@pytest.mark.parametrize(
    "form",
    ["{}(", "{}(city='Paris')", "[{}(", '{{"name": "{}"', "<{}>", "call:{}{{", "{}[", "functions.{}:0"],
)
@pytest.mark.parametrize("before", BEFORE)
def test_the_name_of_a_tool_beside_what_opens_its_arguments_is_a_call(
    tool: str, form: str, before: str
) -> None:
    assert reads_as_call(before + form.format(tool), NAMES)


@pytest.mark.parametrize(
    "text",
    [
        'Action: lookup\nAction Input: {"country": "Norway"}',
        "Tool: lookup",
        "{'name': 'lookup', 'arguments': {}}",
        '{"name": "unheard_of", "arguments": {"a": 1}}',
        '\t{"name": "lookup", "arguments": {}}',
        'I will.\n{"name": "unheard_of", "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "x"}}',
        "<|tool_of_next_year|>",
        "print(default_api.lookup(country='Norway'))",
        '```tool_code\nlookup(country="Norway")\n```',
        'I use `lookup`(country="Norway")',
        '**lookup**(country="Norway")',
        "'lookup'({'country': 'Norway'})",
        'get_weather ("Oslo")',
        "lookup",
        "lookup\nNorway\ncapital",
        "</tool_call>",
        '{"na',
        "```json",
        "`",
    ],
)
def test_other_spellings_are_calls_too(text: str) -> None:
    assert reads_as_call(text, NAMES)


def test_the_models_own_marker_counts() -> None:
    assert not reads_as_call("<<CALL>> it", ())
    assert reads_as_call("<<CALL>> it", (), Markup(call=("<<CALL>>", "")))


def test_ordinary_answers_are_answers() -> None:
    """Not one of them would be held against the model."""
    assert [text for text in ANSWERS if reads_as_call(text, TOOLS)] == []
    assert [text for text in PLAIN_ANSWERS if reads_as_call(text, PLAIN_TOOLS)] == []
    assert [text for text in ANSWERS if answer_part(text) is None] == []


def test_an_end_token_in_the_text_is_no_call() -> None:
    assert not reads_as_call("Oslo<|im_end|>\n", NAMES)


@pytest.mark.parametrize(("opening", "closing"), [(a, b) for a, b in REASONING_MARKERS])
def test_a_thought_that_does_not_end_is_no_answer(opening: str, closing: str) -> None:
    assert answer_part(f"{opening}\nOslo, I think") is None
    assert answer_part(f"Well. {opening}\nOslo, I think") is None
    assert answer_part(f"{opening}\nhm{closing}Oslo") == "Oslo"
    assert answer_part(f"hm{closing}Oslo") == "Oslo"


# A stream


@settings(max_examples=300, deadline=None)
@given(PARSERS, TOOL, GIVEN, TEXT_BEFORE, st.integers(1, 7))
def test_of_a_streamed_call_nothing_but_what_stood_before_it_goes_on(
    parser: str, name: str, arguments: Mapping[str, Any], before: str, size: int
) -> None:
    call = WRITES[parser](name, arguments)
    passed = streamed(before + call, NAMES, size)
    # The words that begin one format and any other sentence may pass; its arguments never do.
    assert passed in before or call.startswith(passed.removeprefix(before)) and len(passed) <= len(before) + 9
    assert name not in passed


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([text for text in ANSWERS if not set(text) & set("{[<`")]), st.integers(1, 9))
def test_of_an_ordinary_answer_all_but_its_last_words_streams(text: str, size: int) -> None:
    assert len(streamed(text, TOOLS, size)) >= len(text) - 40


def streamed(text: str, tools: tuple[str, ...], size: int) -> str:
    """What a client has of an answer before it is known to be one."""
    watch, passed = CallWatch(tools, Markup()), ""
    for stop in [*range(size, len(text), size), len(text)]:
        if not watch.holds(text[:stop]):
            passed = text[:stop]
    return passed


@pytest.mark.parametrize("name", sorted(WRITES))
def test_the_parser_of_a_text_reads_its_markers(name: str) -> None:
    """What the doctor advises; several read the same ones."""
    found = parser_of(WRITES[name]("lookup", {"city": "Paris"}))
    if found is not None:
        assert found.opening[0] in WRITES[name]("lookup", {"city": "Paris"}) or found.name == name


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "mistral", "kimi_k2", "llama3_json", "seed_oss"])
def test_of_parsers_that_read_the_same_the_common_one_is_found(name: str) -> None:
    assert parser_of(WRITES[name]("lookup", {"city": "Paris"})) is BY_NAME[name]
    assert parser_of("Oslo") is None
