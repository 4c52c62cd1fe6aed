"""The documentation: what comes from the code is current."""

from __future__ import annotations

import pytest

from scripts import configuration_reference, http_reference, reference
from scripts.pages import Page


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
