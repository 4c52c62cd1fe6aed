"""Every query of every panel gets data from a real Prometheus that scraped a real governor under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from governor.calls import schemas_of
from governor.gate import ToolWeights
from governor.standing import Standing, kept
from scripts import metrics_reference
from tests.binaries import binary
from tests.governor.test_calibrated import GATE
from tests.monitoring.dashboards import NAMES, ROOT, dashboard, queries
from tests.monitoring.load import Player, converse
from tests.server.waiting import port_of_its_own
from tests.wire.generated import tool

DEADLINE_S = 240.0
VARIABLES = {
    "job": "governor",
    "instance": ".+",
    "vllm_job": "vllm",
    "__rate_interval": "1m",
    "__range": "5m",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE_S)]


def _read(log: Path) -> str:
    return log.read_text("utf-8", "replace")


@asynccontextmanager
async def process(*command: str, log: Path) -> AsyncIterator[None]:
    """A child that is ended with the block."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
    try:
        yield
        assert child.returncode is None, _read(log)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def answers(session: aiohttp.ClientSession, path: str, log: Path) -> None:
    """Wait until a GET gives 200."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            async with session.get(path) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError(_read(log))


def governor_settings(folder: Path, upstream: str, port: int) -> Path:
    """Settings under which everything that a dashboard shows happens: a gate in force and one that lapsed,
    holdout, exploration, labels, pruning."""
    schema = schemas_of([tool("get_weather")])["get_weather"]
    # Nothing is ever useful to it.
    gate = replace(GATE, model="atlas", intercept=-20.0, tools={"get_weather": ToolWeights(schema, 100)})
    standings = {
        ("", "atlas"): Standing(gate=gate),
        ("", "old"): Standing(gate=GATE, lapsed="Harm was seen."),
    }
    gates = folder / "gates.json"
    gates.write_text(json.dumps(kept(standings)))
    settings = {
        "server": {"port": port},
        "upstream": {"url": upstream},
        "governance": {"mode": "enforce", "policy": "calibrated", "vocab_size": 4096},
        "experiment": {"holdout": 0.2, "exploration": 0.3, "labels": 1.0},
        "calibration": {"path": str(gates), "renew_s": 3600.0},
        "pruning": {"policy": "low_value", "min_tokens": 8},
        "tools": {"read_only": ["get_*", "search"]},
        "store": {"path": str(folder / "records.db")},
    }
    path = folder / "governor.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def prometheus_settings(folder: Path, targets: dict[str, str]) -> Path:
    """Those in the repository, with our targets, the rules where they lie, and no time to lose."""
    source = ROOT / "monitoring" / "prometheus" / "prometheus.yaml"
    settings = yaml.safe_load(source.read_text("utf-8"))
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "2s"}
    settings["rule_files"] = [str(source.parent / name) for name in settings["rule_files"]]
    for job in settings["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


async def ask(base: str, conversations: Iterable[int]) -> None:
    """So many more, of four agents."""
    async with aiohttp.ClientSession(base) as session:
        for four in batched(conversations, 4):
            await asyncio.gather(*(converse(session, number) for number in four))


def batched(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """In parts."""
    left = iter(numbers)
    return iter(lambda: list(islice(left, size)), [])


async def without_data(session: aiohttp.ClientSession) -> list[tuple[str, str, str]]:
    """The panels and the recording rules that have no data yet."""
    panels = [
        (query.dashboard, query.panel, query.filled(VARIABLES)) for name in NAMES for query in queries(name)
    ]
    recorded = [("", "", rule["record"]) for rule in metrics_reference.rules() if "record" in rule]
    return [wanted for wanted in [*panels, *recorded] if not await values(session, wanted[2])]


async def asked(session: aiohttp.ClientSession, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus."""
    async with session.get(f"/api/v1/{path}", params=parameters) as response:
        answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]


async def values(session: aiohttp.ClientSession, expression: str) -> list[float]:
    """The numbers that an expression has now, without those that are none."""
    found = (await asked(session, "query", query=expression))["result"]
    return [value for series in found if not math.isnan(value := float(series["value"][1]))]


async def test_no_panel_stays_empty(tmp_path: Path) -> None:
    """Neither a variable, nor a recording rule; and no rule fails when it is evaluated."""
    prometheus = binary("prometheus")
    player = Player()
    server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
    upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ours, theirs = (port_of_its_own() for _ in range(2))
    governor_log, prometheus_log = tmp_path / "governor.log", tmp_path / "prometheus.log"
    settings = governor_settings(tmp_path, f"http://{upstream}", ours)
    scraping = prometheus_settings(tmp_path, {"governor": f"127.0.0.1:{ours}", "vllm": upstream})
    command = (sys.executable, "-m", "governor_server.cli", "serve", "--config", str(settings))
    storage = ("--storage.tsdb.path", str(tmp_path / "tsdb"), "--web.listen-address", f"127.0.0.1:{theirs}")
    async with (
        process(*command, log=governor_log),
        aiohttp.ClientSession(f"http://127.0.0.1:{ours}") as governor,
        aiohttp.ClientSession(f"http://127.0.0.1:{theirs}") as session,
    ):
        await answers(governor, "/readyz", governor_log)
        numbers = itertools.count()
        await ask(f"http://127.0.0.1:{ours}", islice(numbers, 20))
        async with process(prometheus, "--config.file", str(scraping), *storage, log=prometheus_log):
            await answers(session, "/-/ready", prometheus_log)
            deadline = time.monotonic() + DEADLINE_S
            while empty := await without_data(session):
                assert time.monotonic() < deadline, empty
                await ask(f"http://127.0.0.1:{ours}", islice(numbers, 20))
            for name in NAMES:
                await _variables_have_values(session, name)
            await _rules_are_well(session)
    server.close()
    await player.close()


async def _variables_have_values(session: aiohttp.ClientSession, name: str) -> None:
    for variable in dashboard(name)["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = variable["query"]["query"].removeprefix("label_values(")[:-1].rsplit(", ", 1)
            selector = selector.replace("$job", "governor")
            series = await asked(session, "series", **{"match[]": selector})
            assert {each.get(label) for each in series} - {None}, (name, variable["name"])


async def _rules_are_well(session: aiohttp.ClientSession) -> None:
    groups = (await asked(session, "rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(metrics_reference.rules())
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
