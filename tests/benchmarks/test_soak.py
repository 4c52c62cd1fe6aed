"""The soak in its short form, and what its checks would say of a proxy that fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.proxy.arms import Arm
from benchmarks.proxy.cells import marks_from
from benchmarks.proxy.client import Answer
from benchmarks.proxy.recordings import STREAM
from benchmarks.proxy.summary import Memory
from benchmarks.soak.__main__ import main
from benchmarks.soak.checks import Snapshot, checks
from benchmarks.soak.load import Load, Outcome, judged
from tests.binaries import found

MARK = b"a" * 16
MUST = STREAM.visible_to(MARK)
EVENTS = MUST.split(b"\n\n")
ERROR = b'data: {"error":{"message":"gone","type":"upstream_broken"}}\n\n'


@pytest.mark.slow
@pytest.mark.timeout(900)  # Twenty seconds; a busy machine starts the programs slowly.
def test_a_short_soak_finds_nothing_wrong(tmp_path: Path) -> None:
    """Upstream dies under load, and Redis after it, where there is one."""
    short = ["--seconds", "8", "--every", "4", "--down", "0.5", "--capacity-seconds", "1", "--share", "0.4"]
    clients = ["--leaving", "0.2", "--slow", "0.2", "--odd", "0.2"]
    assert main([*short, *clients, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    redis = found("redis-server") is not None
    assert summary["faults"] == ({"the upstream": 1, "Redis": 1} if redis else {"the upstream": 2})
    assert summary["load"]["right"] and summary["load"]["left"] and summary["load"]["slow"]
    assert summary["load"]["odd"]
    assert all(check["holds"] for check in summary["checks"])


def outcome(body: bytes, status: int = 200, *, whole: bool = True) -> Outcome:
    return judged(Answer(status=status, pieces=[body]), MUST, whole=whole)


def test_an_answer_is_right_only_as_it_was_recorded() -> None:
    assert outcome(MUST) is Outcome.RIGHT
    lost = b"\n\n".join([*EVENTS[:3], *EVENTS[4:]])
    doubled = b"\n\n".join([*EVENTS[:3], EVENTS[2], *EVENTS[3:]])
    reordered = b"\n\n".join([EVENTS[1], EVENTS[0], *EVENTS[2:]])
    others = STREAM.visible_to(b"b" * 16)
    for body in (lost, doubled, reordered, others, b""):
        assert outcome(body) is Outcome.WRONG


def test_an_answer_that_broke_off_must_be_a_beginning_and_say_so() -> None:
    begun = b"\n\n".join(EVENTS[:3]) + b"\n\n"
    assert outcome(begun + ERROR, whole=False) is Outcome.BROKEN
    assert outcome(begun, whole=False) is Outcome.WRONG
    assert outcome(b"\n\n".join(EVENTS[1:3]) + b"\n\n" + ERROR, whole=False) is Outcome.WRONG


def test_a_refusal_is_an_error_that_says_what_failed() -> None:
    assert outcome(b'{"error":{"message":"no upstream"}}', 502) is Outcome.REFUSED
    assert outcome(b"Bad Gateway", 502) is Outcome.WRONG
    assert outcome(b'{"error":{"message":"the proxy failed"}}', 500) is Outcome.WRONG


IDLE: Mapping[str, Mapping[tuple[str, ...], float]] = {"governor_requests_total": {("chat", "200"): 10}}


def snapshot(
    metrics: Mapping[str, Mapping[tuple[str, ...], float]] = IDLE, *, sockets: int = 2, threads: int = 3
) -> Snapshot:
    return Snapshot({"socket": sockets, "file": 4}, threads, 70.0, metrics)


def after(**changed: Mapping[tuple[str, ...], float]) -> Snapshot:
    """Of 8 more requests, one of which upstream refused."""
    counted: Mapping[str, Mapping[tuple[str, ...], float]] = {
        "governor_requests_total": {("chat", "200"): 17, ("chat", "502"): 1, ("other", "200"): 5},
        "governor_upstream_failures_total": {("unreachable",): 1},
        "governor_conversations": {(): 5},
    }
    return snapshot({**counted, **changed})


def failed(
    last: Snapshot, *, wrong: int = 0, stored: int = 5, memory: Memory | None = None, unshared: int = 0
) -> set[str]:
    """The first words of the checks that do not hold."""
    load = Load(Arm("governor", 1), marks_from(0), 1, leaving=0.0, slow=0.0)
    load.counts.update({Outcome.RIGHT: 7, Outcome.REFUSED: 1, Outcome.WRONG: wrong})
    flat = memory or Memory([0, 1], [70.0, 70.0])
    found = checks(load, snapshot(), last, flat, struck=1, unshared=unshared, max_records=5, stored=stored)
    return {" ".join(check.name.split()[:3]) for check in found if not check.holds}


def test_every_check_can_fail() -> None:
    assert failed(after()) == set()
    assert failed(after(), wrong=1) == {"no answer is", "every request is"}
    assert failed(after(governor_upstream_failures_total={})) == {"every failure that"}
    assert failed(after(governor_upstream_failures_total={("broken",): 2})) == {"every failure that"}
    assert failed(after(governor_requests_total={("chat", "200"): 16})) == {"every request is"}
    assert failed(after(governor_fail_open_total={("chunk",): 1, ("answer",): 3})) == {"nothing of the"}
    assert failed(after(governor_store_errors_total={(): 1})) == {"every record was"}
    assert failed(after(governor_store_errors_total={(): 1}), unshared=1) == set()
    assert failed(after(), unshared=1) == {"a Redis that"}
    assert failed(after(governor_running_requests={(): 1})) == {"no request is"}
    assert failed(after(governor_conversations={(): 6})) == {"the records are"}
    assert failed(after(), stored=6) == {"the records are"}
    last = after().metrics
    assert failed(snapshot(last, sockets=3)) == {"no connection or"}
    assert failed(snapshot(last, threads=4)) == {"no thread is"}
    assert failed(after(), memory=Memory([0, 1], [70.0, 101.0])) == {"memory stays below"}
    assert failed(after(), memory=Memory([0, 1, 2, 3], [70.0, 70.0, 80.0, 90.0])) == {"memory stays below"}
