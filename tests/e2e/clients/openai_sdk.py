"""An agent with the `openai` package, whose streams are put together by the package itself."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from tests.e2e.clients.conversation import API_KEY, MAX_TOKENS, MODEL, Desk, Ending, Job, loop, main


async def play(job: Job, desk: Desk) -> Ending:
    async with AsyncOpenAI(base_url=job.url, api_key=API_KEY) as client:

        async def turn(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
            settings: dict[str, Any] = {
                "model": MODEL,
                "messages": messages,
                "tools": desk.definitions,
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            if job.stream:
                async with client.chat.completions.stream(**settings) as stream:
                    completion: Any = await stream.get_final_completion()
            else:
                completion = await client.chat.completions.create(**settings)
            (choice,) = completion.choices
            return choice.message.to_dict(), choice.finish_reason

        return await loop(job, desk, turn)


if __name__ == "__main__":
    main(play)
