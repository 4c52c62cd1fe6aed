"""Who has signed in to the page: a browser sends no key with each request, but a cookie."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from typing import Final

from governor_server.access import Access
from governor_server.api_errors import ApiError
from governor_server.asgi import Scope, header

COOKIE: Final = "governor_session"
PATH: Final = "/dashboard"
LIFETIME_S: Final = 12 * 3600
MOST: Final = 100
"""Sessions at once; of more than so many the oldest end."""


class Sessions:
    """Random tokens in memory, of which only digests are kept: they end with the process. Safe to use from
    the event loop alone."""

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    @property
    def by_key(self) -> bool:
        """Whether there are keys to sign in with; without, only this machine may look."""
        return self._access.by_admin_key

    def check(self, scope: Scope) -> None:
        """Whether a request is the operator's, by its cookie or as everywhere else. Raises `ApiError`."""
        token = _token(scope)
        if not (token and self._ends.get(_digest(token), 0.0) > self._clock()):
            self._access.check_admin(scope)

    def admits(self, scope: Scope) -> bool:
        """The same, as an answer."""
        try:
            self.check(scope)
        except ApiError:
            return False
        return True

    def begin(self, key: str, scope: Scope) -> str | None:
        """The cookie of a new session, or None where `key` is not the operator's."""
        if not self._access.is_admin_key(key):
            return None
        token = secrets.token_urlsafe(32)
        self._ends[_digest(token)] = self._clock() + LIFETIME_S
        while len(self._ends) > MOST:
            self._ends.popitem(last=False)
        return _cookie(token, LIFETIME_S, scope)

    def end(self, scope: Scope) -> str:
        """The cookie that takes the session's place."""
        self._ends.pop(_digest(_token(scope)), None)
        return _cookie("", 0, scope)


def _token(scope: Scope) -> str:
    try:
        found = SimpleCookie(header(scope, b"cookie")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _digest(token: str) -> bytes:
    """A look-up by digest takes no longer for a better guess."""
    return sha256(token.encode()).digest()


def _cookie(token: str, seconds: int, scope: Scope) -> str:
    """For the page alone: it goes neither to upstream nor to another site."""
    secure = "https" in (scope.get("scheme"), header(scope, b"x-forwarded-proto"))
    cookie = f"{COOKIE}={token}; Path={PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    return f"{cookie}; Secure" if secure else cookie
