"""The tools of the atlas: two that only read, and one with an effect."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from governor_training.atlas.world import FIELDS, KEY_FIELDS, World

READ_ONLY = ("lookup", "find_country")
EFFECTFUL = ("save_note",)

FAILED = "error: timed out"
"""What a flaky tool says instead of a result; the same call may succeed next time."""
FAILURES = 0.4
"""Share of the lookups that fail with one."""


def _schema(name: str, description: str, **parameters: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": kind} for parameter, kind in parameters.items()},
                "required": list(parameters),
            },
        },
    }


LOOKUP = _schema("lookup", "Read one field of a country.", country="string", field="string")
FIND_COUNTRY = _schema("find_country", "Find the country that has a value.", field="string", value="string")
SAVE_NOTE = _schema("save_note", "Write a note.", text="string")

ANSWERING = (LOOKUP, FIND_COUNTRY)
"""The tools of an agent that only answers."""
SAVING = (LOOKUP, FIND_COUNTRY, SAVE_NOTE)
"""The tools of an agent that also saves what it found."""


class Toolbox:
    """The tools' implementation, with the notes that were saved through it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.notes: list[str] = []
        self._tools: Mapping[str, Callable[..., str]] = {
            "lookup": self.lookup,
            "find_country": self.find_country,
            "save_note": self.save_note,
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The tool's result as text; a wrong call gives an error text, as a real tool would."""
        tool = self._tools.get(name)
        if tool is None:
            return f"error: there is no tool {name}"
        try:
            return tool(**arguments)
        except TypeError:
            return f"error: wrong arguments for {name}"

    def lookup(self, country: str, field: str) -> str:
        if country not in self._world.countries or field not in FIELDS:
            return "error: not found"
        return self._world.fact(country, field).value

    def find_country(self, field: str, value: str) -> str:
        if field not in KEY_FIELDS:
            return "error: not found"
        return self._world.find(field, value) or "error: not found"

    def save_note(self, text: str) -> str:
        self.notes.append(text)
        return "saved"


class FlakyToolbox(Toolbox):
    """Lookups fail by lot. The lot is that of the question and of how many lookups there were, so that
    everybody who asks the same thing has the same luck."""

    def __init__(self, world: World, question: str) -> None:
        super().__init__(world)
        self._question, self._lookups = question, 0

    def lookup(self, country: str, field: str) -> str:
        self._lookups += 1
        lot = random.Random(f"{self._question}/{self._lookups}").random()
        return FAILED if lot < FAILURES else super().lookup(country, field)
