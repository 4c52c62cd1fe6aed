"""What tests of the server may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from governor_server import app, balancer, upstream
from tests.server.redis_server import RedisServer, running_redis
from tests.server.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with others is slow to answer, and that is no failure of the server behind."""
    monkeypatch.setattr(upstream, "KEEPALIVE_S", PATIENCE_S)
    monkeypatch.setattr(upstream, "STALE_S", PATIENCE_S)
    monkeypatch.setattr(upstream, "LAST_MOMENT_S", PATIENCE_S)
    monkeypatch.setattr(balancer, "HEALTH_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(app, "READY_TIMEOUT_S", PATIENCE_S)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis() as server:
        yield server
