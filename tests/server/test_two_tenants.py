"""What one tenant sends, however upstream takes it, changes nothing for another one on the same pool."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp.connector import Connection

from governor_server import upstream as client
from tests.server.two_tenants import two_tenants

QUICK = 150


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_tenant_gets_its_own_answers_whatever_another_one_sends(mode: str) -> None:
    """No answer crosses over, nobody waits for longer than it takes, nothing of a request is lost or added on
    its way, and all places and connections are free afterwards."""
    async with two_tenants(seed=20261201, mode=mode) as play:
        report = await play.run(QUICK)
    assert report.clean, str(report)
    assert report.odd == QUICK and report.plain > 0
    assert report.statuses[200] > QUICK / 4


async def test_the_play_finds_a_connection_that_is_used_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that it finds nothing would say nothing: here a connection is used again whatever it carried, and
    upstream is told what the client announced."""

    async def send(self: client.TrackedRequest, conn: Connection) -> aiohttp.ClientResponse:
        self.headers["Content-Length"] = "9"
        self.headers.popall("Transfer-Encoding", None)
        self.chunked = None
        response = await aiohttp.ClientRequest.send(self, conn)
        self.sending.whole = self.sending.clear = True
        return response

    monkeypatch.setattr(client.TrackedRequest, "send", send)
    async with two_tenants(seed=1) as play:
        play.hurry_s = play.patience_s = 2.0
        report = await play.run(12)
    assert not report.clean
