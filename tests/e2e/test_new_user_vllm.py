"""The commands of the quick start, as they stand there, by somebody with fifteen questions of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from governor_server.engine import Engine
from governor_training.agent import Agent, Run
from governor_training.atlas.environment import AtlasEnvironment, bundled_model
from governor_training.environment import Split, Task
from tests.server.test_cli import Governor

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
QUESTIONS = 15
TIMEOUT_S = 800

MY_TOOLS = '''\
from governor_training.atlas.tools import Toolbox
from governor_training.atlas.world import load_world

READ_ONLY = ["lookup", "find_country"]
SYSTEM = "Answer with the help of the tools."


def lookup(country: str, field: str) -> str:
    """Read one field of a country."""
    return Toolbox(load_world()).call("lookup", {"country": country, "field": field})


def find_country(field: str, value: str) -> str:
    """Find the country that has a value."""
    return Toolbox(load_world()).call("find_country", {"field": field, "value": value})
'''


def commands(name: str) -> str:
    """The block of the quick start between the markers `name`, without the installation, which the tests'
    environment has behind it."""
    (block,) = re.findall(rf"<!-- {name} -->\n```\n(.*?)```\n<!-- /{name} -->", PAGE, flags=re.DOTALL)
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith("pip install"))


def tasks() -> list[Task]:
    """Questions with an answer, which need no effect."""
    drawn = AtlasEnvironment().tasks(3 * QUESTIONS, 7, Split.HELD_OUT)
    return [task for task in drawn if len(task.tools) == 2][:QUESTIONS]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the questions and the tools in it."""
    rows = [{"question": task.text, "answer": task.expected} for task in tasks()]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_tools.py").write_text(MY_TOOLS)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """The user's: no settings of whoever runs the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GOVERNOR_", "XDG_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "HOME": str(home), "PATH": path, "HF_HUB_OFFLINE": "1"}


def run(script: str, home: Path, replaced: Mapping[str, str]) -> str:
    """All that the commands print; the first that fails ends the test."""
    for old, new in replaced.items():
        assert old in script
        script = script.replace(old, new)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}"
    assert "Traceback" not in done.stdout
    return done.stdout


@contextmanager
def serving(script: str, home: Path, replaced: Mapping[str, str]) -> Iterator[Governor]:
    """The `governor serve` of a block, with its variables, on a free port."""
    for old, new in replaced.items():
        assert old in script
        script = script.replace(old, new)
    script = script.replace("governor serve", "exec governor serve").rstrip() + " --port 0\n"
    log = home / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(["bash", "-euc", script], cwd=home, env=environment(home), stderr=file)
    try:
        yield Governor(process, log, 120)
    finally:
        process.terminate()
        process.wait(60)


def test_fifteen_questions_of_ones_own_are_evaluated(engine: Engine, home: Path) -> None:
    """It says first what it will do, plays all of them, and prints tables."""
    told = run(commands("eval"), home, {"http://your-vllm:8000": engine.url})
    assert f"plays {QUESTIONS} tasks (1 seed)" in " ".join(told.split())
    summary = json.loads((home / "build/eval/summary.json").read_text("utf-8"))
    points = {f"{one['policy']} {one['setting']}".strip(): one for one in summary["policies"]}
    assert points["ungoverned"]["tasks"] == QUESTIONS
    assert points["ungoverned"]["accuracy"]["value"] > 0.5
    assert points["threshold margin=0.9"]["calls"]["value"] < points["ungoverned"]["calls"]["value"]
    assert (home / "build/eval/tables.md").is_file()


def test_ones_own_questions_lead_to_a_trained_model(engine: Engine, home: Path) -> None:
    """Played through a governor, diagnosed, and learned from."""
    model = str(bundled_model())
    told = run(commands("collect"), home, {"http://your-vllm:8000": engine.url, "your/model": model})
    assert "Recommended reward:" in told and "Model: build/run" in told
    assert (home / "build/run/model.safetensors").is_file()


async def test_ones_own_traffic_leads_to_a_trained_model(engine: Engine, home: Path) -> None:
    """An agent works through the proxy and says how it went; the log is diagnosed and learned from."""
    served = {
        "http://your-vllm:8000": engine.url,
        "--read-only 'search*'": "--read-only lookup --read-only find_country",
    }
    with serving(commands("log"), home, served) as proxy:
        url = f"http://127.0.0.1:{proxy.ready()}"
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            chat = Telling(client)
            agent = Agent(chat, AtlasEnvironment())
            for task in tasks():
                asked = await agent.ask(task)
                tell(url, chat.conversation, asked)
    told = run(commands("train"), home, {"your/model": str(bundled_model())})
    assert "Recommended reward:" in told and "Model: build/run" in told
    assert (home / "build/run/model.safetensors").is_file()


class Telling:
    """An agent's chat that keeps the name that the governor gave the conversation."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self.conversation = ""

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        raw = await self._client.chat.completions.with_raw_response.create(**body)
        self.conversation = raw.headers["x-governor-conversation"]
        told: dict[str, Any] = raw.parse().model_dump(exclude_none=True)
        return told


def tell(url: str, conversation: str, run: Run) -> None:
    """As the quick start does with curl."""
    body = json.dumps({"conversation": conversation, "passed": run.correct}).encode()
    request = urllib.request.Request(f"{url}/governor/feedback", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_the_readme_has_the_commands_of_the_quick_start() -> None:
    """Two pages that say different things help nobody."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (evaluates,) = (line for line in commands("eval").splitlines() if line)
    assert evaluates in readme
