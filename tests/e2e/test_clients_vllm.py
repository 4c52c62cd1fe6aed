"""Agents as people write them, with the frameworks that they use, through the governor before a real vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from governor_server.engine import Engine
from tests.server.scripted_upstream import Proxied, proxied

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"
"""Where `scripts/clients` puts it."""
FRAMEWORKS = {
    "openai": "openai_sdk",
    "langchain": "langchain_agent",
    "openai-agents": "openai_agents",
    "pydantic-ai": "pydantic_ai_agent",
    "litellm": "litellm_client",
}
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "training")]),
    "PYTHONDONTWRITEBYTECODE": "1",
    # Prices from the internet, and what frameworks report to their makers.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
}
TIMEOUT_S = 900
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

KNOWN = "Please double-check: what is the capital of France?"
"""The model knows it, and asks twice all the same."""
UNKNOWN = "What is the capital of Honduras?"
NOTED = "Save the capital of Honduras to my notes."
QUESTIONS = (KNOWN, UNKNOWN, NOTED)
LOOKUP = ["lookup", {"country": "France", "field": "capital"}]

SETTINGS: dict[str, Any] = {
    "tools": {"read_only": ["lookup", "find_country"], "effectful": ["save_note"]},
    # Where many things run at once, a probe waits longer than it would in service.
    "probe": {"timeout_s": 60.0},
}
EACH = pytest.mark.parametrize("framework", FRAMEWORKS)
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@dataclass(frozen=True, slots=True)
class Played:
    """All conversations of one framework. `told` is what it had by mode (`direct`: without a governor),
    whether it was streamed, and question; `withheld` the calls that the enforcing governor withheld."""

    told: Mapping[tuple[str, bool, str], Mapping[str, Any]]
    withheld: Mapping[bool, float]


@EACH
@BOTH
def test_observed_a_conversation_is_as_without_a_governor(
    engine: Engine, framework: str, stream: bool
) -> None:
    """The same calls with the same arguments, the same answer and the same ends, in every framework."""
    told = played(engine.url, framework).told
    for question in QUESTIONS:
        assert told["observe", stream, question] == told["direct", stream, question]
    assert told["direct", stream, KNOWN]["calls"] == [LOOKUP, LOOKUP]


@EACH
@BOTH
def test_a_withheld_call_looks_like_the_end_of_a_turn(engine: Engine, framework: str, stream: bool) -> None:
    """The framework neither waits for a call nor runs one, and has the answer as it would have had it."""
    had = played(engine.url, framework)
    ungoverned, governed = had.told["direct", stream, KNOWN], had.told["enforce", stream, KNOWN]
    assert had.withheld[stream] >= 1
    assert governed["calls"] == []
    assert governed["answer"].strip() == ungoverned["answer"].strip() == "The capital of France is Paris."
    assert governed["finishes"] == ungoverned["finishes"][-1:]


@EACH
@BOTH
def test_needed_calls_and_those_with_an_effect_are_run(engine: Engine, framework: str, stream: bool) -> None:
    """Enforcing, with results on the way back; the governor finds its records by the ids that come back."""
    told = played(engine.url, framework).told
    for question in (UNKNOWN, NOTED):
        assert told["enforce", stream, question] == told["direct", stream, question]
    assert told["enforce", stream, UNKNOWN]["answer"].strip() == "The capital of Honduras is Tegucigalpa."
    assert told["enforce", stream, NOTED]["notes"] == ["Tegucigalpa"]


async def test_the_agents_sdk_without_the_line_of_the_readme_is_not_governed_and_seen(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It speaks the Responses API by default: its requests pass as they are, are counted, and told once."""
    if not PYTHON.exists():
        pytest.skip("the agent frameworks are not installed: run scripts/clients (make clients)")
    async with proxied(engine.url, "enforce", call_start_id=None, **SETTINGS) as proxy:
        jobs = [{"url": f"{proxy.url}/v1", "stream": False, "question": UNKNOWN}]
        (line,) = await _run("openai_agents_default", jobs)
        assert proxy.metric("governor_ungoverned_requests_total", reason="responses_api") >= 1
        assert proxy.metric("governor_requests_total", route="chat", code="200") == 0
    assert json.loads(line)["answer"].strip() == "The capital of Honduras is Tegucigalpa."
    warnings = [record for record in caplog.records if "not governed" in record.getMessage()]
    assert len(warnings) == 1 and "set_default_openai_api" in warnings[0].getMessage()


@cache
def played(engine_url: str, framework: str) -> Played:
    """Starting a framework takes seconds: one process has all of its conversations."""
    if not PYTHON.exists():
        pytest.skip("the agent frameworks are not installed: run scripts/clients (make clients)")
    return asyncio.run(_played(engine_url, framework))


async def _played(engine_url: str, framework: str) -> Played:
    async with AsyncExitStack() as stack:
        proxies: dict[tuple[str, bool], Proxied] = {}
        for mode in ("observe", "enforce"):
            for stream in (False, True):
                proxy = proxied(engine_url, mode, call_start_id=None, **SETTINGS)
                proxies[mode, stream] = await stack.enter_async_context(proxy)
        urls = {("direct", stream): engine_url for stream in (False, True)}
        urls |= {key: proxy.url for key, proxy in proxies.items()}
        jobs = [
            {"url": f"{url}/v1", "stream": stream, "question": question}
            for (_, stream), url in urls.items()
            for question in QUESTIONS
        ]
        lines = await _run(FRAMEWORKS[framework], jobs)
        keys = [(*key, question) for key in urls for question in QUESTIONS]
        withheld = {
            stream: proxies["enforce", stream].metric(
                "governor_tool_calls_total", tool="lookup", decision="answer", reason="confident_answer"
            )
            for stream in (False, True)
        }
        return Played(dict(zip(keys, map(json.loads, lines), strict=True)), withheld)


async def _run(module: str, jobs: list[dict[str, Any]]) -> list[bytes]:
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), "-m", f"tests.e2e.clients.{module}"),
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(json.dumps(jobs).encode() + b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode("utf-8", "replace")[-4000:]
    return out.splitlines()
