"""What makes two calls the same, and which may be withheld."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolCatalog, ToolEffect, canonical_arguments, tool_names

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_values = (
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


def tool(name: str, **annotations: object) -> dict[str, Any]:
    """A tool of a request with annotations in its function."""
    return {"type": "function", "function": {"name": name, "annotations": annotations}}


def signature(arguments: str, name: str = "lookup") -> str:
    """The signature of a call with these arguments, as text."""
    return str(ToolCall("call_1", 0, name, arguments).signature)


@given(json_objects, st.none() | st.integers(0, 4))
def test_order_of_keys_and_whitespace_do_not_matter(value: dict[str, Any], indent: int | None) -> None:
    """The same JSON value has the same signature however it is written."""
    backwards = dict(reversed(value.items()))
    assert signature(json.dumps(backwards, indent=indent)) == signature(json.dumps(value, ensure_ascii=False))


@given(json_values, json_values)
def test_different_values_have_different_signatures(left: Any, right: Any) -> None:
    """A call is never taken for another one."""
    if json.dumps(left, sort_keys=True) != json.dumps(right, sort_keys=True):
        assert signature(json.dumps(left)) != signature(json.dumps(right))


@given(st.text())
def test_canonical_arguments_are_a_fixed_point(arguments: str) -> None:
    """Canonical twice is canonical once, also for text that is no JSON."""
    once = canonical_arguments(arguments)
    assert canonical_arguments(once) == once


def test_the_name_is_part_of_the_signature() -> None:
    """Two tools may take the same arguments."""
    assert signature('{"a": 1}') == 'lookup({"a":1})'
    assert signature("{}", "lookup") != signature("{}", "search")


def test_no_arguments_are_the_empty_object() -> None:
    """Some engines send an empty string."""
    assert signature("") == signature(" {} ")


@pytest.mark.parametrize("arguments", ['{"a": ', "Oslo", "[" * 100_000, "9" * 5_000])
def test_arguments_that_do_not_parse_are_taken_as_text(arguments: str) -> None:
    """Malformed, too deep or too long a number: the text itself tells calls apart."""
    assert canonical_arguments(f" {arguments}\n") == arguments.strip()


def test_effectful_wins() -> None:
    """A tool that is named as both is never withheld."""
    catalog = ToolCatalog(read_only=("get_*", "*_all"), effectful=("delete_*",))
    assert catalog.effect("get_price") is ToolEffect.READ_ONLY
    assert catalog.effect("delete_all") is ToolEffect.EFFECTFUL
    assert catalog.effect("send") is ToolEffect.UNKNOWN


def test_patterns_tell_case_apart() -> None:
    """Two tools may differ in nothing else."""
    assert ToolCatalog(read_only=("get_*",)).effect("GET_price") is ToolEffect.UNKNOWN


def test_annotations_add_to_the_configuration() -> None:
    """`readOnlyHint` is read from the tool and from its function."""
    outside = {"type": "function", "function": {"name": "find"}, "annotations": {"readOnlyHint": True}}
    catalog = ToolCatalog(read_only=("get_*",)).with_tools([tool("lookup", readOnlyHint=True), outside])
    assert [catalog.effect(name) for name in ("lookup", "find", "get_x")] == [ToolEffect.READ_ONLY] * 3


@pytest.mark.parametrize(
    "annotations",
    [{"readOnlyHint": False}, {"destructiveHint": True}, {"readOnlyHint": True, "destructiveHint": True}],
)
def test_an_annotation_of_an_effect_beats_a_pattern(annotations: dict[str, bool]) -> None:
    """Whoever wrote the tool knows better than a wildcard; a contradiction counts as an effect."""
    catalog = ToolCatalog(read_only=("*",)).with_tools([tool("lookup", **annotations)])
    assert catalog.effect("lookup") is ToolEffect.EFFECTFUL


def test_a_tool_declared_twice_is_what_its_worse_declaration_says() -> None:
    """The order of the declarations does not matter."""
    declared = [tool("lookup", readOnlyHint=True), tool("lookup", readOnlyHint=False)]
    for tools in (declared, declared[::-1]):
        assert ToolCatalog().with_tools(tools).effect("lookup") is ToolEffect.EFFECTFUL


@pytest.mark.parametrize("hint", [1, "true", None, {}])
def test_a_hint_that_is_no_boolean_says_nothing(hint: object) -> None:
    """A promise has to be made clearly."""
    assert (
        ToolCatalog().with_tools([tool("lookup", readOnlyHint=hint)]).effect("lookup") is ToolEffect.UNKNOWN
    )


def test_malformed_tools_say_nothing() -> None:
    """Upstream judges the request, not the governor."""
    tools = [None, "x", {}, {"function": "x"}, {"function": {"name": 1}}, {"function": {"name": "a"}}]
    assert ToolCatalog().with_tools(tools) == ToolCatalog()
    assert tool_names(tools) == ("", "", "", "", "", "a")
