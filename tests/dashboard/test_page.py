"""The page in a real browser: 10,000 conversations are there, 100 come in each second, and somebody looks.

Each view is looked at in both themes and on a phone; the pictures are in build/dashboard, for people.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from governor_server.app import GovernorApp
from governor_server.dashboard import whatif
from tests.dashboard import traffic
from tests.dashboard.browser import chromium
from tests.server.test_access import digest
from tests.server.test_gatekeeper import keeper, many

PICTURES = Path(__file__).parents[2] / "build" / "dashboard"
CONVERSATIONS = 10_000
EACH_SECOND = 100
LATER = re.compile(r"/dashboard/(events|api/.*|static/.*/(app|uPlot\.iife\.min)\.js)$")
"""What the first paint must not wait for."""
MOST_FILES, MOST_BYTES = 5, 32_000
"""What it may wait for."""
SHOWN = f"agent-{CONVERSATIONS - 1:06d}"
VIEWS = {
    "overview": "overview",
    "tools": "tools",
    "conversations": "conversations",
    "conversation": f"conversation/{SHOWN}",
    "what-if": "what-if",
}
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
KEY = "gov-operator"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        # A container has no user namespaces and little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def governor(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GovernorApp, str]]:
    """Full of conversations. What if is asked of the newest, and once."""
    quick = pytest.MonkeyPatch()
    quick.setattr(whatif, "MOST_CONVERSATIONS", 300)
    quick.setattr(whatif, "FRESH_S", 3600.0)
    folder = tmp_path_factory.mktemp("store")
    certified = keeper(folder / "gates.json", many(1800))
    # The browser's driver has an event loop in this thread.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, certified.renew()).result()
    calibration = {"path": str(folder / "gates.json"), "renew_s": 3600.0}
    governance = {"mode": "enforce", "policy": "calibrated"}
    config = traffic.settings(folder, calibration=calibration, governance=governance)
    traffic.fill(config, CONVERSATIONS)
    with traffic.served(config) as (app, url):
        for number in range(400):
            app.metrics.overhead_seconds.observe(0.0004 + 0.000003 * number)
        yield app, url
    quick.undo()


class Watched:
    """A page, and what it did that it should not."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.page: Page = context.new_page()
        self.origin = origin
        self.said: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.origin, "data:")):
            self.foreign.append(url)

    def show(self, place: str) -> None:
        """Open a view, and wait until it shows figures."""
        self.page.goto(f"{self.origin}/dashboard#/{place}")
        self.shown(place.partition("/")[0].partition("?")[0])

    def shown(self, view: str) -> None:
        """Wait until a view shows figures."""
        self.page.wait_for_function(
            "view => document.documentElement.dataset.shown === view", arg=view, timeout=300_000
        )
        expect(self.page.locator("#live")).to_have_attribute("data-state", "live")

    def check(self) -> None:
        """Nothing in the console, nothing from elsewhere."""
        assert self.said == []
        assert self.foreign == []


@pytest.fixture(autouse=True)
def load(request: pytest.FixtureRequest, numbers: Iterator[int]) -> Iterator[None]:
    """More come in all the time."""
    if "governor" not in request.fixturenames:
        yield
        return
    app, _ = request.getfixturevalue("governor")
    with traffic.arriving(app, EACH_SECOND, first=next(numbers)):
        yield


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Where each test's conversations begin."""
    return itertools.count(1_000_000, 1_000_000)


@pytest.fixture
def watched(browser: Browser, governor: tuple[GovernorApp, str]) -> Iterator[Watched]:
    """A window of the usual size."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        found = Watched(context, governor[1])
        yield found
        found.check()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("size", "theme"), list(itertools.product(SIZES, ("light", "dark"))))
def test_a_view(
    browser: Browser, governor: tuple[GovernorApp, str], view: str, size: str, theme: Any
) -> None:
    """It shows figures, fits its window, says nothing in the console, asks nobody else, and axe finds no
    fault with it."""
    width, height = SIZES[size]
    with browser.new_context(color_scheme=theme, viewport={"width": width, "height": height}) as context:
        found = Watched(context, governor[1])
        found.show(VIEWS[view])
        page = found.page
        if view != "overview":
            expect(page.locator("#view .empty")).to_have_count(0)
        page.wait_for_timeout(300)
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{view}-{theme}-{size}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is too wide"
        faults = Axe().run(page).response["violations"]
        assert [f"{fault['id']}: {fault['nodes'][0]['html']}" for fault in faults] == []
        found.check()


def test_the_first_paint_waits_for_a_few_small_files(
    browser: Browser, governor: tuple[GovernorApp, str]
) -> None:
    """It comes before any figures, and before the scripts that draw them; these come with two more answers
    of the governor. How long it took here is in build/dashboard/times.json."""
    times = []
    for _ in range(3):
        with browser.new_context() as context:
            found = Watched(context, governor[1])
            times.append(painted_early(found))
            found.check()
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "times.json").write_text(json.dumps(times, indent=1))


class Gate:
    """Holds requests back until it is opened."""

    def __init__(self) -> None:
        self._held: list[Route] | None = []

    def take(self, route: Route) -> None:
        if self._held is None:
            route.continue_()
        else:
            self._held.append(route)

    def open(self) -> None:
        held, self._held = self._held or [], None
        for route in held:
            route.continue_()


def painted_early(watched: Watched) -> dict[str, float]:
    """Looks at the overview, held back until the first paint; milliseconds until then, and from there to the
    figures."""
    page, gate = watched.page, Gate()
    page.route(LATER, gate.take)
    page.goto(f"{watched.origin}/dashboard#/overview", wait_until="commit")
    paint = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    painted: float = page.wait_for_function(paint).json_value()
    sizes = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".filter(file => file.responseEnd).map(file => file.encodedBodySize)"
    )
    assert len(sizes) <= MOST_FILES and sum(sizes) < MOST_BYTES, sizes
    expect(page.locator("#view")).to_have_text("Reading the records…")
    answers: list[str] = []
    page.on("request", lambda request: answers.append(request.url.removeprefix(watched.origin)))
    began = time.monotonic()
    gate.open()
    watched.shown("overview")
    asked = sorted(path for path in answers if "/static/" not in path)
    assert asked == ["/dashboard/api/overview", "/dashboard/events"]
    return {"first_paint_ms": painted, "figures_ms": 1000 * (time.monotonic() - began)}


def test_the_figures_go_on_by_themselves(watched: Watched) -> None:
    """A hundred conversations a second: the number of calls grows while one looks."""
    watched.show("overview")
    figure = watched.page.locator(".fact.proposed .figure")
    before = figure.inner_text()
    expect(figure).not_to_have_text(before)


def test_the_certificate_says_what_it_promises(watched: Watched) -> None:
    """The bound, what is allowed, and on what it rests."""
    watched.show("overview")
    card = watched.page.get_by_role("region", name="Harm certificate")
    expect(card).to_contain_text("certified")
    expect(card).to_contain_text("of 2.00% allowed")
    expect(card).to_contain_text("observed conversations")


def test_the_keyboard_is_enough(watched: Watched) -> None:
    """From the top to a conversation, with nothing but Tab and Enter; what has the focus can be seen."""
    watched.show("overview")
    page = watched.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Conversations":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Conversations")
    expect(page.locator("tbody tr").first).to_be_visible()
    expect(page.locator("main")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('a.name')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("Conversation agent-")
    expect(page.locator(".turn").first).to_be_visible()


def test_a_conversation_shows_every_token_and_runs_none_of_it(watched: Watched) -> None:
    """A text that looks like a script is a text."""
    watched.show(f"conversation/{SHOWN}")
    page = watched.page
    expect(page.locator(".message.user pre").first).to_contain_text("<script>alert(1)</script>")
    tokens = page.locator(".tokens .t")
    assert tokens.count() >= 15
    assert "nats" in (tokens.nth(1).get_attribute("title") or "")
    expect(page.locator(".call").first).to_contain_text("Forced answer before")
    assert page.evaluate("document.scripts.length") == 3


def test_a_filter_stands_in_the_address(watched: Watched) -> None:
    """So that it can be sent to somebody, and survives a reload."""
    watched.show("conversations")
    page = watched.page
    page.get_by_label("Arm").select_option("holdout")
    page.get_by_label("Search").fill("agent-0000")
    expect(page.locator("tbody tr")).to_have_count(10)
    assert "arm=holdout" in page.url
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(10)
    expect(page.get_by_label("Arm")).to_have_value("holdout")
    page.get_by_label("Search").fill("no such name")
    expect(page.locator("#view .empty")).to_contain_text("No conversation fits")


def test_the_slider_allows_more_the_looser_the_bound(watched: Watched) -> None:
    """With the keyboard, and what it says goes along."""
    watched.show("what-if")
    page = watched.page
    slider = page.get_by_role("slider", name="Share of first withheld calls")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(".lead")).to_contain_text("no policy is certified")
    expect(page.locator(".snippet")).to_contain_text("mode: observe")
    page.keyboard.press("End")
    expect(page.locator(".lead")).to_contain_text("would have saved")
    expect(page.locator(".snippet")).to_contain_text("policy:")
    assert "max_harm=0.5" in page.url


def test_tools_are_put_in_order(watched: Watched) -> None:
    """By any column, told to those who listen."""
    watched.show("tools")
    page = watched.page
    page.get_by_role("button", name="Tool", exact=True).click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Tool ▴")
    names = page.locator("tbody th").all_inner_texts()
    assert names == sorted(names)


def test_the_theme_that_was_chosen_stays(watched: Watched) -> None:
    """Over a reload, whatever the system has."""
    watched.show("overview")
    page = watched.page
    page.locator("#theme").click()
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text("Theme: dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_signing_in(browser: Browser, tmp_path: Path) -> None:
    """With a key, a wrong one first; and out again. Before any call, the page says what to do."""
    config = traffic.settings(tmp_path, auth={"admin_keys": [digest(KEY)]})
    with traffic.served(config) as (_, url), browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}/dashboard")
        page.screenshot(path=PICTURES / "sign-in.png")
        assert Axe().run(page).response["violations"] == []
        page.get_by_label("The operator's key").fill("gov-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not known")
        page.get_by_label("The operator's key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#view .empty")).to_contain_text("No tool call has been recorded yet")
        page.screenshot(path=PICTURES / "empty.png")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("The operator's key")).to_be_visible()
