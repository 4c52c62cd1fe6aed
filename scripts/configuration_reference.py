"""The tables of docs/configuration.md: names, types, defaults and variables from the models of the settings,
meanings from the comments of governor.example.yaml, which explains every key already."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governor_server.cli import SERVE_FLAGS
from governor_server.settings import ENV_PREFIX, Settings
from scripts.pages import Page, table

EXAMPLE = Path(__file__).parents[1] / Settings.EXAMPLE

KEY = re.compile(r"( *)([a-z_]+):(?:.*? # (.*)| *[^#]*)$")
HIDDEN_KEY = re.compile(r"  # ([a-z_]+): (.*)$")
"""A key whose default depends on the machine stands in a comment, at the place of a key."""
COMMENT = re.compile(r" +# +(.*)$")

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
ANYTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: its name with dots, its type in words, and its default as YAML would have it."""

    name: str
    kind: str
    default: str

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper().replace(".", "__")

    @property
    def flag(self) -> str:
        """The flag of `governor serve`, "" where there is none."""
        flags = {".".join(place): flag for flag, place in SERVE_FLAGS.items() if flag != "engine_args"}
        return f"--{flags[self.name].replace('_', '-')}" if self.name in flags else ""


def settings() -> Iterator[Setting]:
    """All of them, in the order of the code."""
    schema = Settings.model_json_schema()
    yield from _settings(schema, schema["$defs"], Settings().model_dump(mode="json"), "")


def _settings(
    schema: Mapping[str, Any], known: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str
) -> Iterator[Setting]:
    for name, field in schema["properties"].items():
        if "$ref" in field:
            group = known[field["$ref"].rpartition("/")[2]]
            yield from _settings(group, known, defaults[name], f"{prefix}{name}.")
        else:
            # One that is made when the settings are depends on the machine; a list or a mapping does not.
            fixed = "default" in field or isinstance(defaults[name], dict | list)
            text = json.dumps(defaults[name], ensure_ascii=False)
            default = f"`{text}`" if fixed else "depends on the machine"
            yield Setting(f"{prefix}{name}", _kind(field, known), default)


def _kind(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The type in words, with its bounds."""
    if "anyOf" in field:
        return " or ".join(_kind(each, known) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        members = known[field["$ref"].rpartition("/")[2]]["properties"]
        return "mapping of " + ", ".join(f"`{name}`" for name in members)
    kind = str(field.get("type", "any value"))
    if kind == "array":
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])} strings"
        return f"list of {_kind(field.get('items', ANYTHING), known)}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_kind(values, known)}" if isinstance(values, Mapping) else "mapping"
    if "minimum" in field and "maximum" in field:
        return f"{kind} from {field['minimum']} to {field['maximum']}"
    bounds = " and ".join(f"{sign} {field[bound]:g}" for bound, sign in BOUNDS.items() if bound in field)
    return f"{kind} {bounds}".rstrip()


def meanings(text: str) -> dict[str, str]:
    """What the example says of each key, and of each section above its name."""
    found: dict[str, list[str]] = {}
    above: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        if not line or line.startswith("# "):
            above = [*above, line[2:]] if line else []
        elif hidden := HIDDEN_KEY.match(line):
            path = [path[0], hidden[1]]
            found[".".join(path)] = [hidden[2]]
        elif comment := COMMENT.match(line):
            found[".".join(path)].append(comment[1])
        elif key := KEY.match(line):
            path = [*path[: len(key[1]) // 2], key[2]]
            found[".".join(path)] = [*above, *([key[3]] if key[3] else [])]
            above = []
    return {name: " ".join(lines) for name, lines in found.items()}


def tables() -> dict[str, str]:
    """One part: a table for each section."""
    said = meanings(EXAMPLE.read_text("utf-8"))
    sections: dict[str, list[Setting]] = {}
    for setting in settings():
        sections.setdefault(setting.name.split(".")[0], []).append(setting)
    return {"settings": "\n\n".join(_section(name, found, said) for name, found in sections.items())}


def _section(name: str, found: list[Setting], said: Mapping[str, str]) -> str:
    rows = (
        (
            f"`{setting.name}`<br>`{setting.variable}`" + (f"<br>`{setting.flag}`" if setting.flag else ""),
            f"{setting.kind}<br>{setting.default}",
            _inherited(setting.name, said),
        )
        for setting in found
    )
    head = "setting, variable, flag | type, default | meaning"
    return f"## {name}\n\n{_escaped(said[name])}\n\n{table(head, rows)}"


def _inherited(name: str, said: Mapping[str, str]) -> str:
    """What is said of the group that a key is in holds for the key too."""
    parts = name.split(".")
    groups = [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
    return "; ".join(_escaped(said[group]) for group in groups if said.get(group))


def _escaped(text: str) -> str:
    """The comments are plain text: what Markdown or HTML would read in another way is code, and what names
    a page is a link to it. Code that is marked already stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _marked_up(part) for part in parts)


def _marked_up(text: str) -> str:
    text = re.sub(r"((?:- )?\{[^}]*\}|\[[^\]]*\]|<[^>]*>|\$?[\w.]*\w_[\w.]*\w)", r"`\1`", text)
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", text)


PAGE = Page("configuration.md", tables)
