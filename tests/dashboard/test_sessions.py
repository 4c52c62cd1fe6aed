"""Who may look at the page: the same who may ask the operator's routes, or whoever signed in with a key."""

from __future__ import annotations

from typing import Any

import pytest

from governor_server.access import Access, AuthSettings
from governor_server.api_errors import ApiError
from governor_server.dashboard.sessions import LIFETIME_S, MOST, Sessions
from tests.server.scripted_upstream import proxied, scripted
from tests.server.test_access import bearer, digest

KEY = "gov-operator"
KEYS = AuthSettings(admin_keys=(digest(KEY),))
PAGES = (
    "/dashboard/events",
    "/dashboard/api/overview",
    "/dashboard/api/tools",
    "/dashboard/api/conversations",
    "/dashboard/api/conversation/talk",
    "/dashboard/api/whatif",
    "/dashboard/api/nothing",
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(cookie: str = "", **fields: Any) -> dict[str, Any]:
    headers = [(b"cookie", cookie.encode()), (b"host", b"proxy.example")]
    return {"type": "http", "headers": headers, "client": ("203.0.113.9", 5), "scheme": "http", **fields}


def sessions(clock: Clock | None = None, auth: AuthSettings = KEYS) -> Sessions:
    return Sessions(Access(auth, trusts_upstream=True), clock or Clock())


def pair(cookie: str) -> str:
    """What a browser sends back of a cookie."""
    return cookie.partition(";")[0]


def begun(of: Sessions) -> str:
    cookie = of.begin(KEY, request())
    assert cookie is not None
    return cookie


def test_a_session_opens_the_page_until_it_ends() -> None:
    """By time, or by signing out."""
    clock = Clock()
    found = sessions(clock)
    cookie = pair(begun(found))
    found.check(request(cookie))
    clock.now = LIFETIME_S - 1
    found.check(request(cookie))
    clock.now = LIFETIME_S
    with pytest.raises(ApiError):
        found.check(request(cookie))
    other = pair(begun(found))
    found.end(request(other))
    with pytest.raises(ApiError):
        found.check(request(other))


@pytest.mark.parametrize("cookie", ["", "governor_session=", "governor_session=guess", "=;;=", "a" * 5000])
def test_what_is_no_session_opens_nothing(cookie: str) -> None:
    """Neither does the key itself, where the token should stand."""
    found = sessions()
    begun(found)
    for tried in (cookie, f"governor_session={KEY}"):
        assert not found.admits(request(tried))


def test_a_wrong_key_begins_no_session() -> None:
    """Nor does an empty one, nor any where the operator has none."""
    assert sessions().begin("gov-other", request()) is None
    assert sessions().begin("", request()) is None
    assert sessions(auth=AuthSettings()).begin("", request()) is None


def test_the_cookie_is_for_the_page_alone() -> None:
    """No script reads it, no other site sends it, and it never goes with a request for upstream."""
    cookie = begun(sessions())
    for part in ("Path=/dashboard", "HttpOnly", "SameSite=Strict"):
        assert part in cookie
    assert "Secure" not in cookie
    secure = sessions().begin(KEY, request(scheme="https"))
    assert secure is not None and secure.endswith("; Secure")


def test_sessions_are_few() -> None:
    """The oldest ends, where somebody signs in again and again."""
    found = sessions()
    first = pair(begun(found))
    for _ in range(MOST):
        begun(found)
    assert not found.admits(request(first))


@pytest.mark.parametrize("path", PAGES)
async def test_the_figures_are_the_operators(path: str) -> None:
    """Nobody learns without the key what others asked."""
    async with (
        scripted() as upstream,
        proxied(upstream, auth=KEYS.model_dump()) as proxy,
        proxy.client.get(path) as response,
    ):
        assert response.status == 401
    assert not upstream.received


async def test_a_browser_signs_in_and_out() -> None:
    """With a form, as browsers do."""
    async with scripted() as upstream, proxied(upstream, auth=KEYS.model_dump()) as proxy:
        client = proxy.client
        async with client.get("/dashboard") as response:
            assert response.status == 401
            text = await response.text()
            assert 'action="dashboard/login"' in text and "app.js" not in text
        async with client.post("/dashboard/login", data={"key": "gov-wrong"}) as response:
            assert response.status == 401
            assert "This key is not known" in await response.text()
        async with client.post("/dashboard/login", data={"key": KEY}, allow_redirects=False) as response:
            assert response.status == 303
            cookie = pair(response.headers["set-cookie"])
        signed_in = {"cookie": cookie}
        async with client.get("/dashboard", headers=signed_in) as response:
            assert response.status == 200
            assert 'data-session="key"' in await response.text()
        async with client.get("/dashboard/api/tools", headers=signed_in) as response:
            assert response.status == 200
        async with client.get("/governor/decisions", headers=signed_in) as response:
            assert response.status == 401, "the session is for the page alone"
        async with client.post("/dashboard/logout", headers=signed_in, allow_redirects=False) as response:
            assert "Max-Age=0" in response.headers["set-cookie"]
        async with client.get("/dashboard/api/tools", headers=signed_in) as response:
            assert response.status == 401
    assert not upstream.received


async def test_a_program_asks_with_the_key() -> None:
    """As everywhere else."""
    async with (
        scripted() as upstream,
        proxied(upstream, auth=KEYS.model_dump()) as proxy,
        proxy.client.get("/dashboard/api/tools", headers=bearer(KEY)) as response,
    ):
        assert response.status == 200


async def test_without_keys_only_this_machine_looks() -> None:
    """A name that leads here does not open it, and the page says what to do."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        async with proxy.client.get("/dashboard") as response:
            assert response.status == 200
        for path in ("/dashboard", "/dashboard/api/overview", "/dashboard/static/x/app.js"):
            async with proxy.client.get(path, headers={"host": "evil.example"}) as response:
                assert response.status in (403, 404)
                if path == "/dashboard":
                    assert "auth.admin_keys" in await response.text()
