"""The table of docs/markup.md: how the models of each tool parser write a call."""

from __future__ import annotations

from governor.tool_parsers import REASONING_MARKERS, TOOL_PARSERS, ToolParser
from scripts.pages import Page, table

COLUMNS = ("`--tool-call-parser`", "opens a call", "closes it", "one token", "JSON arguments", "also without")


def tables() -> dict[str, str]:
    """The generated parts of the page, by the names of their markers."""
    return {
        "parsers": table(
            " | ".join(COLUMNS),
            (_row(parser) for parser in TOOL_PARSERS),
        ),
        "thoughts": table(
            "opens a thought | closes it",
            ((_code(opening), _code(end)) for opening, end in REASONING_MARKERS),
        ),
    }


def _row(parser: ToolParser) -> tuple[str, ...]:
    return (
        f"`{parser.name}`",
        "<br>".join(map(_code, parser.opening)) or "-",
        _code(parser.closing) if parser.closing else "-",
        *("yes" if said else "" for said in (parser.token, parser.json, parser.bare)),
    )


def _code(marker: str) -> str:
    return f"`{marker}`"


PAGE = Page("markup.md", tables)
