"""From `compose up` to a decision on the dashboard, from outside the containers.

    make images containers        # or, by hand: pytest tests/containers/walk.py

Not part of `make test`: it needs the images, and minutes. With Docker it is `docker compose`, else podman and
podman-compose, which has to be root on a machine with a small sandbox (docker/containers.conf).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener, urlopen

import orjson
import pytest
import yaml
from playwright.sync_api import expect, sync_playwright

from tests.dashboard.browser import chromium

ROOT = Path(__file__).parents[2]
COMPOSE = ["-f", "docker/compose.yaml", "--profile", "cpu", "--profile", "monitoring"]
SERVICES = ["vllm-cpu", "governor-demo", "traffic", "prometheus"]
"""Without Grafana: its image is not on every machine, and nothing here asks it."""
GOVERNOR = "http://127.0.0.1:{}".format(os.environ.get("GOVERNOR_PORT", "8000"))
PROMETHEUS = "http://127.0.0.1:{}".format(os.environ.get("PROMETHEUS_PORT", "9090"))
PICTURES = ROOT / "build" / "containers"
START_S = 900.0
DECISION_S = 300.0
HEALTH_S = 5.0

log = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(1800)


def docker_runs() -> bool:
    docker = shutil.which("docker")
    return docker is not None and not subprocess.run([docker, "info"], capture_output=True).returncode


class Engine:
    """Docker, or podman with podman-compose."""

    def __init__(self) -> None:
        self.docker = docker_runs()
        podman = shutil.which("podman")
        compose = shutil.which("podman-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if not self.docker and (podman is None or compose is None):
            pytest.skip("neither a Docker engine nor podman with podman-compose is here")
        self._compose = ["docker", "compose"] if self.docker else [str(compose)]
        self._engine = ["docker"] if self.docker else ["podman"]
        settings = ROOT / "docker" / "containers.conf"
        self._environment = {"CONTAINERS_CONF": str(settings), **os.environ}

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run([*self._engine, *arguments], check)

    def compose(
        self, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self._run([*self._compose, *COMPOSE, *arguments], check, **environment)

    def _run(self, command: list[str], check: bool, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self._environment, **more}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert not check or not done.returncode, f"{command}: {done.stdout}\n{done.stderr}"
        return done

    def container(self, service: str) -> str:
        """The container of a service."""
        names = self.run("ps", "--all", "--format", "{{.Names}}").stdout.split()
        (name,) = [name for name in names if re.fullmatch(rf"(tool-governor|docker)[-_]{service}[-_]1", name)]
        return name


def until(what: Callable[[], Any], within_s: float, every_s: float = 2.0) -> Any:
    """What `what` returns once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(every_s)
    return found


def get(url: str, through: OpenerDirector | None = None) -> Any:
    """The JSON at an address, None where nobody answers or not with 200."""
    try:
        with (through.open if through else urlopen)(url, timeout=10) as response:
            return orjson.loads(response.read())
    except (OSError, orjson.JSONDecodeError):
        return None


def status(url: str) -> int:
    try:
        with urlopen(url, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def key(engine: Engine) -> tuple[str, str]:
    """An operator's key and its digest, made as docs/deployment.md says."""
    alone = ("--rm", "--network", "none", "--entrypoint", "governor")
    printed = engine.run("run", *alone, image(), "key")
    digest = re.search(r"\b[0-9a-f]{64}\b", printed.stdout)
    made = re.search(r"\bgov-\S+", printed.stdout)
    assert digest and made, printed.stdout
    return made[0], digest[0]


def image() -> str:
    """The governor's, as the compose file has it."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    name: str = compose["services"]["governor-demo"]["image"]
    return name


@pytest.fixture(scope="module")
def up(engine: Engine, key: tuple[str, str]) -> Iterator[Engine]:
    """All of it, until the governor is ready."""
    stop = threading.Event()

    def look_at_health() -> None:
        # Podman leaves that to timers of systemd, which not every machine has.
        while not stop.wait(HEALTH_S):
            for name in engine.run("ps", "--format", "{{.Names}}", check=False).stdout.split():
                engine.run("healthcheck", "run", name, check=False)

    watcher = threading.Thread(target=look_at_health, daemon=True)
    if not engine.docker:
        watcher.start()
    engine.compose("down", "--volumes", check=False)
    try:
        engine.compose("up", "--detach", "--no-build", *SERVICES, ADMIN_KEYS=f'["{key[1]}"]')
        until(lambda: status(f"{GOVERNOR}/readyz") == 200, START_S)
        yield engine
    finally:
        for service in SERVICES:
            said = engine.compose("logs", service, check=False)
            log.info("%s: %s", service, (said.stdout + said.stderr)[-3000:])
        stop.set()
        engine.compose("down", "--volumes", check=False)


@pytest.fixture
def operator(up: Engine, key: tuple[str, str]) -> OpenerDirector:
    """Logged in with the key; a session ends with the governor that it was opened in."""
    cookies = build_opener(HTTPCookieProcessor(CookieJar()))
    form = urlencode({"key": key[0]}).encode()
    cookies.open(Request(f"{GOVERNOR}/dashboard/login", form, {"origin": GOVERNOR}), timeout=10).read()
    return cookies


@pytest.fixture
def withheld(operator: OpenerDirector) -> str:
    """A conversation in which a call was withheld."""

    def rows() -> Any:
        found = get(f"{GOVERNOR}/dashboard/api/conversations?only=withheld", operator)
        return found and found["conversations"]

    name: str = until(rows, DECISION_S)[0]["conversation"]
    return name


def test_the_image_holds_what_its_settings_may_ask_for(engine: Engine) -> None:
    """The fit of the calibrated gate, OpenTelemetry and the client of Redis."""
    modules = "import governor_calibration.fit, opentelemetry.sdk, redis"
    engine.run("run", "--rm", "--network", "none", "--entrypoint", "python", image(), "-c", modules)


def test_the_governor_is_nobody_and_writes_to_its_records_only(up: Engine) -> None:
    name = up.container("governor-demo")
    process = up.run("exec", name, "cat", "/proc/1/status").stdout
    found = dict(re.findall(r"^(Uid|CapEff|CapBnd|NoNewPrivs):\s*(\w+)", process, flags=re.MULTILINE))
    assert found == {"Uid": "10001", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    for path in ("/x", "/opt/governor/x", "/etc/x"):
        assert up.run("exec", name, "touch", path, check=False).returncode != 0
    up.run("exec", name, "touch", "/var/lib/governor/x", "/tmp/x")


def test_without_the_key_the_dashboard_is_closed(up: Engine) -> None:
    """To a container this machine is another one."""
    assert status(f"{GOVERNOR}/dashboard/api/overview") in (401, 403)
    assert status(f"{GOVERNOR}/governor/decisions") in (401, 403)


def test_a_decision_is_seen_on_the_dashboard(operator: OpenerDirector, withheld: str) -> None:
    """By the operator, who logs in with the key: a call that was withheld, with its reason."""
    found = get(f"{GOVERNOR}/dashboard/api/conversation/{withheld}", operator)
    decisions = [call["decision"] for turn in found["turns"] for call in turn["calls"]]
    assert any(decision["action"] != "pass" and decision["reason"] for decision in decisions)


def test_the_dashboard_shows_it_in_a_browser(key: tuple[str, str], withheld: str) -> None:
    """The operator types the key and sees what was withheld. The pictures are in build/containers."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})

        def look_at(view: str) -> None:
            page.wait_for_function("view => document.documentElement.dataset.shown === view", arg=view)
            expect(page.locator("#live")).to_have_attribute("data-state", "live")
            page.screenshot(path=PICTURES / f"{view}.png")

        page.goto(f"{GOVERNOR}/dashboard")
        page.fill("#key", key[0])
        page.press("#key", "Enter")
        look_at("overview")
        page.goto(f"{GOVERNOR}/dashboard#/conversations?only=withheld")
        look_at("conversations")
        page.goto(f"{GOVERNOR}/dashboard#/conversation/{withheld}")
        look_at("conversation")
        expect(page.get_by_text("withheld").first).to_be_visible()
        browser.close()


def test_prometheus_has_what_the_governor_counts(up: Engine) -> None:
    """Scraped in its own container, by the name of the service."""

    def calls() -> Any:
        found = get(f"{PROMETHEUS}/api/v1/query?query=sum(governor_tool_calls_total)")
        return found and found["data"]["result"] and float(found["data"]["result"][0]["value"][1])

    assert until(calls, 120.0) > 0


def test_it_stops_in_order_and_starts_again(up: Engine) -> None:
    """With the running answers ended, not by a kill."""
    name = up.container("governor-demo")
    up.run("stop", "--time", "30", name)
    assert up.run("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"
    up.run("start", name)
    until(lambda: status(f"{GOVERNOR}/readyz") == 200, START_S)
