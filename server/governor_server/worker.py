"""One of several processes that serve the same socket; `workers` starts it, and writes its `Job` to its
standard input."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING

from governor_server import guard

if TYPE_CHECKING:
    from governor_server.workers import Job


def main() -> int:
    """Serve until terminated; the return value is the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        job: Job = pickle.load(sys.stdin.buffer)
        # Should the parent be killed, this process ends as if it had been terminated.
        guard.control_process(guard.PR_SET_PDEATHSIG, signal.SIGTERM)
        return _work(job) if os.getppid() == job.parent else 0
    except (KeyboardInterrupt, EOFError):
        return 0


def _work(job: Job) -> int:
    # Imported here, so that a termination meanwhile is no traceback.
    from prometheus_client import CollectorRegistry

    from governor_server.app import create_app
    from governor_server.console import Console
    from governor_server.errors import ServerError
    from governor_server.logs import LoggedConsole, logging_to
    from governor_server.metrics import join_workers
    from governor_server.serve import serve
    from governor_server.workers import READY

    told = job.settings.server
    join_workers(job.number)
    with logging_to(sys.stderr, told.log_level, told.log_format):
        try:
            app = create_app(
                job.settings,
                upstream_url=job.upstream_url,
                registry=CollectorRegistry(),
                vocab_size=job.vocab_size,
            )
            serve(job.settings, app, socket.socket(fileno=job.listener), lambda: os.write(1, READY))
        except ServerError as error:
            console = LoggedConsole() if told.log_format == "json" else Console()
            console.say(f"worker {job.number}: {error}")
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
