"""Several servers of the same model: the healthy ones are asked, and a conversation stays with the one that
holds its prefix cache."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from math import log as ln
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from governor_server.sections import Count, Seconds, Section
from governor_server.upstream import Body, Upstream, UpstreamError, UpstreamResponse

HEALTH_TIMEOUT_S = 2.0
NEVER_SENT = frozenset({"unreachable", "connect_timeout"})
"""Failures before anything was sent: another server may be asked instead."""

log = logging.getLogger(__name__)


class Replica(Section):
    """A further server of the same model; `weight` is its share against the 1 of the first."""

    url: str
    weight: float = Field(default=1.0, gt=0)

    @field_validator("url")
    @classmethod
    def _without_version(cls, url: str) -> str:
        return server_root(url)


class UpstreamSettings(Section):
    """A running OpenAI-compatible server to govern; leave `url` out to have vLLM started from `engine`."""

    url: str | None = None
    replicas: tuple[Replica, ...] = ()
    health_interval_s: Seconds = 5.0
    api_key: SecretStr | None = None
    connect_timeout_s: Seconds = 5.0
    read_timeout_s: Seconds = 600.0
    pool_timeout_s: Seconds = 10.0
    max_connections: Count = 2048

    @field_validator("url")
    @classmethod
    def _without_version(cls, url: str | None) -> str | None:
        return None if url is None else server_root(url)

    @model_validator(mode="after")
    def _different(self) -> Self:
        urls = [replica.url for replica in self.replicas] + ([self.url] if self.url else [])
        if len(set(urls)) < len(urls):
            raise ValueError("the same server is named twice: remove one of the replicas")
        return self


def server_root(url: str) -> str:
    """People give the address with `/v1` or without it; it is kept without. Raises `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("must be an address like http://host:8000")
    if "@" in parts.netloc:
        raise ValueError("must not hold a password, which errors would tell: use upstream.api_key")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(slots=True, eq=False)
class Member:
    """One server. `weight` is its share of the requests, against that of the others."""

    upstream: Upstream
    weight: float = 1.0
    healthy: bool = True
    running: int = 0

    def claim(self, affinity: str) -> float:
        """How strongly this server claims what `affinity` names: weighted rendezvous hashing (Thaler and
        Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005). When a server goes or comes, only
        what it claims most moves."""
        drawn = int.from_bytes(sha256(f"{self.upstream.url} {affinity}".encode()).digest()[:6])
        return -self.weight / ln((drawn + 0.5) / 2**48)


@dataclass(slots=True)
class Balancer:
    """Used like one `Upstream`. `on_health` is told whenever a server's health is known anew."""

    members: Sequence[Member]
    health_interval_s: float = 5.0
    on_health: Callable[[str, bool], None] = lambda url, healthy: None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _checking: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """For people."""
        return ", ".join(member.upstream.url for member in self.members)

    def serving(self, affinity: str = "") -> str:
        """The address of the server that a request would go to now."""
        return self._choose(affinity, []).upstream.url

    async def __aenter__(self) -> Balancer:
        for member in self.members:
            await self._stack.enter_async_context(member.upstream)
            self.on_health(member.upstream.url, member.healthy)
        if len(self.members) > 1:
            self._checking = asyncio.create_task(self._check_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._checking is not None:
            self._checking.cancel()
            with suppress(asyncio.CancelledError):
                await self._checking
        await self._stack.aclose()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: Body = b"",
        affinity: str = "",
        *,
        with_key: bool = True,
    ) -> AsyncIterator[UpstreamResponse]:
        """As `Upstream.request`. Of a server that cannot be reached at all, the next one takes the place.

        Raises `UpstreamError`.
        """
        headers = list(headers)
        tried: list[Member] = []
        while True:
            member = self._choose(affinity, tried)
            tried.append(member)
            member.running += 1
            try:
                async with AsyncExitStack() as stack:
                    try:
                        response = await stack.enter_async_context(
                            member.upstream.request(method, target, headers, body, with_key=with_key)
                        )
                    except UpstreamError as error:
                        last = len(tried) == len(self.members) or not isinstance(body, bytes)
                        if error.reason not in NEVER_SENT or last:
                            raise
                        self._found(member, False)
                        continue
                    yield response
                    return
            finally:
                member.running -= 1

    def _choose(self, affinity: str, tried: Sequence[Member]) -> Member:
        """Without an affinity, the one with the fewest requests for its weight."""
        left = [member for member in self.members if member not in tried]
        candidates = [member for member in left if member.healthy] or left
        if affinity:
            return max(candidates, key=lambda member: member.claim(affinity))
        return min(candidates, key=lambda member: (member.running + 1) / member.weight)

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.gather(*(self._check(member) for member in self.members))
            await asyncio.sleep(self.health_interval_s)

    async def _check(self, member: Member) -> None:
        healthy = False
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                healthy = await is_healthy(member.upstream)
        self._found(member, healthy)

    def _found(self, member: Member, healthy: bool) -> None:
        if healthy is not member.healthy:
            log.warning("upstream %s is %s", member.upstream.url, "back" if healthy else "out of service")
        member.healthy = healthy
        self.on_health(member.upstream.url, healthy)


async def is_healthy(server: Upstream | Balancer) -> bool:
    """Whether it answers its health check, of several servers one. Raises `UpstreamError`."""
    async with server.request("GET", b"/health", []) as response:
        await response.read()
        return shows_health(response.status)


def shows_health(status: int) -> bool:
    """Whether the answer to a health check comes from a server that works. One without that route, or that
    wants a key for it, does; vLLM says 503 when its engine is dead.

    >>> [shows_health(status) for status in (200, 401, 404, 501, 503)]
    [True, True, True, True, False]
    """
    return status < 500 or status == 501
