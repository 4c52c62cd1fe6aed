"""Methods whose failure costs what they record, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from governor_server.tracing.tracing import Tracing

S = TypeVar("S", bound="_Guarded")
P = ParamSpec("P")
T = TypeVar("T")


class _Guarded(Protocol):
    @property
    def tracing(self) -> Tracing: ...


def guarded(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T | None]:
    """What fails in `method` is counted, and None comes instead."""

    @wraps(method)
    def inner(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        with self.tracing.fail_open():
            return method(self, *args, **kwargs)
        return None

    return inner
