"""Whether a text that should be an answer is a tool call, or part of one, or a thought.

A model that may not call tools often writes the call all the same: in its own markup, in another model's, or,
where the markup is banned or the engine strips it as special tokens, the bare body. No client must read that
as an answer. The opposite mistake is cheap: the call that was to be withheld passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Final

from governor.spans import Markup
from governor.tool_parsers import REASONING_MARKERS, TOOL_PARSERS

_MARKERS: Final = tuple(
    dict.fromkeys(
        marker
        for parser in TOOL_PARSERS
        for marker in (*parser.opening, parser.closing)
        if len(marker) > 1  # one bracket, which closes a list of any kind, says nothing
    )
)

_BRACKET: Final = re.compile(r"[<\[\]=]")
"""Every marker has one of these, and most prose has none."""

_THOUGHTS: Final = tuple(opening for opening, _ in REASONING_MARKERS if not opening[0].isalpha())


@lru_cache(maxsize=8)
def _beginnings(markers: tuple[str, ...]) -> frozenset[str]:
    """What markers that are not words begin with, from two characters on."""
    return frozenset(
        marker[:length] for marker in markers if not marker[0].isalnum() for length in range(2, len(marker))
    )


_BEGUN: Final = _beginnings((*_MARKERS, *_THOUGHTS))
_LONGEST: Final = max(map(len, _BEGUN))

_SPECIAL: Final = re.compile(
    r"""
      <[|｜][^<>|｜\s]{1,60}[|｜]?>            # <|channel|>, <|tool_call>, <｜tool▁sep｜>
    | <[a-z_]{1,40}\|>                       # <tool_call|>
    | </?｜DSML
    | </?(?:tool_calls?|tool_sep|arg_key|arg_value|think):[^\s<>]{1,40}>   # with a suffix of the checkpoint
    """,
    re.VERBOSE,
)
"""What looks like a special token of a chat template, known or not."""

_CALL_KEY: Final = re.compile(
    r"""
    \{\s*"(?:
        (?:name|function|function_name|tool|tool_name|tool_call_id|arguments|parameters|args)"\s*:
      | type"\s*:\s*"(?:function|tool_call|tool_use)"
    )
    """,
    re.VERBOSE,
)
_ARGUMENTS: Final = ("arguments", "parameters", "function")

_OPEN_END: Final = re.compile(
    r"""
      (?: [\[{]\s*["']?[\w.-]*["']?         # {"na
        | <(?:[|｜/]|\w+:)[^<>\s]{0,60}     # <|tool_ca
        | ^(?:```\w*\s*)?(?:[<\[{]+|\])      # nothing but the beginning of something
      )\Z
    """,
    re.VERBOSE,
)
"""How a text ends that was cut inside the first words of an object, a list or a block."""

_BLOCK: Final = re.compile(r"\s*(?:```\w*\s*)?(?=\[?\s*\{\s*\")")
"""What may stand before an object or a list of objects that is the whole text."""

LEAST_LETTERS: Final = 4
"""Fewer letters of a name than that may begin any other word."""

WINDOW: Final = 512
"""Characters at the end of a stream that are looked at for a call; longer than what identifies any."""


def reads_as_call(
    text: str, tools: Collection[str] = (), markup: Markup | None = None, *, ended: bool = True
) -> bool:
    """Whether `text`, the answer of a model that was offered `tools`, is a call or holds one, whole or cut
    anywhere behind its first letters. `markup`: what this model is known to write. `ended` False: more was to
    come, so that what only begins like a call need not be one.

    A marker of any known model is one; so is a JSON object with the keys of a call, and the name of an
    offered tool beside what opens its arguments (`(`, `{`, `[`, `"`, `<`, `:`).
    """
    text = _without_ends(text, markup).strip()
    return _holds_call(text, tools, markup) or (ended and _ends_in_call(text, tools, markup))


def _holds_call(text: str, tools: Collection[str], markup: Markup | None) -> bool:
    """Whether enough of a call is there to tell it by."""
    return (
        any(marker in text for marker in _own(markup))
        or (_BRACKET.search(text) is not None and any(marker in text for marker in _MARKERS))
        or _SPECIAL.search(text) is not None
        or any(_is_call_object(text, found) for found in _CALL_KEY.finditer(text))
        or _names_tool(text, tools)
    )


def _ends_in_call(text: str, tools: Collection[str], markup: Markup | None) -> bool:
    """Whether the end of the text is the beginning of a call, if nothing follows it."""
    return (
        _ends_in_marker(text, _own(markup))
        or _OPEN_END.search(text) is not None
        or _opens_fence(text)
        or _is_broken_block(text)
        or _ends_in_name(text, _spelled(tools))
    )


def _own(markup: Markup | None) -> tuple[str, ...]:
    return tuple(marker for marker in (markup.call if markup else ()) if marker)


def answer_part(text: str, markup: Markup | None = None) -> str | None:
    """`text` after the thoughts in it; None where a thought does not end, so that there is no answer."""
    rest = text
    for opening, closing in (*((markup.reasoning,) if markup else ()), *REASONING_MARKERS):
        if not opening or not closing:
            continue
        before, closed, after = rest.rpartition(closing)
        if opening in after:
            return None
        rest = after if closed else rest
    return rest


class CallWatch:
    """Watches an answer while it streams, so that no part of a call goes on. `from_start`: nothing goes on
    before there is text."""

    def __init__(self, tools: Collection[str], markup: Markup, *, from_start: bool = False) -> None:
        self._tools, self._markup, self._from_start = tools, markup, from_start
        self._found = False

    def holds(self, text: str) -> bool:
        """Whether `text`, all that came so far, holds a call or may become one. Once it holds one, it does so
        to the end."""
        begins = text.lstrip()[:1]
        tail = text[-WINDOW:]
        self._found = (
            self._found
            or begins in _BEGINNINGS
            or answer_part(tail, self._markup) is None
            or _holds_call(tail, self._tools, self._markup)
        )
        if self._found or not begins:
            return bool(text) or self._from_start
        return _ends_in_call(tail, self._tools, self._markup) or _may_become_call(tail, self._tools)


_BEGINNINGS: Final = tuple("{[<`]")


def _without_ends(text: str, markup: Markup | None) -> str:
    """`text` without the tokens that end a turn, which some servers leave in it."""
    ends = (markup or Markup()).ends
    stripped = text.rstrip()
    while end := next((end for end in ends if end and stripped.endswith(end)), ""):
        stripped = stripped.removesuffix(end).rstrip()
    return stripped


def _ends_in_marker(text: str, own: tuple[str, ...]) -> bool:
    """Whether `text` ends in the beginning of a marker: at least two characters of it, or one where there is
    nothing else. Before a marker that is a word there may be nothing, and it takes as many letters as a
    name."""
    least = LEAST_LETTERS if text[:1].isalnum() else 1
    if least <= len(text) <= _LONGEST and any(
        marker.startswith(text) for marker in (*own, *_MARKERS, *_THOUGHTS)
    ):
        return True
    tails = [text[-length:] for length in range(2, min(len(text), _LONGEST) + 1)]
    return any(tail in _BEGUN for tail in tails) or any(tail in _beginnings(own) for tail in tails if own)


def _opens_fence(text: str) -> bool:
    """Whether the text ends with what opens a block of code."""
    ticks = text.rstrip("abcdefghijklmnopqrstuvwxyz_")
    alone = ticks.rpartition("\n")[2].strip() in ("`", "``")
    return alone or (ticks.endswith("```") and text.count("```") % 2 == 1)


def _is_broken_block(text: str) -> bool:
    """Whether the text is an object, or a list of objects, that does not end."""
    found = _BLOCK.match(text)
    if found is None:
        return False
    return _decoded(text, found.end()) is None


def _is_call_object(text: str, found: re.Match[str]) -> bool:
    """Whether the object that begins at `found` is a call: it has arguments, or was cut."""
    fields = _decoded(text, found.start())
    if not isinstance(fields, dict):
        return True
    return any(isinstance(fields.get(key), dict | str) for key in _ARGUMENTS)


def _decoded(text: str, start: int) -> object:
    """The JSON at `start`; None if there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _spelled(tools: Collection[str]) -> tuple[str, ...]:
    """The names, and as JSON has them where it writes them in ASCII."""
    return _all_spellings(tuple(tools))


@lru_cache(maxsize=64)
def _all_spellings(tools: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({spelled for name in tools if name for spelled in (name, json.dumps(name)[1:-1])}))


def _names_tool(text: str, tools: Collection[str]) -> bool:
    names = _spelled(tools)
    return any(name in text for name in names) and any(pattern.search(text) for pattern in _patterns(names))


@lru_cache(maxsize=64)
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """How a call of one of the tools looks, by what stands before or after its name."""
    name = _one_of(names)
    found = [
        rf"(?:(?<!\w)|(?<=function)){name}"
        r"(?=[(<\[{]|:\d|\W{0,8}(?:json)?\W{0,8}\{|\s*<[/|｜A-Za-z])",
        rf"[\"<\[{{=>:](?:[\w.]+\.)?{name}(?!\w)",
        rf"(?i:\b(?:action|tool|function|call|name|invoke)\w*)[\"']?\s*[:=]\W{{0,6}}{name}(?!\w)",
        rf"(?m:^)[ \t]*{name}[ \t]*(?m:$)",
        rf"(?<!\w){name}[\"'`*]{{1,3}}[(\[{{]",
    ]
    if compound := tuple(name for name in names if not name.isalpha()):
        found.append(rf"(?<!\w){_one_of(compound)}[ \t]+\(")
        found.append(rf"(?m:^)[ \t]*{_one_of(compound)}(?=\w)")
    return tuple(re.compile(pattern) for pattern in found)


def _one_of(names: Sequence[str]) -> str:
    return "(?:" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")"


def _ends_in_name(text: str, names: tuple[str, ...]) -> bool:
    """Whether the text ends in a part of a tool's name, where a call would have it: at the beginning of a
    line, or behind what opens a call."""
    return any(
        place == 0 or text[place - 1] in "\n\"'<[{=>:(" or text.endswith(_NAMESPACES, 0, place)
        for place in _places_of_beginning(text, names, LEAST_LETTERS)
    )


_NAMESPACES: Final = ("functions.", "tools.", "default_api.")


def _may_become_call(text: str, tools: Collection[str]) -> bool:
    """Whether a text that goes on ends in what may begin a call: a part of a tool's name, or a name before
    anything that is not a word."""
    names = _spelled(tools)
    return (
        text.rstrip().endswith(tuple("<[{(\"'`=:|>"))
        or any(place == 0 or not text[place - 1].isalnum() for place in _places_of_beginning(text, names, 1))
        or bool(names and _unfinished(names).search(text))
    )


@lru_cache(maxsize=64)
def _unfinished(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"{_one_of(names)}\W{{0,8}}(?:json)?\W{{0,8}}\Z")


def _places_of_beginning(text: str, names: tuple[str, ...], least: int) -> Iterator[int]:
    """Where the end of `text` begins that is the beginning of a name, of at least so many characters."""
    beginnings = _beginnings_of_names(names)
    for length in range(least, max(map(len, names), default=0)):
        if text[-length:] in beginnings:
            yield max(len(text) - length, 0)


@lru_cache(maxsize=64)
def _beginnings_of_names(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name[:length] for name in names for length in range(1, len(name)))
