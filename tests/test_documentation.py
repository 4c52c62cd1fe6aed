"""The documentation: what comes from the code is current, links lead somewhere, and the site needs nobody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scripts import configuration_reference, http_reference, reference
from scripts.pages import Page

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("tests/*/README.md")]
    if path.relative_to(ROOT).parts[0] not in ("build", "dist")
)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(path: Path) -> str:
    """The text without what is code."""
    return CODE.sub("", FENCE.sub("", path.read_text("utf-8")))


def links(path: Path) -> Iterator[tuple[str, str]]:
    """File and anchor of each link that stays in the repository."""
    for target in LINK.findall(prose(path)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield file, anchor


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links: letters, digits and hyphens."""
    headings = HEADING.findall(FENCE.sub("", path.read_text("utf-8")))
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in headings}


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_what_comes_from_the_code_is_current(page: Page) -> None:
    """Run `make reference` after a change."""
    text = page.path.read_text("utf-8")
    assert page.written(text) == text


def test_every_setting_has_a_meaning() -> None:
    """They are the comments of the example: one without leaves a hole in the page."""
    said = configuration_reference.meanings(configuration_reference.EXAMPLE.read_text("utf-8"))
    assert [each.name for each in configuration_reference.settings() if not said.get(each.name)] == []


def test_the_comments_of_the_example_are_read_as_they_stand() -> None:
    """Behind the key, going on below it, above a section, in the place of a key, and inside a group."""
    said = configuration_reference.meanings(
        "# The file.\n\n# Where.\nplace:\n"
        "  url: null   # one # only\n              # and more\n"
        "  # path: depends\n  #       on you\n"
        "  group:      # of two\n    first: 1   # the first\n"
    )
    assert said["place"] == "Where."
    assert said["place.url"] == "one # only and more"
    assert said["place.path"] == "depends on you"
    assert (said["place.group"], said["place.group.first"]) == ("of two", "the first")


def test_every_route_says_what_it_is_for() -> None:
    """Its docstring is all that the page has of it."""
    assert [path for _, path, operation in http_reference.routes() if not operation.get("description")] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    """To a file of the repository, and to a heading in it."""
    broken = []
    for file, anchor in links(path):
        target = path if not file else (path.parent / file).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{file}#{anchor}")
    assert broken == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built so that a warning is an error."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Loaded(HTMLParser):
    """What a page loads by itself, and the text of its paragraphs, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.lines: list[str] = []
        self._paragraph = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}.get(tag)
        if name and values.get(name) and values.get("rel") != "canonical":
            self.addresses.append(str(values[name]))
        self._paragraph = tag == "p" or (self._paragraph and tag != "div")

    def handle_endtag(self, tag: str) -> None:
        self._paragraph = self._paragraph and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._paragraph:
            self.lines += data.split("\n")


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """It is read where there is no internet, and tells nobody who reads it."""
    pages = list(site.glob("**/*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert [address for address in loaded.addresses if "//" in address] == [], page.name
    for sheet in site.glob("**/*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)", sheet.read_text("utf-8")) == [], sheet.name


def test_lists_and_tables_of_the_site_are_no_text(site: Path) -> None:
    """A list or a table that Markdown does not see as one stands in a paragraph, with its signs."""
    for page in site.glob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert [line for line in loaded.lines if re.match(r"(- |\* |\d+\. |\| |```)", line)] == [], page.name
