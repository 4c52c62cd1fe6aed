"""What upstream refuses of what the governor adds to requests, and how long that is remembered.

A circuit breaker for each tenant, model, server and addition. What is refused several times in a row, while
the client's own request is answered, is left out for a while; then one request tries it again. Tenants are
apart, since a refusal may be due to one tenant's key or to its odd requests.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from governor_server.upstream import UpstreamError, UpstreamResponse

TIMES: Final = 3
"""Refusals in a row after which an addition is left out."""

PAUSE_S: Final = 60.0
MOST_PAUSE_S: Final = 300.0
"""The first pause, and what it grows to, doubling: an upstream that was mended is governed again by then."""

FAILING: Final = "failing"
"""Upstream failed with the addition and without it, so that asking twice only adds to its load."""

FAILING_PAUSE_S: Final = 10.0

TRIAL_S: Final = 10.0
"""How long one request may try what was left out before another one does."""

MOST_REMEMBERED: Final = 4096

AT_ONCE: Final = frozenset({"timeout"})
"""Refusals of a client's request that are too dear to be seen several times."""

log = logging.getLogger(__name__)


class Addition(StrEnum):
    """What the governor adds: to the client's request, or as a request of its own."""

    LOGPROBS = "logprobs"
    STUBS = "stubs"
    PROBE = "probe"
    ANSWER = "answer"
    CONTINUATION = "continuation"


TO_THE_CLIENTS: Final = frozenset({Addition.LOGPROBS, Addition.STUBS})


class Refused(UpstreamError):
    """Upstream did not take what was added, before the client got anything of an answer; `reason` says in
    which way."""

    def __init__(self, how: str) -> None:
        super().__init__(how, f"upstream refused what the governor added ({how})")


class Key(NamedTuple):
    """Whose request to which server adds what."""

    tenant: str
    model: str
    upstream: str
    addition: Addition


@dataclass(slots=True)
class _Breaker:
    """`until` is a time of the clock; before it the addition is left out."""

    times: int = 0
    pauses: int = 0
    until: float | None = None
    how: str = ""


@dataclass(slots=True)
class Refusals:
    """The memory. `clock` gives seconds, and never goes back; `most` bounds the number of keys, of which the
    longest unused one is forgotten."""

    clock: Callable[[], float] = time.monotonic
    most: int = MOST_REMEMBERED
    _breakers: OrderedDict[Key, _Breaker] = field(default_factory=OrderedDict)

    def allows(self, key: Key) -> bool:
        """Whether the addition may be tried; one caller at a time is let through after a pause."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.until is None:
            return True
        now = self.clock()
        if now < breaker.until:
            return False
        breaker.until = now + TRIAL_S
        return True

    def accepted(self, key: Key) -> None:
        """Upstream took the addition."""
        if self._breakers.pop(key, None) is not None:
            log.info("upstream %s takes what is added to requests of %s again", key.upstream, key.model)

    def refused(self, key: Key, how: str) -> None:
        """Upstream refused the addition, and answered the client's own request; or, where `how` is `FAILING`,
        it answered neither."""
        breaker = self._breakers.setdefault(key, _Breaker())
        self._breakers.move_to_end(key)
        if len(self._breakers) > self.most:
            self._breakers.popitem(last=False)
        breaker.how = how
        breaker.times += 1
        at_once = how in AT_ONCE and key.addition in TO_THE_CLIENTS
        if breaker.times < TIMES and not at_once:
            return
        first = FAILING_PAUSE_S if how == FAILING else PAUSE_S
        breaker.until = self.clock() + min(first * 2.0**breaker.pauses, MOST_PAUSE_S)
        breaker.pauses += 1
        breaker.times = max(breaker.times, TIMES)
        if breaker.pauses == 1:
            _warn(key, how)

    @property
    def paused(self) -> int:
        """How many additions are left out now."""
        now = self.clock()
        return sum(breaker.until is not None and now < breaker.until for breaker in self._breakers.values())

    def report(self) -> list[Mapping[str, Any]]:
        """What was refused last, for people."""
        now = self.clock()
        return [
            {
                **key._asdict(),
                "reason": breaker.how,
                "left_out": breaker.until is not None and now < breaker.until,
                "tried_again_in_s": round(max(0.0, (breaker.until or now) - now), 1),
            }
            for key, breaker in self._breakers.items()
        ]


def refuses(response: UpstreamResponse) -> bool:
    """Whether the status may be due to what was added. Another key is wanted (401) or fewer requests (429,
    503 with the time to wait) whatever the request is, and a redirect names another place for it."""
    if response.status == 503:
        return all(name != b"retry-after" for name, _ in response.headers)
    return response.status >= 400 and response.status not in (401, 429)


def flaw(body: object) -> str:
    """What keeps a whole response of status 200 from being an answer; "" if nothing does."""
    if not isinstance(body, Mapping):
        return "unreadable"
    if body.get("error"):
        return "error_body"
    first = _choice(body)
    if not isinstance(first.get("message"), Mapping):
        return "empty"
    said = any(value for name, value in first["message"].items() if name != "role")
    return "error_body" if ends_in_error(body) and not said else ""


def ends_in_error(body: Mapping[str, Any]) -> bool:
    """Whether the end of a message, in a whole response or a chunk, is that it failed."""
    return _choice(body).get("finish_reason") == "error"


def shows(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk of a stream brings anything of a message: more than its role, or its end."""
    choice = _choice(chunk)
    delta = choice.get("delta")
    said = isinstance(delta, Mapping) and any(value for name, value in delta.items() if name != "role")
    return said or choice.get("finish_reason") is not None


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice, empty where there is none."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _warn(key: Key, how: str) -> None:
    if how == FAILING:
        what = "fails with and without what is added to requests of"
    else:
        what = "refuses what is added to requests of"
    log.warning(
        "upstream %s %s %s (%s: %s), which go on without it; `governor doctor` says what to change",
        key.upstream,
        what,
        key.model,
        key.addition,
        how,
    )
