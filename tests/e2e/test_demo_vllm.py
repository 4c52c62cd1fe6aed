"""The whole path: agent, governor, real vLLM, tools, with the claims that the README makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from governor_server.engine import Engine

DEMO = [sys.executable, "-m", "governor_server.cli", "demo"]


def test_the_demonstration_keeps_its_promises(engine: Engine, tmp_path: Path) -> None:
    """Far fewer calls and fewer tokens at the same accuracy; hardly a needed call withheld, no effectful
    one."""
    command = [*DEMO, "--upstream", engine.url, "--questions", "80", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    before, after = summary["ungoverned"], summary["governed"]
    removed, needed = summary["avoidable_calls_removed"], summary["needed_calls_withheld"]
    effectful = summary["effectful_calls_withheld"]
    assert removed["count"] >= 0.8 * removed["total"] > 0
    assert needed["count"] <= 0.05 * needed["total"]
    assert effectful["count"] == 0 < effectful["total"]
    assert after["calls_per_question"] <= 0.6 * before["calls_per_question"]
    # One point is one question of a hundred: with fewer, one question may come out otherwise.
    assert after["accuracy"] >= before["accuracy"] - 1 / before["questions"]
    assert after["total_tokens"] < before["total_tokens"]
    assert (tmp_path / "conversation.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_leaves_nothing_running(engine: Engine, tmp_path: Path) -> None:
    """Interrupted in the middle, the demonstration takes all of its processes with it."""
    mark = uuid.uuid4().hex
    command = [*DEMO, "--upstream", engine.url, "--out", str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, "DEMO_MARK": mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as demo:
        _wait_for(lambda: len(_marked(mark)) >= 5, 600)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=300)
    assert demo.returncode == 130
    assert b"Traceback" not in output
    _wait_for(lambda: not _marked(mark), 60)


def _marked(mark: str) -> list[int]:
    """Processes that inherited the mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
