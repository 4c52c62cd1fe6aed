"""Tool calls, what makes two of them the same, and which of them may be withheld."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from governor.results import Patterns


@dataclass(frozen=True, slots=True)
class CallSignature:
    """Two calls with equal signatures ask the same thing of the same tool."""

    name: str
    canonical_arguments: str

    def __str__(self) -> str:
        return f"{self.name}({self.canonical_arguments})"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call proposed by the model; `arguments` is the text as the model wrote it, `index` its place in
    the message."""

    id: str
    index: int
    name: str
    arguments: str

    @property
    def signature(self) -> CallSignature:
        return CallSignature(self.name, canonical_arguments(self.arguments))


def canonical_arguments(arguments: str) -> str:
    """JSON with sorted keys and no whitespace; the stripped text where it does not parse.

    No arguments at all are the empty object. `1` and `1.0` stay apart, as do strings that differ in case or
    spacing: a tool may tell them apart, and a call wrongly taken for a repeat costs more than a repeat not
    seen.
    """
    # The whole history is read with every request, and most of its calls are the same as last time.
    return _canonical(arguments) if len(arguments) <= _SHORT else _canonical.__wrapped__(arguments)


_SHORT: Final = 1024
"""Characters of arguments that are worth remembering."""


@lru_cache(maxsize=4096)
def _canonical(arguments: str) -> str:
    text = arguments.strip()
    try:
        return json.dumps(json.loads(text or "{}"), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


def digest(text: str) -> str:
    """What stands for a text that is not kept, in 64 characters; any text, lone surrogates included."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ToolEffect(StrEnum):
    """What executing a tool may do to the world. Only read-only calls are ever withheld."""

    READ_ONLY = "read_only"
    EFFECTFUL = "effectful"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ToolCatalog:
    """Which tools are read-only, which have effects, and which change their answers by themselves.

    All three are case-sensitive `fnmatch` patterns over tool names. A tool that matches both of the first is
    effectful, and one that matches neither is unknown: a mistake in the configuration can only make the
    governor withhold less.

    `learned_volatile` are tools that were seen to change their answers; `failures` are further patterns of
    the beginnings of failed results.
    """

    read_only: tuple[str, ...] = ()
    effectful: tuple[str, ...] = ()
    hinted_read_only: frozenset[str] = frozenset()
    hinted_effectful: frozenset[str] = frozenset()
    volatile: tuple[str, ...] = ()
    learned_volatile: frozenset[str] = frozenset()
    failures: Patterns = ()

    def effect(self, name: str) -> ToolEffect:
        """The effect of the tool `name`."""
        if name in self.hinted_effectful or _matches(name, self.effectful):
            return ToolEffect.EFFECTFUL
        if name in self.hinted_read_only or _matches(name, self.read_only):
            return ToolEffect.READ_ONLY
        return ToolEffect.UNKNOWN

    def is_volatile(self, name: str) -> bool:
        """Whether the same call of the tool `name` may well give another answer."""
        return name in self.learned_volatile or _matches(name, self.volatile)

    def with_volatile(self, names: Iterable[str]) -> ToolCatalog:
        """This catalog, with further tools that were seen to change their answers."""
        more = frozenset(names) - self.learned_volatile
        return replace(self, learned_volatile=self.learned_volatile | more) if more else self

    def with_tools(self, tools: Iterable[Any]) -> ToolCatalog:
        """This catalog and the MCP annotations (`readOnlyHint`, `destructiveHint`) of a request's `tools`.

        `annotations` is read from the tool and from its `function`; anything of another shape says nothing.
        """
        read_only = set(self.hinted_read_only)
        effectful = set(self.hinted_effectful)
        for tool in tools:
            for name, hints in _annotations(tool):
                if hints.get("readOnlyHint") is False or hints.get("destructiveHint") is True:
                    effectful.add(name)
                elif hints.get("readOnlyHint") is True:
                    read_only.add(name)
        return replace(self, hinted_read_only=frozenset(read_only), hinted_effectful=frozenset(effectful))


def tool_names(tools: Iterable[Any]) -> tuple[str, ...]:
    """The names of a request's `tools`, in their order; a tool without a readable name has the name ""."""
    return tuple(_name(tool) for tool in tools)


def schemas_of(tools: Iterable[Any]) -> dict[str, str]:
    """For each named tool a fingerprint of its description: what was learned of a tool holds for that
    description only."""
    return {name: _fingerprint(tool) for tool in tools if (name := _name(tool))}


def _fingerprint(tool: object) -> str:
    text = json.dumps(tool, sort_keys=True, default=str)
    return digest(text)[:16]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _name(tool: object) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _annotations(tool: object) -> Iterable[tuple[str, Mapping[str, object]]]:
    name = _name(tool)
    if not name or not isinstance(tool, Mapping):
        return
    for place in (tool, tool["function"]):
        annotations = place.get("annotations")
        if isinstance(annotations, Mapping):
            yield name, annotations
