"""The governor's own routes, asked for all that their OpenAPI description allows, and for what it does not.

What schemathesis checks of each answer: no error of the server, a status, a type and a body that the
description has, what is valid taken and what is not refused, and no answer without the key.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import pytest
import schemathesis
from hypothesis import assume, settings

from scripts import http_reference
from tests.server.logs import call
from tests.server.scripted_upstream import Proxied, proxied, scripted

KEY = "gov-of-the-operator"
AUTH = {
    "admin_keys": [sha256(KEY.encode()).hexdigest()],
    # The metrics are the operator's where clients have keys.
    "keys": [{"tenant": "acme", "sha256": sha256(b"gov-of-a-client").hexdigest()}],
}


async def _serve(started: Future[Proxied], ended: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted())
        proxy = await stack.enter_async_context(proxied(upstream, auth=AUTH))
        for step in range(3):
            proxy.app.store.put(call("talk", step, margin=0.9, useful=False))
        started.set_result(proxy)
        await ended.wait()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxied]:
    """A proxy that has records, in a thread: schemathesis asks without an event loop."""
    started: Future[Proxied] = Future()
    ended = asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(started, ended)))
    thread.start()
    try:
        yield started.result(30)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


description = schemathesis.openapi.from_dict(dict(http_reference.description()))
"""What the documentation's page is written from."""
# What a browser shows is looked at in a browser (tests/dashboard).
schema = description.exclude(path_regex=r"^/dashboard(/login|/logout|/static/.*|/events)?$")
# A parameter that a route does not know is no error in HTTP.
schema.config.generation.update(allow_extra_parameters=False)


@schema.parametrize()
@settings(max_examples=40, derandomize=True)
def test_every_route_does_what_its_description_says(case: schemathesis.Case[Any], proxy: Proxied) -> None:
    """For any request that the description makes possible, and some that it does not."""
    # Of a parameter that is given several times, the last one counts: the others need not be refused.
    assume(not any(isinstance(value, list) for value in (case.query or {}).values()))
    case.call_and_validate(proxy.url, headers={"Authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize(
    ("method", "target", "status", "says"),
    [
        ("GET", "/governor/decisions?limit=many", 422, "query.limit: "),
        ("DELETE", "/governor/gates", 405, "Method Not Allowed"),
    ],
)
async def test_what_the_framework_refuses_has_the_shape_of_other_errors(
    method: str, target: str, status: int, says: str
) -> None:
    """Clients read all errors the same way."""
    async with (
        scripted() as upstream,
        proxied(upstream) as proxy,
        proxy.client.request(method, target) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, "allow" in response.headers) == (status, status == 405)
    assert error["message"].startswith(says)
    assert (error["type"], error["code"]) == ("invalid_request_error", status)
