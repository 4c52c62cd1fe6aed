"""What the parts of the proxy that a request does not pass through, such as its spans, know of it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from governor.decision import Decision

if TYPE_CHECKING:
    from governor_server.tracing.request_trace import RequestTrace

SANE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""What a client may call its request: nothing that breaks a line of a log, or that fills it."""


@dataclass(slots=True)
class CurrentRequest:
    """The request that a task works on, and the tasks that it starts.

    `route` is that of the metrics, `model` is "" until the body was read. `decisions` counts the calls of its
    answer by what became of them, as far as it was decided, and `proposed` by what enforcing would have made
    of them. `trace` is None where nothing is traced.
    """

    id: str
    route: str
    tenant: str = ""
    model: str = ""
    decisions: Mapping[str, int] = field(default_factory=dict)
    proposed: Mapping[str, int] = field(default_factory=dict)
    trace: RequestTrace | None = None

    def decided(self, decisions: Iterable[Decision]) -> None:
        """What became of the calls of its answer."""
        decisions = tuple(decisions)
        self.decisions = Counter(decision.action.value for decision in decisions)
        self.proposed = Counter(decision.proposed.value for decision in decisions)

    def told(self) -> str:
        """The decisions in words, "" where there are none."""
        return ", ".join(f"{count} {name}" for name, count in self.decisions.items())


current: ContextVar[CurrentRequest | None] = ContextVar("current", default=None)


def current_trace() -> RequestTrace | None:
    """The spans of the request that this task works on, if they are recorded."""
    request = current.get()
    return request.trace if request is not None else None


def new_name() -> str:
    """One that nothing else has: 32 hexadecimal digits. It need not be hard to guess."""
    return f"{random.getrandbits(128):032x}"


def request_id(given: str) -> str:
    """The client's name for its request where it is one, else a fresh one."""
    return given if SANE_ID.fullmatch(given) else new_name()
