"""The log: lines of text or of JSON on standard error, each with the request that it is about.

A thread writes them, so that whoever reads them slowly, or not at all, holds up no request: lines that cannot
wait are dropped and counted. No line holds a prompt, a result, an answer or a key; the level `debug` may tell
what an exception says, and with it some of that.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO

from governor_server.console import Console
from governor_server.current import current

Format = Literal["text", "json"]

MAX_WAITING: Final = 10_000
"""Lines that are not written yet."""
CLOSE_S: Final = 2.0
"""How long the end waits for the last of them."""
log = logging.getLogger(__name__)


def fields(**values: object) -> Mapping[str, Any]:
    """What a line tells beside its message, for the argument `extra`; only JSON has it, as keys of their
    own."""
    return {"fields": values}


class TextLines(logging.Formatter):
    """A line for people, with the request's id at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        request = getattr(record, "request", None)
        # An exception's frames come after the first line.
        first, newline, rest = line.partition("\n")
        return f"{first} ({request.id}){newline}{rest}" if request is not None else line


class JsonLines(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`; of a request `request_id` and
    `tenant`; and the fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = getattr(record, "request", None)
        if request is not None:
            told["request_id"] = request.id
            told["tenant"] = request.tenant
        told |= getattr(record, "fields", {})
        return json.dumps(told, default=str)


class LogQueue(QueueHandler):
    """Hands lines to the thread that writes them; `dropped` is called for each that would have to wait behind
    too many."""

    def __init__(self, queue: SimpleQueue[Any], dropped: Callable[[], None] = lambda: None) -> None:
        super().__init__(queue)
        self._waiting = queue
        self.dropped = dropped

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The line as it is now, with the request that this task works on."""
        prepared: logging.LogRecord = super().prepare(record)
        prepared.request = current.get()
        return prepared

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        if self._waiting.qsize() >= MAX_WAITING:
            self.dropped()
        else:
            self._waiting.put(record)


class Lines(logging.StreamHandler[TextIO]):
    """Writes, in the one thread that does. Without a lock: nobody is to wait for it at the end either."""

    def createLock(self) -> None:
        self.lock = None


class LoggedConsole(Console):
    """What the operator reads as lines of the log, where a program is to read them all."""

    def __init__(self) -> None:
        super().__init__(StringIO())

    def _write(self, text: str) -> None:
        log.info("%s", text.strip().removeprefix("governor: "))


@contextmanager
def logging_to(stream: TextIO, level: str, form: Format) -> Iterator[None]:
    """The log of this process goes to `stream` while the context lasts."""
    lines = Lines(stream)
    lines.setFormatter(JsonLines() if form == "json" else TextLines())
    queue: SimpleQueue[Any] = SimpleQueue()
    listener = QueueListener(queue, lines)
    root = logging.getLogger()
    before, was = root.handlers[:], root.level
    root.handlers[:] = [LogQueue(queue)]
    root.setLevel(level.upper())
    for chatty in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(was)
        # Whoever reads the log may have stopped: the end does not wait for that.
        stopping = threading.Thread(target=listener.stop, daemon=True)
        stopping.start()
        stopping.join(CLOSE_S)


def count_dropped(count: Callable[[], None]) -> None:
    """Call `count` for each line that is dropped from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueue):
            handler.dropped = count
