"""A real vLLM with the atlas model and governors in front of it, as child processes that end with this
one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from governor_training.atlas.tokenizer import VOCABULARY
from governor_training.atlas.tools import EFFECTFUL, READ_ONLY

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 30.0


class StartFailed(Exception):
    """A child ended, or did not get ready; its own message stands above."""


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(resources.files(__package__).joinpath("model")))


class Stack:
    """An engine, a governor that observes (and started the engine) and one that enforces.

    With `upstream` the engine is one that runs already and serves the model as `atlas`. Use it as a context
    manager: whatever happens inside, nothing is left running.
    """

    def __init__(self, model: Path, upstream: str | None = None) -> None:
        self._model, self._upstream = model, upstream
        self._engine, self._observing, self._enforcing = (_free_port() for _ in range(3))
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def engine(self) -> str:
        """Its address, without `/v1`."""
        return self._upstream or _url(self._engine)

    @property
    def observing(self) -> str:
        return _url(self._observing)

    @property
    def enforcing(self) -> str:
        return _url(self._enforcing)

    def __enter__(self) -> Self:
        try:
            observing = ["--port", str(self._observing), "--mode", "observe"]
            self._serve([*self._source(), *observing], {"GOVERNOR_OBSERVE__PROBE": "false"})
            self._wait(self._observing)
            self._serve(["--upstream", self.engine, "--port", str(self._enforcing), "--mode", "enforce"], {})
            self._wait(self._enforcing)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the children, last first, and waits until they are gone."""
        for child in reversed(self._children):
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    def _source(self) -> list[str]:
        """The flags that name or start the engine."""
        if self._upstream:
            return ["--upstream", self._upstream]
        return [
            *("--model", str(self._model), "--served-model-name", "atlas", "--reasoning-parser", "qwen3"),
            *("--engine-port", str(self._engine)),
        ]

    def _serve(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        tools = [part for name in READ_ONLY for part in ("--read-only", name)]
        tools += [part for name in EFFECTFUL for part in ("--effectful", name)]
        command = [sys.executable, "-m", "governor_server.cli", "serve", *arguments, *tools]
        own = {
            "GOVERNOR_CONFIG": os.devnull,
            "GOVERNOR_STORE__PATH": ":memory:",
            "GOVERNOR_GOVERNANCE__VOCAB_SIZE": str(VOCABULARY),
            **environment,
        }
        # The guard ends the command when its standard input ends: on `stop`, and however this process dies. A
        # session of its own, so that a Ctrl-C of the terminal reaches us alone and the order is ours.
        guarded = [sys.executable, "-m", "governor_server.guard", *command]
        self._children.append(
            subprocess.Popen(
                guarded, stdin=subprocess.PIPE, env={**os.environ, **own}, start_new_session=True
            )
        )

    def _wait(self, port: int) -> None:
        began = time.monotonic()
        while time.monotonic() - began < START_TIMEOUT_S:
            if any(child.poll() is not None for child in self._children):
                raise StartFailed("a part of the demonstration did not start")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.5)
        raise StartFailed(f"nothing was ready after {START_TIMEOUT_S:.0f} seconds")


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
