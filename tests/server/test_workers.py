"""Several workers as real processes behind one port, with a real Redis between them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from governor_server.metrics import MULTIPROCESS_DIR
from governor_server.workers import ending
from tests.server import fake_vllm
from tests.server.redis_server import RedisServer
from tests.server.test_cli import Governor, get, governor
from tests.server.waiting import until

WORKERS = 2
PATIENCE_S = 120.0
"""Three interpreters start for each test, on a machine that may be busy."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_S)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> None:
    """Away from any configuration file, with state and temporary files of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("GOVERNOR_STORE__REDIS_URL", redis_server.url)
    monkeypatch.setenv("GOVERNOR_SERVER__DRAIN_DELAY_S", "0")
    monkeypatch.delenv(MULTIPROCESS_DIR, raising=False)
    fake_vllm.install(tmp_path, monkeypatch)


@contextmanager
def running(tmp_path: Path) -> Iterator[tuple[Governor, int]]:
    """Workers that serve, and their port."""
    arguments = ["--model", fake_vllm.model(tmp_path), "--port", "0", "--workers", str(WORKERS)]
    with governor(tmp_path, "serve", *arguments, patience_s=PATIENCE_S) as run:
        yield run, run.ready()


def children(run: Governor) -> set[int]:
    """The workers that run."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == run.process.pid and b"governor_server.worker" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def scraped(port: int) -> dict[str, float]:
    """What some worker shows."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def requests(port: int) -> float:
    """Those that were answered so far, but for the scrapes."""
    return scraped(port).get('governor_requests_total{code="200",route="other"}', 0.0)


def restarts_by_each(run: Governor, port: int) -> list[float]:
    """What each worker shows while the others do nothing."""
    shown = []
    for worker in children(run):
        with ExitStack() as stack:
            for other in children(run) - {worker}:
                stack.enter_context(halted(other))
            shown.append(scraped(port)["governor_worker_restarts_total"])
    return shown


def feedback(port: int, conversation: str) -> int:
    """Says that it passed; the status of the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(
        "POST", "/governor/feedback", json.dumps({"conversation": conversation, "passed": True})
    )
    status = connection.getresponse().status
    connection.close()
    return status


def effect(port: int) -> dict[str, Any]:
    """What some worker says that governing did."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/governor/effect")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@contextmanager
def halted(worker: int) -> Iterator[None]:
    """The worker does nothing, so that another one answers."""
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def until_gone(workers: set[int]) -> None:
    """Else they are workers without a parent."""
    until(lambda: not any(map(fake_vllm.running, workers)), PATIENCE_S)


def test_several_workers_are_one_proxy(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine; what one worker counts, or is told, all show. A termination is passed on: requests are
    taken until the door is closed, which a second one does at once, and then all end well."""
    monkeypatch.setenv("GOVERNOR_SERVER__DRAIN_DELAY_S", "3600")
    with running(tmp_path) as (run, port):
        workers = children(run)
        assert len(workers) == WORKERS
        assert len(fake_vllm.diary(tmp_path, "arguments")) == 1
        for _ in range(40):
            assert get(port, "/v1/models") == 200
        first, second = workers
        with halted(second):
            assert feedback(port, "talk") == 200
            run.until(lambda: redis_server.client.xlen("governor:outcomes") == 1)
        with halted(first):
            run.until(lambda: effect(port)["scored_without_calls"] == 1)
        shown = [scraped(port) for _ in range(6)]
        answered = 'governor_requests_total{code="200",route="other"}'
        assert [each[answered] for each in shown] == [40] * 6
        assert all(each["governor_running_requests"] == 0 for each in shown)
        own = int(Path(f"/proc/{run.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        assert all(each["process_resident_memory_bytes"] > 1.5 * own for each in shown)
        assert all(each["governor_store_errors_total"] == 0 for each in shown)
        run.process.send_signal(signal.SIGTERM)
        run.until(lambda: get(port, "/readyz") == 503)
        assert get(port, "/v1/models") == 200
        assert run.end(signal.SIGTERM) == 0
        with pytest.raises(OSError):
            get(port, "/v1/models")
        assert "Traceback" not in run.read()
        assert run.read().endswith("governor: stopped\n")
        assert f"{WORKERS} workers" in run.read()
        assert not any(fake_vllm.running(worker) for worker in workers)
    assert fake_vllm.alive(tmp_path) == []
    assert list(tmp_path.glob("governor-metrics-*")) == []


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """The others go on meanwhile, what it had counted still counts, and so does its restart, whichever worker
    is asked."""
    with running(tmp_path) as (run, port):
        for _ in range(20):
            assert get(port, "/v1/models") == 200
        assert scraped(port)["governor_worker_restarts_total"] == 0
        victim, *_ = before = children(run)
        os.kill(victim, signal.SIGKILL)
        run.until(lambda: "died (SIGKILL); starting it again" in run.read())
        run.until(lambda: len(children(run) - {victim}) == len(before))
        for _ in range(20):
            assert get(port, "/v1/models") == 200
        assert requests(port) == 40
        assert scraped(port)["governor_running_requests"] == 0
        assert restarts_by_each(run, port) == [1] * WORKERS
        assert run.end(signal.SIGINT) == 0
        assert "Traceback" not in run.read()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Also with one that could not tell them."""
    with running(tmp_path) as (run, _):
        workers = children(run)
        run.process.kill()
        run.process.wait()
        until_gone(workers)


def test_an_engine_that_gives_up_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own error in the last line."""
    monkeypatch.setenv("GOVERNOR_ENGINE__MAX_QUICK_DEATHS", "1")
    arguments = ["--model", fake_vllm.model(tmp_path), "--port", "0", "--workers", str(WORKERS)]
    with governor(tmp_path, "serve", *arguments, patience_s=PATIENCE_S) as run:
        run.ready()
        workers = children(run)
        fake_vllm.end(tmp_path)
        assert run.ended() == 1
        assert "giving up" in run.read().splitlines()[-1]
        until_gone(workers)


def test_workers_that_cannot_start_end_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than being started over and over; the reason stands above."""
    # In the way of each worker's event loop, of which the parent has none.
    (tmp_path / "uvloop.py").write_text("raise RuntimeError('no loop today')")
    arguments = ["--model", fake_vllm.model(tmp_path), "--port", "0", "--workers", str(WORKERS)]
    with governor(tmp_path, "serve", *arguments, patience_s=PATIENCE_S) as run:
        assert run.ended() == 1
        assert re.search(r"worker \d could not start \(exit code 1\)", run.read().splitlines()[-1])
        assert "no loop today" in run.read()


def test_an_end_is_told_in_words() -> None:
    """In the line that says that a worker died."""
    assert (ending(-9), ending(1)) == ("SIGKILL", "exit code 1")
