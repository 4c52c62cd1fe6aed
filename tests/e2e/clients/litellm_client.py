"""An agent with LiteLLM as its client, by the name that it has for vLLM."""

from __future__ import annotations

from typing import Any

import litellm

from tests.e2e.clients.conversation import API_KEY, MAX_TOKENS, MODEL, Desk, Ending, Job, loop, main

# It would print to where the results go.
litellm.suppress_debug_info = True


async def play(job: Job, desk: Desk) -> Ending:
    async def turn(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        completion = await litellm.acompletion(
            model=f"hosted_vllm/{MODEL}",
            api_base=job.url,
            api_key=API_KEY,
            messages=messages,
            tools=desk.definitions,
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=job.stream,
        )
        if job.stream:
            completion = litellm.stream_chunk_builder([chunk async for chunk in completion])
        (choice,) = completion.choices
        return choice.message.model_dump(exclude_none=True), choice.finish_reason

    return await loop(job, desk, turn)


if __name__ == "__main__":
    main(play)
