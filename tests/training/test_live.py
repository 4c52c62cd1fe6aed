"""`governor live`: agents ask, and what the dashboard needs is there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from governor_server.recorded import Log, outcomes
from tests.monitoring.load import Player


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_agents_ask_and_tell_how_it_ended(tmp_path: Path) -> None:
    """Each conversation has a score under its own name, and the address of the page is told."""
    player = Player()
    server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    command = (sys.executable, "-m", "governor_server.cli", "live", "--upstream", upstream)
    process = await asyncio.create_subprocess_exec(
        *command, "--questions", "4", "--out", str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    server.close()
    await player.close()
    assert process.returncode == 0
    assert b"/dashboard" in output
    records = Log.read(tmp_path / "records.db").records
    assert {record.conversation for record in records} == outcomes(tmp_path / "records.db").keys()
    assert len(outcomes(tmp_path / "records.db")) == 4
    assert all(record.returned is not None and record.turn_usage for record in records if record.outcome)
