"""LangChain's agent, a LangGraph graph, with `ChatOpenAI`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from tests.e2e.clients.conversation import API_KEY, MAX_TOKENS, MODEL, SYSTEM, Desk, Ending, Job, main


async def play(job: Job, desk: Desk) -> Ending:
    model = ChatOpenAI(
        model=MODEL,
        base_url=job.url,
        api_key=API_KEY,
        temperature=0,
        max_tokens=MAX_TOKENS,
        streaming=job.stream,
        disable_streaming=not job.stream,
    )
    tools = [tool(desk, function) for function in desk.functions]
    agent = create_agent(model, tools, system_prompt=SYSTEM)
    state = await agent.ainvoke({"messages": [{"role": "user", "content": job.question}]})
    said = [message for message in state["messages"] if isinstance(message, AIMessage)]
    return Ending(str(said[-1].text), [message.response_metadata["finish_reason"] for message in said])


def tool(desk: Desk, function: Mapping[str, Any]) -> StructuredTool:
    async def run(**arguments: Any) -> str:
        return desk.run(function["name"], arguments)

    return StructuredTool.from_function(
        coroutine=run,
        name=function["name"],
        description=function["description"],
        args_schema=function["parameters"],
    )


if __name__ == "__main__":
    main(play)
