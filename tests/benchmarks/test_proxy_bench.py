"""The benchmark of the proxy, in its short form: everything is measured, every answer is right."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proxy.__main__ import main
from benchmarks.proxy.cells import Cell, quantile
from benchmarks.proxy.recordings import CALL, RESPONSE, WORKLOADS, without_logprobs
from benchmarks.proxy.report import BEGIN, END, tables, write_readme
from benchmarks.proxy.summary import Memory, Results, Spread
from benchmarks.proxy.upstream import Connection, Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
"""Half a minute; a busy machine starts the programs slowly."""

NOT_ALWAYS = frozenset({"cpu_us_per_chunk", "cpu_us_per_chunk_above_floor"})
"""Figures that only streams have."""


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Of a quick run without LiteLLM."""
    out = tmp_path_factory.mktemp("bench")
    assert main(["--quick", "--cell-seconds", "0.1", "--litellm", "none/python", "--out", str(out)]) == 0
    yield json.loads((out / "summary.json").read_text())


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield float(value)


def test_a_quick_run_measures_every_figure(summary: dict[str, Any]) -> None:
    assert list(summary["arms"]) == ["direct", "relay", "passing", "measuring", "observing", "enforcing"]
    for arm, workloads in summary["arms"].items():
        for workload, by_clients in workloads.items():
            assert set(by_clients) == {"1", "4"}
            for figures in by_clients.values():
                known = {key: value for key, value in figures.items() if key not in NOT_ALWAYS}
                assert all(math.isfinite(number) for number in numbers(known))
                assert figures["requests"] > 0
                assert (figures["cpu_ms_per_request"]["median"] > 0) is (arm != "direct")
                chunks = figures["cpu_us_per_chunk"]["median"]
                assert math.isfinite(chunks) is (workload != RESPONSE.name)
                above = figures["cpu_us_per_chunk_above_floor"]["median"]
                assert math.isfinite(above) is (workload != RESPONSE.name)


def test_every_answer_of_a_quick_run_is_what_the_client_must_get(summary: dict[str, Any]) -> None:
    assert summary["faithful"]
    figures = [cell for arm in summary["arms"].values() for load in arm.values() for cell in load.values()]
    assert sum(one["wrong"] + one["failed"] for one in figures) == 0


def test_memory_and_machine_are_told(summary: dict[str, Any]) -> None:
    assert set(summary["memory"]) == {"relay", "passing", "measuring", "observing", "enforcing"}
    assert all(10 < kept["rss_mb"][-1] < 1000 for kept in summary["memory"].values())
    assert summary["run"]["cpu"] and summary["run"]["packages"]["aiohttp"]


def test_the_readme_gets_tables_and_a_picture_between_its_markers(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_readme(summary, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "\n".join(tables(summary)) in text
    assert (tmp_path / "proxy.png").read_bytes().startswith(b"\x89PNG")


def test_a_client_that_gets_another_answer_is_seen() -> None:
    cells = [Cell("direct", load.name, 1, last_s=[0.1], wrong=load is CALL) for load in WORKLOADS]
    assert not Results([cells]).faithful()


def test_what_the_client_must_get_is_all_but_the_logprobs() -> None:
    for workload in WORKLOADS:
        assert b'"token"' in workload.answer.body and b'"token"' not in workload.visible
    silent = b'{"choices":[{"delta":{},"logprobs":{"content":[1]},"finish_reason":null}]}'
    assert without_logprobs(silent) is None


def test_answers_bear_the_mark_of_their_request() -> None:
    mine, other = CALL.visible_to(b"a" * 16), CALL.visible_to(b"b" * 16)
    assert mine != other and mine.replace(b"a" * 16, b"b" * 16) == other
    assert b'"id":"chatcmpl-tool-' + b"a" * 16 in mine


def test_the_spread_is_over_the_rounds() -> None:
    assert Spread.of([3.0, 1.0, 2.0, float("nan")]) == Spread(2.0, 1.5, 2.5)
    assert quantile([5.0, 1.0, 3.0], 0.5) == 3.0 and quantile(list(range(100)), 0.99) == 98


def test_growth_is_that_of_the_second_half() -> None:
    assert Memory([1, 2, 3, 4], [50, 70, 71, 72]).growth_mb == 1


async def test_a_stream_that_takes_the_place_of_one_that_left_keeps_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first step is the one that was due already: with one more it would get two events a step."""
    due: list[float] = []

    def call_at(when: float, *_: object) -> object:
        due.append(when)
        return object()

    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", call_at)
    engine = Engine({}, 60.0)
    left, stays = Connection(engine), Connection(engine)
    engine.join(left)
    engine.leave(left)
    engine.join(stays)
    assert len(due) == 1


def test_a_proxy_that_does_not_start_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main(["--quick", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("bench: the upstream is not ready")
