"""The page's files: all of them ours or vouched for, none from elsewhere, nothing written into the page."""

from __future__ import annotations

import re
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from governor_server.dashboard.assets import POLICY, Assets
from tests.server.scripted_upstream import proxied, scripted

FOLDER = files("governor_server.dashboard") / "static"
NAMES = sorted(file.name for file in FOLDER.iterdir())
PAGES = [name for name in NAMES if name.endswith(".html")]
VENDORED = {
    # uPlot 1.6.32, as npm has it.
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


class Written(HTMLParser):
    """What a page has beside its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        for name, value in attrs:
            if name in ("src", "href", "action"):
                self.addresses.append(str(value))
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("name", VENDORED)
def test_what_others_wrote_is_what_they_published(name: str) -> None:
    """A changed library is not the one whose licence stands beside it."""
    assert sha256((FOLDER / name).read_bytes()).hexdigest() == VENDORED[name]
    assert "Permission is hereby granted" in (FOLDER / "uPlot.LICENSE").read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VENDORED and "LICENSE" not in name])
def test_nothing_is_asked_of_other_hosts(name: str) -> None:
    """It works where there is no internet."""
    text = (FOLDER / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]+", text) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_that_its_policy_forbids(name: str) -> None:
    """And names no file that there is not."""
    written = Written(Assets().page(name))
    assert written.inline == []
    names = [address.rpartition("/")[2] for address in written.addresses if "/static/" in address]
    assert names and set(names) <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js") and name not in VENDORED])
def test_texts_never_become_markup(name: str) -> None:
    """What a model wrote may be a script; there is one way to put text into the page, and it escapes."""
    text = (FOLDER / name).read_text("utf-8")
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.search(markup, text)


def test_the_policy_allows_no_more_than_the_page_needs() -> None:
    """Above all no script and no style that stands in the page."""
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert "frame-ancestors 'none'" in POLICY


async def test_files_are_kept_by_browsers_until_they_are_others() -> None:
    """The name of the version changes with any of them; under another one they are asked for each time."""
    version = Assets().version
    async with scripted() as upstream, proxied(upstream) as proxy:
        async with proxy.client.get(f"/dashboard/static/{version}/app.js") as response:
            assert response.status == 200
            assert "immutable" in response.headers["cache-control"]
            assert response.headers["content-type"] == "text/javascript; charset=utf-8"
            assert response.headers["x-content-type-options"] == "nosniff"
        async with proxy.client.get("/dashboard/static/old/app.js") as response:
            assert response.headers["cache-control"] == "no-cache"
        for name in ("none.js", "index.html", "..%2Froutes.py", "uPlot.LICENSE"):
            async with proxy.client.get(f"/dashboard/static/{version}/{name}") as response:
                assert response.status == 404
        async with proxy.client.get("/dashboard") as response:
            assert response.headers["content-security-policy"] == POLICY
            assert response.headers["cache-control"] == "no-store"
            assert f"dashboard/static/{version}/app.js" in await response.text()
    assert not upstream.received
