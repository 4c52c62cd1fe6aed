"""The tools that were seen to change their answers by themselves, of each tenant.

Of what was seen the name of the tool is kept, and when; neither arguments nor results.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from governor_server.tables import IN_MEMORY, Backing, Row, Table

if TYPE_CHECKING:
    from governor_server.shared import Shared

MAX_TOOLS: Final = 10_000
MAX_TOOLS_PER_TENANT: Final = 256
"""Names come from clients: past this many of a tenant, the one that was seen longest ago is forgotten."""
MAX_NAME_LENGTH: Final = 256
RENEWALS: Final = 24
"""A tool that is seen again is written again after this part of the time that it is kept for."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class VolatileTool:
    """`first_seen` and `last_seen`: when it gave another answer to the same call, in seconds of the store's
    clock."""

    tenant: str
    tool: str
    first_seen: float
    last_seen: float

    @property
    def key(self) -> Key:
        return self.tenant, self.tool


class VolatileTools:
    """Safe to use from several threads.

    `path` is a file, which may be that of the records, or `:memory:`. A tool is forgotten `ttl_s` seconds
    after it was last seen. With `shared`, what other processes saw is here too, a moment later.
    """

    def __init__(
        self,
        path: str = IN_MEMORY,
        *,
        ttl_s: float = 7 * 24 * 3600.0,
        shared: Shared | None = None,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._tools: OrderedDict[Key, VolatileTool] = OrderedDict()
        self._names: dict[str, dict[str, None]] = {}
        self._behind = Backing(
            VOLATILE,
            path,
            shared,
            max_rows=MAX_TOOLS,
            ttl_s=ttl_s,
            now=clock(),
            restore=self._insert,
            take=self._take,
            on_error=on_error,
        )

    def __repr__(self) -> str:
        return f"<VolatileTools [{len(self)} tools of {len(self._names)} tenants]>"

    def __len__(self) -> int:
        return len(self._tools)

    def of(self, tenant: str) -> frozenset[str]:
        """The tools of a tenant."""
        with self._lock:
            self._expire()
            return frozenset(self._names.get(tenant, ()))

    def all(self) -> tuple[VolatileTool, ...]:
        """Those of all tenants, the last seen last."""
        with self._lock:
            self._expire()
            return tuple(self._tools.values())

    def learn(self, tenant: str, tools: Iterable[str]) -> None:
        """These tools of a tenant gave another answer to the same call."""
        for tool in tools:
            if (seen := self._seen(tenant, tool)) is not None:
                self._behind.write(seen)

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        self._behind.close()

    def _seen(self, tenant: str, tool: str) -> VolatileTool | None:
        """What is new to write; None where the same was written not long ago."""
        now = self._clock()
        with self._lock:
            known = self._tools.get((tenant, tool))
            if len(tool) > MAX_NAME_LENGTH or (known and now - known.last_seen < self._ttl_s / RENEWALS):
                return None
            seen = VolatileTool(tenant, tool, known.first_seen if known else now, now)
            self._insert(seen)
            return seen

    def _take(self, seen: VolatileTool) -> None:
        """From another process."""
        with self._lock:
            known = self._tools.get(seen.key)
            if known is None or known.last_seen <= seen.last_seen:
                self._insert(seen)

    def _insert(self, seen: VolatileTool) -> None:
        self._remove(seen.key)
        self._tools[seen.key] = seen
        names = self._names.setdefault(seen.tenant, {})
        names[seen.tool] = None
        self._expire()
        if len(names) > MAX_TOOLS_PER_TENANT:
            self._remove((seen.tenant, next(iter(names))))
        while len(self._tools) > MAX_TOOLS:
            self._remove(next(iter(self._tools)))

    def _remove(self, key: Key) -> None:
        if self._tools.pop(key, None) is not None:
            tenant, tool = key
            del self._names[tenant][tool]
            if not self._names[tenant]:
                del self._names[tenant]

    def _expire(self) -> None:
        """They stand in the order in which they were seen, but for some that other processes saw, which go
        a little later."""
        oldest = self._clock() - self._ttl_s
        while self._tools:
            key, seen = next(iter(self._tools.items()))
            if seen.last_seen >= oldest:
                return
            self._remove(key)


def _encode(seen: VolatileTool) -> Row:
    return orjson.dumps(seen.key).decode(), seen.last_seen, orjson.dumps(asdict(seen))


def _decode(body: bytes) -> VolatileTool:
    fields: dict[str, Any] = orjson.loads(body)
    return VolatileTool(**fields)


VOLATILE: Final = Table("volatile", "tool", _encode, _decode)
