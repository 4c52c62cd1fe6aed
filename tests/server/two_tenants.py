"""Two tenants on one pool: one of them sends whatever a client may, and the other one must not notice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from time import monotonic
from typing import Any, Final

from governor_server.upstream import Pool, Upstream
from tests.server.echo_upstream import Behaviour, EchoUpstream, echoing
from tests.server.framings import Fate, Framed, draw
from tests.server.scripted_upstream import Proxied, proxied

BODY_TIMEOUT_S: Final = 0.4
READ_TIMEOUT_S: Final = 0.8
PATIENCE_S: Final = 20.0
"""How long a client waits for an answer of which it does not know whether there will be one."""
HURRY_S: Final = 10.0
"""The time-out of the tenant that does nothing wrong."""
CONNECTIONS: Final = 5
SHARE: Final = 3
"""Places of each tenant, so that one cannot have all connections."""
KEYS: Final = {"odd": "key-odd", "plain": "key-plain"}


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


SECTIONS: Final[Mapping[str, Any]] = {
    "auth": {"keys": [{"tenant": tenant, "sha256": digest(key)} for tenant, key in KEYS.items()]},
    "limits": {
        "body_timeout_s": BODY_TIMEOUT_S,
        "header_timeout_s": BODY_TIMEOUT_S,
        "write_timeout_s": BODY_TIMEOUT_S,
        "max_concurrent_requests_per_tenant": SHARE,
    },
    "upstream": {
        "max_connections": CONNECTIONS,
        "read_timeout_s": READ_TIMEOUT_S,
        "connect_timeout_s": 2.0,
        "pool_timeout_s": 5.0,
    },
}


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as a client got it: `nonce` is that of the request it says it is for, None where it is the
    governor's own, or broke off."""

    status: int
    nonce: str | None
    body: bytes
    whole: bool


@dataclass(slots=True)
class Report:
    """`crossed`: answers that were not for who got them; `late`: requests of the other tenant without an
    answer in its time; `wrong`: everything else that must not be."""

    odd: int = 0
    plain: int = 0
    crossed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.crossed or self.late or self.wrong or self.lost)

    def __str__(self) -> str:
        told = [
            f"{self.odd} requests of one tenant in every framing, {self.plain} of the other one meanwhile",
            f"answers crossed: {len(self.crossed)}",
            f"requests of the other tenant beyond its time-out of {HURRY_S:g} s: {len(self.late)}"
            f" (the slowest took {self.slowest_s:.2f} s)",
            f"places and connections lost: {len(self.lost)}",
            f"lengths, bodies or refusals that are wrong: {len(self.wrong)}",
            "answers by status, 0 for none: "
            + ", ".join(f"{status}: {number}" for status, number in sorted(self.statuses.items())),
        ]
        for what in (self.crossed, self.late, self.lost, self.wrong):
            told += [f"  {line[:400]}" for line in what[:5]]
        return "\n".join(told)


@dataclass(slots=True)
class Play:
    """Plays so many odd requests, from a seed, by `clients` at a time."""

    upstream: EchoUpstream
    proxy: Proxied
    seed: int
    report: Report = field(default_factory=Report)
    patience_s: float = PATIENCE_S
    hurry_s: float = HURRY_S
    _over: bool = False

    async def run(self, requests: int, clients: int = SHARE) -> Report:
        """All of them, while the other tenant asks."""
        numbers = deque(range(requests))
        plain = [asyncio.create_task(self._plain(name)) for name in range(2)]
        await asyncio.gather(*(self._odd_client(numbers) for _ in range(clients)))
        self._over = True
        await asyncio.gather(*plain)
        await self._count_what_is_lost()
        for request in self.upstream.garbage:
            self.report.wrong.append(f"upstream was sent {request[:200]!r}")
        return self.report

    async def _odd_client(self, numbers: deque[int]) -> None:
        kept: Wire | None = None
        while numbers:
            random = Random(f"{self.seed}:{numbers[0]}")
            batch: list[tuple[str, Framed, Behaviour]] = []
            for _ in range(min(random.choice((1, 1, 1, 2, 3)), len(numbers))):
                if batch and not batch[-1][1].keeps:
                    break
                nonce = f"{self.seed}.{numbers.popleft()}"
                behaviour = random.choice(
                    (*Behaviour, Behaviour.LATE, Behaviour.EARLY, Behaviour.EARLY_CLOSE)
                )
                if random.random() < 0.8 and behaviour in (Behaviour.SILENT, Behaviour.UNREAD):
                    behaviour = Behaviour.EARLY
                headers = {
                    "authorization": f"Bearer {KEYS['odd']}",
                    "x-nonce": nonce,
                    "x-behaviour": behaviour.value,
                }
                batch.append((nonce, draw(random, headers), behaviour))
            kept = await self._exchange(batch, kept, random)
        if kept is not None:
            kept.close()

    async def _exchange(
        self, batch: list[tuple[str, Framed, Behaviour]], kept: Wire | None, random: Random
    ) -> Wire | None:
        """Send the requests at once, and read an answer for each that may have one."""
        wire = kept or await Wire.connected(self.proxy.url)
        sent: list[tuple[str, Framed, Behaviour]] = []
        try:
            for one in batch:
                sent.append(one)
                self.report.odd += 1
                await wire.send(one[1].raw, random)
            if sent[-1][1].fate is Fate.BREAKS_OFF and random.random() < 0.7:
                if random.random() < 0.5:
                    wire.close()
                    return None
                wire.end()
            elif random.random() < 0.05:
                wire.close()
                return None
            keeps = True
            for nonce, framed, behaviour in sent:
                keeps = keeps and await self._answered(wire, nonce, framed, behaviour)
                if not keeps:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.report.statuses[0] += 1
            keeps = False
        if keeps and random.random() < 0.6:
            return wire
        wire.close()
        return None

    async def _answered(self, wire: Wire, nonce: str, framed: Framed, behaviour: Behaviour) -> bool:
        """Read and judge one answer; returns whether there may be another."""
        try:
            async with asyncio.timeout(self.patience_s):
                seen = await wire.answer(head_only=framed.method == "HEAD" and framed.name != "TRACE")
        except TimeoutError:
            self.report.wrong.append(f"{nonce} {framed.name}, {behaviour}: no end")
            return False
        self.report.statuses[seen.status] += 1
        if seen.nonce is not None and seen.nonce != nonce:
            self.report.crossed.append(f"{nonce} ({framed.name}, {behaviour}) got that of {seen.nonce}")
        self._judge(seen, nonce, framed, behaviour)
        return framed.keeps and seen.whole and seen.status == 200

    def _judge(self, seen: Seen, nonce: str, framed: Framed, behaviour: Behaviour) -> None:
        found = [request for request in self.upstream.noted if request.nonce == nonce]
        self.upstream.noted[:] = [request for request in self.upstream.noted if request.nonce != nonce]
        what = f"{nonce} {framed.method} {framed.name}, {behaviour}: {seen.status}"
        if framed.fate is Fate.REFUSED:
            if seen.status < 400 or found:
                self.report.wrong.append(f"{what}, not refused, {len(found)} times upstream")
            return
        if framed.fate is Fate.BREAKS_OFF:
            if any(request.complete for request in found):
                self.report.wrong.append(f"{what}, taken for whole")
            return
        for request in found:
            if request.complete and request.body != framed.body:
                self.report.wrong.append(
                    f"{what}, upstream got {len(request.body)} bytes of {len(framed.body)}: {request.headers}"
                )
        if seen.status == 200 and seen.whole and not found:
            self.report.wrong.append(f"{what}, and upstream was not asked")
        may_fail = behaviour in (Behaviour.SILENT, Behaviour.UNREAD, Behaviour.RESET, Behaviour.MORE)
        if seen.status != 200 and not may_fail and seen.status != 429:
            self.report.wrong.append(f"{what}, not answered: {seen.body[:200]!r}")

    async def _plain(self, name: int) -> None:
        """The other tenant: one question after the other."""
        number = 0
        headers = {"authorization": f"Bearer {KEYS['plain']}"}
        while not self._over:
            number += 1
            nonce = f"plain.{name}.{number}"
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": nonce}]}).encode()
            start = monotonic()
            try:
                async with (
                    asyncio.timeout(self.hurry_s),
                    self.proxy.client.request(
                        "POST" if number % 3 else "GET",
                        "/v1/chat/completions" if number % 3 else "/v1/models",
                        data=body if number % 3 else None,
                        headers={**headers, "x-nonce": nonce},
                    ) as response,
                ):
                    raw = await response.read()
                if response.status != 200 or json.loads(raw)["nonce"] != nonce:
                    self.report.crossed.append(f"{nonce} got {response.status} {raw[:200]!r}")
            except TimeoutError:
                self.report.late.append(nonce)
            self.report.plain += 1
            self.report.slowest_s = max(self.report.slowest_s, monotonic() - start)
            self.upstream.noted[:] = [seen for seen in self.upstream.noted if seen.nonce != nonce]

    async def _count_what_is_lost(self) -> None:
        """Once nobody asks: what is still taken, and whether all connections can be had at once."""
        slots, preflights = self.proxy.app.proxy.slots, self.proxy.app.proxy.preflight_slots
        self.upstream.over.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s):
                # Idle connections are closed after some seconds.
                while slots.running or slots.waiting or slots.by_tenant or self.upstream.open:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        if slots.running or slots.waiting or slots.by_tenant or preflights.running:
            self.report.lost.append(f"{slots!r} {dict(slots.by_tenant)}")
        if self.upstream.open:
            self.report.lost.append(f"{self.upstream.open} connections to upstream are never closed")
        upstream = self.proxy.app.upstream
        assert isinstance(upstream, Upstream) and upstream._session is not None
        assert isinstance(pool := upstream._session.connector, Pool)
        if taken := pool._acquired:
            self.report.lost.append(f"{len(taken)} connections of the pool are not given back")


@dataclass(slots=True)
class Wire:
    """A connection of a client that writes bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connected(cls, url: str) -> Wire:
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Wire]:
        """A connection that is closed in the end."""
        wire = await cls.connected(url)
        try:
            yield wire
        finally:
            wire.close()

    async def send(self, raw: bytes, random: Random) -> None:
        """In one piece or in several."""
        cuts = sorted(random.randrange(len(raw) + 1) for _ in range(random.choice((0, 0, 1, 3))))
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            self.writer.write(raw[start:end])
            await asyncio.sleep(0)
        # No drain: a server that answers without reading would never let it end.

    def end(self) -> None:
        """Nothing more comes, but the answer is read."""
        with suppress(OSError):
            self.writer.write_eof()

    def close(self) -> None:
        self.writer.transport.abort()

    async def answer(self, *, head_only: bool = False) -> Seen:
        """The next answer, but for those that say to go on. Raises `IncompleteReadError` where there is
        none."""
        status = 100
        while status < 200:
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (row.partition(b":") for row in head.split(b"\r\n")[1:])
        }
        body, whole = b"", True
        try:
            if not head_only and headers.get(b"transfer-encoding") == b"chunked":
                while size := int(await self.reader.readline() or b"x", 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif not head_only:
                body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            whole = False
        return Seen(status, nonce_of(body), body, whole)


def nonce_of(body: bytes) -> str | None:
    try:
        nonce = json.loads(body)["nonce"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(nonce)


@asynccontextmanager
async def two_tenants(seed: int, mode: str = "enforce") -> AsyncIterator[Play]:
    """A proxy with few connections, between an upstream that answers as it likes and both tenants."""
    async with echoing() as upstream, proxied(upstream.url, mode, **SECTIONS) as proxy:
        yield Play(upstream, proxy, seed)
