"""What tests of the server may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.redis_server import RedisServer, running_redis


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis() as server:
        yield server
