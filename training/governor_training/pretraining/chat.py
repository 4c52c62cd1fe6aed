"""How a conversation is written for the model: the chat template, and the same in Python for the training
data.

Qwen3's format in short: ChatML turns, tools as JSON lines in the system turn, reasoning in <think>, calls in
<tool_call>, results in <tool_response>. With `enable_thinking` false the reasoning is an empty block, which
is how a forced answer is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

SYSTEM = "Answer with the help of the tools."
END = "<|im_end|>"
PAD = "<|endoftext|>"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
    {{- '<tools>\\n' }}
    {%- for tool in tools %}
        {%- set tool = tool.function or tool %}
        {{- '{"name": ' + tool.name | tojson + ', "description": ' + tool.description | tojson }}
        {{- ', "parameters": ' + tool.parameters | tojson + '}\\n' }}
    {%- endfor %}
    {{- '</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- set thought = message.reasoning or message.reasoning_content %}
        {%- if thought %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {%- if message.content %}{{- message.content.strip('\\n') }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {%- if not (loop.last and continue_final_message) %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def system_turn(tools: Sequence[dict[str, Any]], system: str | None = SYSTEM) -> str:
    if not tools:
        return "" if system is None else f"<|im_start|>system\n{system}{END}\n"
    head = "" if system is None else f"{system}\n"
    lines = "".join(json.dumps(tool["function"], ensure_ascii=False) + "\n" for tool in tools)
    return f"<|im_start|>system\n{head}<tools>\n{lines}</tools>{END}\n"


def user_turn(text: str) -> str:
    return f"<|im_start|>user\n{text}{END}\n"


def tool_turn(result: str) -> str:
    return f"<|im_start|>user\n<tool_response>\n{result}\n</tool_response>{END}\n"


ASSISTANT = "<|im_start|>assistant\n"


def thought(text: str) -> str:
    return f"<think>\n{text}\n</think>\n\n"


def call(name: str, **arguments: str) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
