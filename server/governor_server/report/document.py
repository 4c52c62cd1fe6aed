"""A report as values, and as one HTML file that asks for nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure that stands out, and what it is."""

    value: str
    what: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first column is to the left, figures to the right."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart: `name` is that of its file, `said` what it shows for those who cannot see it."""

    name: str
    title: str
    said: str
    svg: bytes
    png: bytes

    @property
    def address(self) -> str:
        """The drawing itself, as an image: what is in it can run nothing."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True, slots=True)
class Document:
    """`headline` is what is left when somebody reads one sentence; `unknown` what the figures do not say."""

    title: str
    about: str
    headline: str
    facts: Sequence[Fact]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    unknown: Sequence[str]
    made: str


def page(document: Document) -> str:
    """The report as HTML. All text is escaped: names of tools are what clients chose."""
    source = files("governor_server.report").joinpath("page.html").read_text("utf-8")
    environment: Any = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text: str = environment.from_string(source).render(document=document)
    return text
