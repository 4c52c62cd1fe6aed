"""Several processes that serve one socket: started, watched, started again when they die, and ended together.

The parent binds the socket, and the engine is its child alone. Each worker is a fresh interpreter that gets
the socket, and what it is to do through its standard input (`worker`); it has a session of its own, so that
Ctrl-C reaches it once, through the parent. It is ended with the parent, however that one ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from prometheus_client import CollectorRegistry

from governor_server.console import Console
from governor_server.engine import backoff
from governor_server.errors import ServerError
from governor_server.metrics import (
    MULTIPROCESS_DIR,
    PARENT,
    Metrics,
    join_workers,
    mark_worker_dead,
    write_workers,
)
from governor_server.settings import Settings

READY = b"ready\n"
"""What a worker writes to its standard output once it serves."""
POLL_S = 0.1
QUICK_DEATH_S = 10.0
"""A worker that dies this soon after it served waits longer each time before it is started again."""
PATIENCE_S = 5.0
"""How much longer than a drain may take a worker has before it is killed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do. `listener` is the number of its open file; `number` names its metrics."""

    settings: Settings
    upstream_url: str
    vocab_size: int | None
    listener: int
    number: int
    parent: int


class Worker:
    """One place among the workers, and the process that has it now. `start_at` is when, in monotonic seconds,
    a process that died is to be replaced; 0 before the first death."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_at: float | None = None
        self.start_at = 0.0
        self.quick_deaths = 0

    def __repr__(self) -> str:
        pid = self.process.pid if self.process else None
        return f"<Worker {self.number} [pid {pid}, {'ready' if self.ready_at else 'not ready'}]>"

    def start(self, job: Job) -> None:
        """Returns at once; `look` tells when it serves."""
        self.ready_at = None
        self.process = subprocess.Popen(
            # Without the folder that this was started in, whose files are nobody's modules.
            [sys.executable, "-P", "-m", "governor_server.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(job.listener,),
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            pickle.dump(job, stdin)

    def look(self) -> int | None:
        """Notices whether it serves by now. The exit code of one that ended, below 0 for a signal."""
        if self.process is None:
            return None
        assert self.process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            if self.ready_at is None and os.read(self.process.stdout.fileno(), len(READY)) == READY:
                self.ready_at = time.monotonic()
        code = self.process.poll()
        if code is not None:
            self.process.stdout.close()
            self.process = None
        return code

    def send(self, number: int) -> None:
        """A signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)


class Workers:
    """The workers of one proxy, on `listener`. Of the methods only `fail` may be called from any thread.
    `metrics` are this process's own, of which each worker's scrape shows the counters."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        upstream_url: str,
        vocab_size: int | None,
        console: Console,
        metrics: Metrics,
    ) -> None:
        self.listener = listener
        self.metrics = metrics
        self._settings = settings
        self._failure: ServerError | None = None
        self._upstream_url = upstream_url
        self._vocab_size = vocab_size
        self._console = console
        self._workers = [Worker(number) for number in range(1, settings.server.workers + 1)]
        self._signals: deque[int] = deque()
        self._served = False
        self._kill_at: float | None = None

    def fail(self, failure: ServerError) -> None:
        """End them all, because going on makes no sense."""
        self._failure = failure

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until terminated; `on_ready` is called when all of them do. Raises `ServerError` where one
        cannot start, and what `fail` was told."""
        with self._signalled():
            try:
                while self._kill_at is None or self._running():
                    self._turn(on_ready)
                    time.sleep(POLL_S)
            finally:
                for worker in self._workers:
                    worker.send(signal.SIGKILL)
        if self._failure is not None:
            raise self._failure

    def _turn(self, on_ready: Callable[[], None]) -> None:
        while self._signals:
            self._end(self._signals.popleft())
        if self._failure is not None and self._kill_at is None:
            self._end(signal.SIGTERM)
        for worker in self._workers:
            code = worker.look()
            if code is not None:
                self._died(worker, code)
            elif worker.process is None and self._kill_at is None and time.monotonic() >= worker.start_at:
                self._start(worker)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            for worker in self._running():
                worker.send(signal.SIGKILL)
        if not self._served and self._kill_at is None and all(worker.ready_at for worker in self._workers):
            self._served = True
            on_ready()

    def _running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.process is not None]

    def _start(self, worker: Worker) -> None:
        if worker.start_at > 0:
            self.metrics.worker_restarts_total.inc()
        worker.start(
            Job(
                self._settings,
                self._upstream_url,
                self._vocab_size,
                self.listener.fileno(),
                worker.number,
                os.getpid(),
            )
        )
        self._tell_metrics()

    def _died(self, worker: Worker, code: int) -> None:
        mark_worker_dead(worker.number)
        self._tell_metrics()
        if self._kill_at is not None:
            return
        if not self._served:
            self.fail(
                ServerError(
                    f"worker {worker.number} could not start ({ending(code)}); the lines above say why"
                )
            )
            return
        quickly = worker.ready_at is None or time.monotonic() - worker.ready_at < QUICK_DEATH_S
        worker.quick_deaths = worker.quick_deaths + 1 if quickly else 0
        delay_s = backoff(worker.quick_deaths) if quickly else 0.0
        worker.start_at = time.monotonic() + delay_s
        self._console.say(
            f"worker {worker.number} died ({ending(code)}); starting it again in {delay_s:.0f} s"
        )

    def _end(self, number: int) -> None:
        """Pass a signal on. Those who come from now on are refused once the last worker closes its door."""
        if self._kill_at is None:
            given = self._settings.server
            self._kill_at = time.monotonic() + given.drain_delay_s + given.shutdown_grace_s + PATIENCE_S
            self.listener.close()
        for worker in self._workers:
            worker.send(number)

    def _tell_metrics(self) -> None:
        running = [worker.process.pid for worker in self._workers if worker.process is not None]
        write_workers([os.getpid(), *running])

    @contextmanager
    def _signalled(self) -> Iterator[None]:
        def take(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def shared_metrics() -> Iterator[Metrics]:
    """The metrics of this process, in a folder with those of the processes that it starts; it is there as
    long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="governor-metrics-") as folder:
        before = os.environ.get(MULTIPROCESS_DIR)
        os.environ[MULTIPROCESS_DIR] = folder
        join_workers(PARENT)
        try:
            yield Metrics(CollectorRegistry())
        finally:
            os.environ.pop(MULTIPROCESS_DIR)
            if before is not None:
                os.environ[MULTIPROCESS_DIR] = before


def ending(code: int) -> str:
    """An exit code in words.

    >>> ending(-9), ending(1)
    ('SIGKILL', 'exit code 1')
    """
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
