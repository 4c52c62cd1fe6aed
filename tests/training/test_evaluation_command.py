"""`governor eval` with real governors, in front of a server that plays the toy model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from governor_server.engine import free_port
from tests.training.toy import ToyModel

ROOT = Path(__file__).parents[2]


async def serve(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def engine(*, refuses: str = "nobody", names_numbers: bool = False) -> web.Application:
    """It has no place for the client that is named in `refuses`. `names_numbers`: the number that is fetched
    stands in the call, for tools that do not know the task."""
    model = ToyModel()

    async def chat(request: web.Request) -> web.Response:
        if refuses in request.headers.get("user-agent", ""):
            return web.Response(status=503)
        body = await request.json()
        text = json.dumps(await model(body))
        if names_numbers:
            number = re.findall(r"\d+", body["messages"][0]["content"])[0]
            text = text.replace(
                json.dumps(json.dumps({"name": "n"})), json.dumps(json.dumps({"name": number}))
            )
        return web.Response(text=text, content_type="application/json")

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/health", health)
    return app


async def evaluated(app: web.Application, out: Path, *options: str) -> tuple[int | None, str]:
    """The exit code of `governor eval` on the toy, and all that it printed."""
    return await run(
        app, "--environment", "tests.training.toy:Toy", "--seeds", "1", "--out", str(out), *options
    )


async def run(app: web.Application, *options: str) -> tuple[int | None, str]:
    """The exit code of `governor eval` in front of `app`, and all that it printed."""
    runner = web.AppRunner(app)
    fixed = ["--upstream", await serve(runner), "--no-plots"]
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


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_fifteen_questions_are_enough(tmp_path: Path) -> None:
    """A new user has a few questions: all of them are played, what cannot learn from so few is left out, and
    both are said before anything is asked."""
    rows = [{"question": f"Number {number}?", "answer": str(number)} for number in range(1, 16)]
    questions, tools, out = tmp_path / "questions.jsonl", tmp_path / "my_tools.py", tmp_path / "out"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tools.write_text(
        'READ_ONLY = ["fetch"]\ndef fetch(name: str) -> str:\n    """Fetch a number."""\n    return name\n'
    )
    own = ["--dataset", str(questions), "--tools", str(tools), "--model", "toy", "--out", str(out)]
    code, told = await run(engine(names_numbers=True), *own)
    assert code == 0, told[-3000:]
    before, _, after = told.partition("ungoverned, seed 1")
    said = " ".join(before.split())
    assert "plays 15 tasks (1 seed)" in said and "calibrated and forecast are left out" in said
    estimated = re.findall(r"about ([\d,]+) to ([\d,]+) times", said)[0]
    low, high = (int(number.replace(",", "")) for number in estimated)
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert low <= summary["requests"]["asked_of_the_engine"] <= high
    points = {f"{one['policy']} {one['setting']}".strip(): one for one in summary["policies"]}
    assert points["ungoverned"]["tasks"] == 15 and points["ungoverned"]["accuracy"]["value"] == 1.0
    assert points["threshold margin=0.9"]["avoidable_removed"]["value"] > 0.5
    assert not any(name.startswith(("calibrated", "forecast")) for name in points)
    assert set(summary["real_servers"]) == {"ungoverned", "threshold"}
    assert sorted(os.listdir(out)) == ["calls.jsonl", "summary.json", "tables.md"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["demo", "live", "eval --environment tests.training.toy:Toy --tasks 3 --learn 3"],
)
def test_a_server_that_does_not_run_is_told_in_a_line(command: str, tmp_path: Path) -> None:
    """At once: nobody waits for a governor that waits for it."""
    port = free_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    given = [*command.split(), "--upstream", url, "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "governor_server.cli", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"governor: nothing answers at {url}") and done.stderr.count("\n") == 1
