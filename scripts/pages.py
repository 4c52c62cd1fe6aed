"""Pages of the documentation with parts that are written from the code, between markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True, slots=True)
class Page:
    """A page in docs/. `parts` gives the text between `<!-- name -->` and `<!-- /name -->`, by name."""

    name: str
    parts: Callable[[], Mapping[str, str]]

    @property
    def path(self) -> Path:
        return DOCS / self.name

    def written(self, text: str) -> str:
        """`text` with its parts made anew. Raises ValueError where a marker does not stand there once."""
        for name, part in self.parts().items():
            block = f"<!-- {name} -->\n{part}\n<!-- /{name} -->"
            # A backslash in the part is one.
            pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
            text, count = re.subn(pattern, block.replace("\\", r"\\"), text, flags=re.DOTALL)
            if count != 1:
                raise ValueError(
                    f"docs/{self.name} needs the marker <!-- {name} --> once, and has it {count} times"
                )
        return text


def table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; the headings stand between bars."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
