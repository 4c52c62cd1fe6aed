"""The OpenAI Agents SDK, over chat completions as the README says, or over what it speaks by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agents import (
    Agent,
    FunctionTool,
    ModelSettings,
    Runner,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from tests.e2e.clients.conversation import (
    API_KEY,
    MAX_TOKENS,
    MAX_TURNS,
    MODEL,
    SYSTEM,
    Desk,
    Ending,
    Job,
    main,
)


async def play(job: Job, desk: Desk) -> Ending:
    set_default_openai_api("chat_completions")
    return await play_by_default(job, desk)


async def play_by_default(job: Job, desk: Desk) -> Ending:
    # It would send what was said to OpenAI.
    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=job.url, api_key=API_KEY) as client:
        set_default_openai_client(client)
        agent: Agent[None] = Agent(
            "atlas",
            instructions=SYSTEM,
            model=MODEL,
            model_settings=ModelSettings(temperature=0, max_tokens=MAX_TOKENS),
            tools=[tool(desk, function) for function in desk.functions],
        )
        if not job.stream:
            return Ending((await Runner.run(agent, job.question, max_turns=MAX_TURNS)).final_output)
        streamed = Runner.run_streamed(agent, job.question, max_turns=MAX_TURNS)
        async for _ in streamed.stream_events():
            pass
        return Ending(streamed.final_output)


def tool(desk: Desk, function: Mapping[str, Any]) -> FunctionTool:
    async def run(_: Any, arguments: str) -> str:
        return desk.run(function["name"], json.loads(arguments))

    return FunctionTool(
        function["name"], function["description"], dict(function["parameters"]), run, strict_json_schema=False
    )


if __name__ == "__main__":
    main(play)
