"""Results of tools with their true outcomes, in two parts; see README.md for where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
COLLECTIONS: Final = (("development", "held_out"), ("commands_development", "commands_held_out"))
"""Each collection in its two parts."""
PARTS: Final = tuple(part for parts in COLLECTIONS for part in parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """One result.

    `outcome` is `ok`, `empty`, `failed`, `transient` or `unfinished`. `content` and `fields` are those of the
    tool message. `family` is the same for the same event in several wrappings. `how`: `run` (produced by
    running the source), `recorded` (from a public recording) or `written` (by hand, in the source's format).
    """

    group: str
    outcome: str
    family: str
    how: str
    source: str
    content: Any
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> dict[str, Any]:
        """As the client sends it."""
        return {"role": "tool", "tool_call_id": "call_1", "content": self.content, **self.fields}


def read(part: str) -> list[Entry]:
    """The entries of a part."""
    lines = (HERE / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Entry(**json.loads(line)) for line in lines]


def held_out_families(entries: Iterable[Entry]) -> set[str]:
    """The rule of the split: of each group and outcome every third family, in the order of the digests."""
    families: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        families.setdefault((entry.group, entry.outcome), set()).add(entry.family)
    return {family for found in families.values() for family in sorted(found)[::3]}
