"""A real vLLM and governors in front of it, as child processes that end with this one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from governor_training.environment import Environment
from governor_training.errors import StartFailed, Unreachable

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 30.0
REACH_TIMEOUT_S = 10.0
ENV_PREFIX = "GOVERNOR_"
SEQUENCES = 16
"""At the same time in the engine."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model and how it is served: either the folder (or name) `model`, which vLLM is started with, or the
    address `upstream` (without `/v1`) of a server that has it already."""

    name: str
    model: str | Path | None = None
    upstream: str | None = None
    reasoning_parser: str | None = "qwen3"
    vocab_size: int | None = None


class Stack:
    """An engine, and any number of governors before it.

    Use it as a context manager: whatever happens inside, nothing is left running.
    """

    def __init__(self, served: Served, environment: Environment) -> None:
        self._served, self._environment = served, environment
        self._engine: str | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def engine(self) -> str:
        """Its address, without `/v1`."""
        if self._served.upstream:
            return self._served.upstream.rstrip("/").removesuffix("/v1").rstrip("/")
        if self._engine is None:
            raise StartFailed("the engine is not started")
        return self._engine

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens of the model, where it can be known."""
        return self._served.vocab_size or _vocabulary(self._served.model)

    def __enter__(self) -> Self:
        """Raises `StartFailed`, and `Unreachable` where the server that runs already does not."""
        if self._served.upstream:
            _reach(self.engine)
        else:
            try:
                self._start_engine()
            except BaseException:
                self.stop()
                raise
        return self

    def _start_engine(self) -> None:
        """A governor brings vLLM with it, checked and warmed up; we talk to the engine behind it."""
        port = _free_port()
        serve = ["--model", str(self._served.model), "--served-model-name", self._served.name]
        if self._served.reasoning_parser:
            serve += ["--reasoning-parser", self._served.reasoning_parser]
        start = {"ENGINE__START_TIMEOUT_S": str(START_TIMEOUT_S), "ENGINE__MAX_NUM_SEQS": str(SEQUENCES)}
        self._serve([*serve, "--engine-port", str(port)], start)
        self._engine = f"http://127.0.0.1:{port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def governor(self, overrides: Mapping[str, str]) -> str:
        """Starts a governor and returns its address, without `/v1`, when it is ready.

        `overrides` are settings by the names that they have in the environment, without the prefix:
        `{"GOVERNANCE__MODE": "enforce"}`. Raises `StartFailed`.
        """
        tools = [part for name in sorted(self._environment.read_only) for part in ("--read-only", name)]
        tools += [part for name in sorted(self._environment.effectful) for part in ("--effectful", name)]
        vocabulary = {"GOVERNANCE__VOCAB_SIZE": str(self.vocab_size)} if self.vocab_size else {}
        return self._serve(["--upstream", self.engine, *tools], {**vocabulary, **overrides})

    def _serve(self, arguments: Sequence[str], overrides: Mapping[str, str]) -> str:
        port = _free_port()
        own = {"CONFIG": os.devnull, "STORE__PATH": ":memory:", "SERVER__LOG_LEVEL": "warning"}
        variables = {f"{ENV_PREFIX}{name}": value for name, value in {**own, **overrides}.items()}
        # The guard ends the command when its standard input ends: on `stop`, and however this process dies. A
        # session of its own, so that a Ctrl-C of the terminal reaches us alone and the order is ours.
        command = [sys.executable, "-m", "governor_server.cli", "serve", "--port", str(port), *arguments]
        child = subprocess.Popen(
            [sys.executable, "-m", "governor_server.guard", *command],
            stdin=subprocess.PIPE,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        self._children.append(child)
        url = f"http://127.0.0.1:{port}"
        _wait(url, child)
        return url

    def stop(self) -> None:
        """Ends the children, last first, then the engine, and waits until they are gone."""
        for child in reversed(self._children):
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()
        self._engine = None


def _reach(url: str) -> None:
    """A governor waits for its upstream; whoever measures should not."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # It answers.
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"nothing answers at {url}: {error} (start that server, or correct --upstream)"
        ) from None


def _wait(url: str, child: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START_TIMEOUT_S:
        if child.poll() is not None:
            raise StartFailed("a governor did not start")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise StartFailed(f"nothing was ready after {START_TIMEOUT_S:.0f} seconds")


def _vocabulary(model: str | Path | None) -> int | None:
    """As the folder of the model says; None for a name."""
    try:
        config = json.loads((Path(model or "") / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    size = config.get("vocab_size")
    return size if isinstance(size, int) else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
