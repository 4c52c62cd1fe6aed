"""What `governor serve` does in its process beside what the application does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from governor_server.serve import COLLECT_AFTER
from tests.server.scripted_upstream import scripted
from tests.server.test_limits import ending


class Ring:
    """Reaches itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def by_call_only() -> Iterator[None]:
    """Nothing is collected by chance."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("by_call_only")
async def test_what_is_there_at_the_start_is_never_looked_through_again() -> None:
    """No request waits for that. What was garbage by then is freed, since later nobody would, and what comes
    later is looked through seldom."""
    kept = Ring()
    garbage = weakref.ref(Ring())
    async with scripted() as upstream, ending(upstream.url):
        later = Ring()
        looked_through = gc.get_objects()
        assert garbage() is None
        assert not any(one is kept for one in looked_through)
        assert any(one is later for one in looked_through)
        assert gc.get_threshold() == COLLECT_AFTER
