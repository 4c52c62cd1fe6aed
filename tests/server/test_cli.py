from __future__ import annotations

import http.client
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest

from governor_server.cli import main
from governor_server.console import Console
from tests.server import fake_vllm
from tests.server.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any configuration file, with state and temporary files of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("GOVERNOR_SERVER__DRAIN_DELAY_S", "0")


@pytest.fixture
def upstream() -> Iterator[str]:
    """The address of a server that answers 501 to everything."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Refusal(http.server.BaseHTTPRequestHandler):
    """Knows no method."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class Governor:
    """A `governor` in its own process; `read` returns all that it has written to standard error so far.
    Nothing is waited for longer than `patience_s`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, patience_s: float) -> None:
        self.process = process
        self._log = log
        self._patience_s = patience_s

    def read(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._patience_s
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.read()
            time.sleep(0.02)

    def ready(self) -> int:
        """Wait for the proxy to listen, and return its port."""
        self.until(lambda: "ready: base_url" in self.read())
        found = re.search(r"base_url http://127\.0\.0\.1:(\d+)/v1", self.read())
        assert found
        return int(found.group(1))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for it to end by itself, and return its exit code."""
        return self.process.wait(self._patience_s)


@contextmanager
def governor(directory: Path, *arguments: str, patience_s: float = PATIENCE_S) -> Iterator[Governor]:
    log = directory / "stderr"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "governor_server.cli", *arguments], stderr=file)
    try:
        yield Governor(process, log, patience_s)
    finally:
        process.kill()
        process.wait()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["serve"], 2, "nothing to govern: give --model"),
        (["serve", "--nonsense"], 2, "--nonsense"),
        (["serve", "--mode", "enforec"], 2, "governance.mode (from the command line)"),
        (["serve", "--model", "a", "--upstream", "http://b"], 2, "keep one of them"),
        (["serve", "--config", "nowhere.yaml"], 2, "no such configuration file: nowhere.yaml"),
        (["serve", "--upstream", "ftp://a"], 2, "upstream.url"),
        (["serve", "--model", "./nowhere"], 1, "no model directory at nowhere"),
        (
            ["serve", "--upstream", "http://127.0.0.1:9", "--host", "203.0.113.1"],
            1,
            "cannot listen to port 0 on 203.0.113.1",
        ),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_predictable_failure_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback: the line says what is wrong and what to do."""
    assert main([*arguments, "--port", "0"] if arguments[0] == "serve" else arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("governor: ")
    assert output.err.count("\n") == 1
    assert part in output.err


def test_a_port_in_use_is_told_before_the_engine_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a minute later."""
    fake_vllm.install(tmp_path, monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", fake_vllm.model(tmp_path), "--port", port]) == 1
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert fake_vllm.diary(tmp_path, "pid") == []


def test_the_settings_that_result_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Flags, the file that is found in the directory, and what follows `--` for vLLM."""
    (tmp_path / "governor.yaml").write_text("upstream: {url: 'http://a'}\nprobe: {max_tokens: 5}")
    flags = ["--model", "m", "--read-only", "a", "--read-only", "b*", "--print-config"]
    assert main(["serve", *flags, "--", "--max-num-seqs", "8"]) == 0
    printed = capsys.readouterr().out
    for line in ("  model: m\n", "  url: null\n", "  max_tokens: 5\n", "  - --max-num-seqs\n  - '8'\n"):
        assert line in printed
    assert "  read_only:\n  - a\n  - b*\n" in printed


def test_help_and_version_need_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """They are what one tries first, and what a bug report needs."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"tool-governor \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main(["version"]) == 0
    assert re.match(r"tool-governor \d+\.\d+\.\d+\npython 3\.", capsys.readouterr().out)
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    assert "examples:" in capsys.readouterr().out
    assert main([]) == 2
    assert "usage: governor" in capsys.readouterr().err


def test_no_heavy_module_is_imported_before_it_is_needed() -> None:
    """`governor version` should not take the seconds that a web framework or torch takes."""
    program = (
        "import sys, governor_server.cli as cli; cli.main(['version']);"
        "print(sorted({'fastapi', 'uvicorn', 'pydantic', 'torch', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_it_serves_in_front_of_a_server_that_runs(upstream: str, tmp_path: Path) -> None:
    """Until it is terminated, and then it ends well."""
    with governor(tmp_path, "serve", "--upstream", f"{upstream}/v1", "--port", "0") as run:
        port = run.ready()
        assert get(port, "/healthz") == 200
        assert get(port, "/v1/models") == 501
        assert run.end(signal.SIGTERM) == 0
        assert run.read().endswith("governor: stopped\n")
        assert "Traceback" not in run.read()
        assert "withholds nothing" in run.read()


def test_it_starts_while_upstream_is_down(tmp_path: Path) -> None:
    """It is alive and not ready, and one line says what to do: whoever starts it again and again helps
    nobody."""
    with governor(tmp_path, "serve", "--upstream", f"http://127.0.0.1:{free_port()}", "--port", "0") as run:
        run.until(lambda: "waiting for upstream: base_url" in run.read())
        found = re.search(r"base_url http://127\.0\.0\.1:(\d+)/v1", run.read())
        assert found
        port = int(found.group(1))
        assert get(port, "/healthz") == 200
        assert get(port, "/readyz") == 503
        assert get(port, "/v1/models") == 502
        assert run.end(signal.SIGTERM) == 0
        assert run.read().count("start that server, or correct upstream.url") == 1
        assert "Traceback" not in run.read()


def free_port() -> int:
    """Nobody listens there now."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_it_leaves_nothing_running(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM and its workers are gone when the command returns."""
    fake_vllm.install(tmp_path, monkeypatch)
    with governor(tmp_path, "serve", "--model", fake_vllm.model(tmp_path), "--port", "0") as run:
        port = run.ready()
        assert get(port, "/readyz") == 200
        assert len(fake_vllm.alive(tmp_path)) == 2
        assert run.end(number) == 0
        assert fake_vllm.alive(tmp_path) == []
        assert "Traceback" not in run.read()


def test_interrupting_the_start_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes minutes, so that people lose patience."""
    fake_vllm.install(tmp_path, monkeypatch)
    model = fake_vllm.model(tmp_path)
    with governor(tmp_path, "serve", "--model", model, "--port", "0", "--", "--fake", "hang") as run:
        run.until(lambda: len(fake_vllm.diary(tmp_path, "pid")) == 2)
        assert run.end(signal.SIGINT) == 130
        assert fake_vllm.alive(tmp_path) == []
        assert "Traceback" not in run.read()


def test_an_engine_that_cannot_start_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engine's own error in the last line."""
    fake_vllm.install(tmp_path, monkeypatch)
    model = fake_vllm.model(tmp_path)
    log = tmp_path / "vllm.log"
    monkeypatch.setenv("GOVERNOR_ENGINE__LOG_FILE", str(log))
    with governor(tmp_path, "serve", "--model", model, "--port", "0", "--", "--fake", "die") as run:
        assert run.ended() == 1
        assert fake_vllm.LAST_WORDS in run.read().splitlines()[-1]
        assert "Traceback" not in run.read()
        assert log.exists()


def test_an_engine_that_keeps_dying_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orchestrator then knows, and restarts or reports."""
    fake_vllm.install(tmp_path, monkeypatch)
    model = fake_vllm.model(tmp_path)
    monkeypatch.setenv("GOVERNOR_ENGINE__MAX_QUICK_DEATHS", "1")
    with governor(tmp_path, "serve", "--model", model, "--port", "0") as run:
        run.ready()
        fake_vllm.end(tmp_path)
        assert run.ended() == 1
        assert "giving up" in run.read().splitlines()[-1]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_a_line_now_and_then_in_a_log() -> None:
    """A later line that is shorter wipes what stood there."""
    for stream, text in (
        (Terminal(), "\rgovernor: long line\rgovernor: short    \rgovernor: end      \n"),
        (StringIO(), "governor: long line\ngovernor: end\n"),
    ):
        console = Console(stream)
        console.progress("long line")
        console.progress("short")
        console.say("end")
        assert stream.getvalue().replace(" ", "") == text.replace(" ", "")
        assert os.linesep.join(stream.getvalue().splitlines()).count("end") == 1
