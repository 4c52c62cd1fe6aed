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


def engine(*, refuses: str = "nobody") -> web.Application:
    """It has no place for the client that is named in `refuses`."""
    model = ToyModel()

    async def chat(request: web.Request) -> web.Response:
        if refuses in request.headers.get("user-agent", ""):
            return web.Response(status=503)
        return web.json_response(await model(await request.json()))

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/health", health)
    return app


async def evaluated(app: web.Application, out: Path, *options: str) -> tuple[int | None, str]:
    """The exit code of `governor eval` on the toy, and all that it printed."""
    runner = web.AppRunner(app)
    fixed = ["--environment", "tests.training.toy:Toy", "--upstream", await serve(runner)]
    fixed += ["--seeds", "1", "--no-plots", "--out", str(out)]
    try:
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "governor_server.cli", "eval", *fixed, *options),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await done.communicate()
    finally:
        await runner.cleanup()
    return done.returncode, told.decode()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_arms_go_through_real_governors(tmp_path: Path) -> None:
    """The threshold's own settings and the fitted gate are in force there, and give the figures that the
    same settings have in this process."""
    options = ["--tasks", "6", "--learn", "300", "--max-harm", "0.1", "--policies", "threshold", "calibrated"]
    code, told = await evaluated(engine(), tmp_path, *options)
    assert code == 0, told[-2000:]
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


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_what_was_found_is_not_lost_with_the_seconds(tmp_path: Path) -> None:
    """The last stage talks to real servers for minutes; where one of them gives up, the rest is written."""
    options = ["--tasks", "3", "--learn", "30", "--policies", "threshold"]
    code, told = await evaluated(engine(refuses="OpenAI"), tmp_path, *options)
    assert code == 0, told[-2000:]
    assert "Not timed" in told
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert "threshold" in {one["policy"] for one in summary["policies"]} and not summary["real_servers"]
