"""vLLM as a child process: checked before it is started, watched while it runs, gone when we are.

`launch` knows how it is started, `guard` how it is ended.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from governor_server import guard, launch
from governor_server.errors import EngineError, PortInUse
from governor_server.settings import EngineSettings

POLL_S = 0.5
HEALTH_TIMEOUT_S = 5.0
WARM_UP_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = guard.GRACE_S + 5.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
TAIL_BYTES = 65_536
TAIL_LINES = 12

ERROR_LINE = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception|Interrupt|error)\b: \S.*)$")

Say = Callable[[str], None]
"""Takes one line for the operator: what is going on, or what went wrong."""


class Engine:
    """One vLLM server: `start`, `wait_ready`, perhaps `supervise`, and `stop` in the end.

    As a context manager it starts and stops. `say` gets the lines that an operator should
    not miss, `progress` those that the next one replaces. All methods may be called from any thread.
    """

    def __init__(
        self, settings: EngineSettings, say: Say = lambda line: None, progress: Say = lambda line: None
    ) -> None:
        """Raises `EngineError` when the model or vLLM is not there, `PortInUse` when the port is taken."""
        if settings.model is None:
            raise EngineError("no model is named: use --model, or engine.model in the configuration")
        self.settings = settings
        self.model = launch.Model.find(settings.model)
        self.build = launch.installed_build()
        self.port = free_port(settings.host, settings.port)
        self.log_path = settings.log_file or _temporary_log()
        self.restarts = 0
        self._say = say
        self._progress = progress
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._ready: float | None = None
        self._failed = False
        self._stopping = threading.Event()

    def __repr__(self) -> str:
        return f"<Engine {self.model.name} [{self.url}, {'running' if self.running else 'stopped'}]>"

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it answers, without `/v1`."""
        return f"http://{self._address}:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens in the model's vocabulary, where it can be known."""
        return self.model.vocab_size()

    def start(self) -> None:
        """Start the process and return at once. Does nothing after `stop`."""
        line = launch.command(self.settings, self.model, self.build, self.port)
        environment = launch.environment(self.settings, self.model, self.build, os.environ)
        with self._lock:
            if self._stopping.is_set():
                return
            _let_go(self._process)
            self._ready = None
            self._started = time.monotonic()
            with self._open_log() as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", guard.__file__, *line],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )

    def wait_ready(self) -> None:
        """Return when it has answered a request like those that the proxy sends.

        The first request with logprobs compiles a helper and takes half a minute; it is made here, so that no
        client has to wait for it. Raises `EngineError` when the process dies or `start_timeout_s` is over.
        """
        while not self._healthy():
            self._check_alive()
            elapsed = time.monotonic() - self._started
            if elapsed > self.settings.start_timeout_s:
                self._end()
                raise self._failure(f"vLLM was not ready after {elapsed:.0f} s (engine.start_timeout_s)")
            self._progress(f"vLLM is starting: {elapsed:.0f} s (a minute or two on a CPU)")
            time.sleep(POLL_S)
        self._warm_up()
        self._ready = time.monotonic()
        self._say(f"vLLM is ready after {self._ready - self._started:.0f} s")

    def supervise(
        self, on_failure: Callable[[EngineError], None], on_restart: Callable[[], None] = lambda: None
    ) -> None:
        """From now on start it again when it dies; on giving up call `on_failure`, from another thread."""
        threading.Thread(
            target=self._watch, args=(on_failure, on_restart), name="governor-engine", daemon=True
        ).start()

    def stop(self) -> None:
        """End it and all of its processes, and return when they are gone. Its log is kept if it failed."""
        self._stopping.set()
        self._end()
        if not self._failed and self.settings.log_file is None:
            self.log_path.unlink(missing_ok=True)

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of its log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    @property
    def _address(self) -> str:
        return "127.0.0.1" if self.settings.host in ("0.0.0.0", "::", "") else self.settings.host

    def _open_log(self) -> Any:
        try:
            return self.log_path.open("ab" if self.restarts else "wb")
        except OSError as error:
            raise EngineError(f"cannot write vLLM's log: {error} (engine.log_file)") from None

    def _watch(self, on_failure: Callable[[EngineError], None], on_restart: Callable[[], None]) -> None:
        quick_deaths = 0
        while self._process is not None:
            self._process.wait()
            if self._stopping.is_set():
                return
            quick_deaths = quick_deaths + 1 if self._died_quickly() else 0
            if quick_deaths >= self.settings.max_quick_deaths:
                on_failure(self._failure(f"vLLM died {quick_deaths} times in a row, giving up"))
                return
            delay = backoff(quick_deaths)
            self._say(f"vLLM died: {cause(self.tail(200))}; starting it again in {delay:.0f} s")
            if self._stopping.wait(delay):
                return
            self.restarts += 1
            on_restart()
            self._restart()

    def _restart(self) -> None:
        self.start()
        with contextlib.suppress(EngineError):
            self.wait_ready()

    def _died_quickly(self) -> bool:
        return self._ready is None or time.monotonic() - self._ready < self.settings.quick_death_s

    def _healthy(self) -> bool:
        try:
            return self._request("GET", "/health", timeout=HEALTH_TIMEOUT_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _warm_up(self) -> None:
        self._progress("vLLM is warming up: the first request with logprobs can take half a minute")
        try:
            name = json.loads(self._request("GET", "/v1/models", timeout=HEALTH_TIMEOUT_S)[1])["data"][0][
                "id"
            ]
            status, body = self._request(
                "POST", "/v1/chat/completions", warm_up_request(name, self.settings.max_logprobs)
            )
        except (OSError, http.client.HTTPException, LookupError, ValueError) as error:
            self._check_alive()
            raise self._failure(f"vLLM did not answer its first request: {error!r}") from None
        if status != 200:
            # For the client to see in full: the model may have no chat template, say.
            self._say(f"vLLM refused the warm-up request with status {status}: {body[:200]!r}")

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float = WARM_UP_TIMEOUT_S,
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(self._address, self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()

    def _check_alive(self) -> None:
        if self.running:
            return
        if self._stopping.is_set():
            raise EngineError("vLLM was stopped")
        raise self._failure(f"vLLM died after {time.monotonic() - self._started:.0f} s")

    def _failure(self, what: str) -> EngineError:
        self._failed = True
        return EngineError(f"{what}: {cause(self.tail(200))} (its log: {self.log_path})")

    def _end(self) -> None:
        with self._lock:
            process = self._process
            if process is None:
                return
            _let_go(process)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port(host: str, port: int) -> int:
    """`port` if nobody listens there, and some free one for 0.

    Raises `PortInUse`, or `EngineError` for a host that is none of this machine's.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except PermissionError:
        raise PortInUse(f"no permission to listen on port {port}: choose one above 1023") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {port} on {host} is in use by another program: choose another") from None
        raise EngineError(f"cannot listen on {host}: {error}") from None


def warm_up_request(model: str, max_logprobs: int) -> dict[str, Any]:
    """A chat request with tools and logprobs, like an agent's through the proxy, that costs few tokens."""
    function = {
        "name": "warm_up",
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {}},
    }
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": function}],
        "max_tokens": 2,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20 if max_logprobs < 0 else min(20, max_logprobs),
    }


def backoff(quick_deaths: int) -> float:
    """Seconds to wait before starting it again: 1, 1, 2, 4 ... up to a minute."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** max(0, quick_deaths - 1))


def cause(lines: Iterable[str]) -> str:
    """The line of vLLM's log that best says why it died: its last error that is not about another one."""
    lines = list(lines)
    errors = [match.group(1) for line in lines if (match := ERROR_LINE.search(line))]
    own = [error for error in errors if "root cause" not in error]
    best = next(reversed(own or errors or lines), "it left no message")
    return best if len(best) <= 300 else best[:297] + "..."


def _let_go(process: subprocess.Popen[bytes] | None) -> None:
    """Close what the guard holds on to, upon which it ends vLLM."""
    if process is not None and process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="governor-vllm-", suffix=".log")
    os.close(handle)
    return Path(name)
