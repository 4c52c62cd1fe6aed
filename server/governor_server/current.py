"""What the parts of the proxy that a request does not pass through, such as its spans, know of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from governor_server.tracing import RequestTrace


@dataclass(slots=True)
class CurrentRequest:
    """The request that a task works on, and the tasks that it starts. `route` is that of the metrics; `model`
    is "" until the body was read; `trace` is None where nothing is traced."""

    route: str
    tenant: str = ""
    model: str = ""
    trace: RequestTrace | None = None


current: ContextVar[CurrentRequest | None] = ContextVar("current", default=None)


def current_trace() -> RequestTrace | None:
    """The spans of the request that this task works on, if they are recorded."""
    request = current.get()
    return request.trace if request is not None else None
