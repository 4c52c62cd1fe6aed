"""A Redis of the test's own, to be killed, halted and started again."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.binaries import binary, environment
from tests.server.waiting import PATIENCE_S


class RedisServer:
    """A server behind a socket in `directory`; it keeps nothing when it is killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = binary("redis-server")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{directory}/redis.sock"
        self.client: Any = redis.Redis.from_url(self.url)

    def start(self) -> None:
        """Returns when it answers."""
        options = ["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--logfile", "log"]
        self._process = subprocess.Popen(
            [self._program, *options], cwd=self._directory, env=environment(self._program)
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.client.ping()
            except redis.RedisError:
                assert time.monotonic() < deadline and self._process.poll() is None, "no Redis"
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """At once, with all that it knows."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self.client.connection_pool.disconnect()

    def halt(self) -> None:
        """It takes connections, and does not answer."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After it was halted."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A Redis that runs; skips the test where there is none."""
    # pytest's own folders have names that are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="governor-redis-") as directory:
        server = RedisServer(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.go_on()
            server.kill()
            server.client.close()
