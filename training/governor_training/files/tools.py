"""The tools of the files: three that only read, and one with an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from governor_training.files.world import World

READ_ONLY = frozenset({"list_dir", "read_file", "grep"})
EFFECTFUL = frozenset({"write_file"})

SYSTEM = "Work in the files with the help of the tools."


def _schema(name: str, description: str, *parameters: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string"} for parameter in parameters},
                "required": list(parameters),
            },
        },
    }


TOOLS = (
    _schema("list_dir", "List the files of a directory.", "path"),
    _schema("read_file", "Read a whole file.", "path"),
    _schema("grep", "Search a file for lines and print their values.", "pattern", "path"),
    _schema("write_file", "Write a whole file.", "path", "text"),
)


class Toolbox:
    """The tools' implementation. `written` maps the paths that were written to what stands there now."""

    def __init__(self, world: World) -> None:
        self._files = world.files
        self.written: dict[str, str] = {}
        self._tools: Mapping[str, Callable[..., str]] = {
            "list_dir": self.list_dir,
            "read_file": self.read_file,
            "grep": self.grep,
            "write_file": self.write_file,
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The tool's result as text; a wrong call gives an error text, as a real tool would."""
        tool = self._tools.get(name)
        if tool is None:
            return f"error: there is no tool {name}"
        if not all(isinstance(argument, str) for argument in arguments.values()):
            return f"error: wrong arguments for {name}"
        try:
            return tool(**arguments)
        except TypeError:
            return f"error: wrong arguments for {name}"

    def list_dir(self, path: str) -> str:
        folder = path.strip("/") + "/"
        names = [name.removeprefix(folder) for name in self._paths() if name.startswith(folder)]
        return "\n".join(names) or "error: no such directory"

    def read_file(self, path: str) -> str:
        text = self.written.get(path, self._files.get(path))
        return "error: no such file" if text is None else text

    def grep(self, pattern: str, path: str) -> str:
        """What is set in the lines that contain `pattern`, as it stands: of `key=value` only the value."""
        text = self.written.get(path, self._files.get(path))
        if text is None:
            return "error: no such file"
        found = [line for line in text.split("\n") if pattern in line]
        return "\n".join(line.partition("=")[2] or line for line in found) or "no match"

    def write_file(self, path: str, text: str) -> str:
        self.written[path] = text
        return "written"

    def _paths(self) -> list[str]:
        return sorted({*self._files, *self.written})
