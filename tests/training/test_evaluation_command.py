"""`governor eval` with real governors, in front of a server that plays the toy model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.training.toy import ToyModel

ROOT = Path(__file__).parents[2]


async def serve(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def engine() -> web.Application:
    model = ToyModel()

    async def chat(request: web.Request) -> web.Response:
        return web.json_response(await model(await request.json()))

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/health", health)
    return app


@pytest.mark.timeout(600)
async def test_the_arms_go_through_real_governors(tmp_path: Path) -> None:
    """The threshold's own settings and the fitted gate are in force there, and give the figures that the
    same settings have in this process."""
    runner = web.AppRunner(engine())
    options = ["--environment", "tests.training.toy:Toy", "--upstream", await serve(runner)]
    options += ["--tasks", "6", "--seeds", "1", "--learn", "300", "--max-harm", "0.1", "--no-plots"]
    options += ["--policies", "threshold", "calibrated", "--out", str(tmp_path)]
    try:
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "governor_server.cli", "eval", *options),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await done.communicate()
    finally:
        await runner.cleanup()
    assert done.returncode == 0, told.decode()[-2000:]
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    arms = summary["real_servers"]
    here = {f"{one['policy']} {one['setting']}".strip(): one for one in summary["policies"]}
    same = {
        "ungoverned": "ungoverned",
        "threshold": "threshold margin=0.9",
        "calibrated": "calibrated max_harm=0.1",
    }
    for arm, point in same.items():
        for figure in ("accuracy", "calls", "withheld", "total_tokens"):
            assert arms[arm][figure] == here[point][figure], (arm, figure)
    assert arms["calibrated"]["withheld"] > 0
    assert sorted(os.listdir(tmp_path)) == ["calls.jsonl", "gates.json", "summary.json", "tables.md"]
