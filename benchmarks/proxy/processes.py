"""Programs that run beside the benchmark, each on a core of its own, and what they use up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 15.0
_SCHEDULED: Final = 2
"""CPUCLOCK_SCHED of Linux: the time that a process ran, in user and system mode, in nanoseconds."""


class ProcessFailed(Exception):
    """A program did not start, or did not go on."""


@dataclass(frozen=True, slots=True)
class Running:
    """A program that serves, with its process tree."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of the tree so far; of processes that have ended, nothing."""
        return sum(_cpu_s(pid) for pid in tree(self.process.pid))

    def rss_bytes(self) -> int:
        """Resident memory of the tree; shared pages count in each process."""
        return sum(rss_bytes(pid) for pid in tree(self.process.pid))

    def get(self, path: str) -> bytes:
        """The body of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            body: bytes = answer.read()
            return body


def tree(pid: int) -> Sequence[int]:
    """A process, its children, theirs, and so on."""
    found = [pid]
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [one for child in children.read_text().split() for one in tree(int(child))]
    return found


def _cpu_s(pid: int) -> float:
    # clock_getcpuclockid(3): the complement of the process id, and which of its clocks.
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | _SCHEDULED)
    return 0.0


def rss_bytes(pid: int) -> int:
    """Resident memory of one process; 0 of one that has ended."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    core: int | None = None,
    ready: str = "/health",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run `command` until the end of the context; entered when `ready` answers with 200.

    Raises `ProcessFailed` with the end of its log.
    """
    program = start(name, command, port, log, core=core, environment=environment)
    try:
        wait_ready(program, ready)
        yield program
    finally:
        stop(program)


def start(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start `command`, its output in `log`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    if core is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, {core})
    return Running(name, port, process, log)


def wait_ready(program: Running, path: str | None) -> None:
    """Return when `path` answers with 200; where there is none, when connections are taken. Raises
    `ProcessFailed`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if program.process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError):
            if path is None:
                socket.create_connection(("127.0.0.1", program.port), 1.0).close()
            else:
                program.get(path)
            return
        time.sleep(0.05)
    tail = program.log.read_text(errors="replace").splitlines()[-8:]
    raise ProcessFailed(f"{program.name} is not ready at port {program.port}:\n" + "\n".join(tail))


def stop(program: Running) -> None:
    """End the program and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(STOP_TIMEOUT_S)
            return
