"""pydantic-ai's agent, over chat completions."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelSettings, Tool, UsageLimits
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

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

PROFILE = OpenAIModelProfile(json_schema_transformer=None, openai_supports_strict_tool_definition=False)
"""Tools as they were defined, and not as OpenAI's strict ones: this model knows but one way to write them."""


async def play(job: Job, desk: Desk) -> Ending:
    async with AsyncOpenAI(base_url=job.url, api_key=API_KEY) as client:
        agent = Agent(
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client), profile=PROFILE),
            system_prompt=SYSTEM,
            tools=[tool(desk, function) for function in desk.functions],
            model_settings=ModelSettings(temperature=0, max_tokens=MAX_TOKENS),
        )
        done = await agent.run(
            job.question,
            usage_limits=UsageLimits(request_limit=MAX_TURNS),
            event_stream_handler=watch if job.stream else None,
        )
        said = [message for message in done.all_messages() if isinstance(message, ModelResponse)]
        return Ending(done.output, [str(message.finish_reason) for message in said])


async def watch(_: Any, events: AsyncIterable[Any]) -> None:
    """With somebody who watches, the agent asks for streams."""
    async for _event in events:
        pass


def tool(desk: Desk, function: Mapping[str, Any]) -> Tool[None]:
    async def run(**arguments: Any) -> str:
        return desk.run(function["name"], arguments)

    return Tool.from_schema(run, function["name"], function["description"], dict(function["parameters"]))


if __name__ == "__main__":
    main(play)
