"""The written calls that the governor's rule is tested on are calls for vLLM's own parsers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from governor.tool_parsers import REASONING_MARKERS, TOOL_PARSERS
from tests.governor.written_calls import WRITES

ARGUMENTS = {"country": "Norway", "field": "capital"}
ELSEWHERE = {
    "cohere_command3": "read by cohere_melody",
    "cohere_command4": "read by cohere_melody",
    "hf": "read by a template of the checkpoint",
    "openai": "read by openai_harmony",
    "hy_v4": "its suffix is that of a checkpoint's vocabulary",
}
PARTS = (
    *("<｜tool▁call▁end｜>", "<|tool_call_end|>", "</arg_key>", "</arg_value>", "</tool_sep>"),
    *("<|message_model|>", "<|content_text|>", "<|content_tool_error|>", "<|content_invoke_tool_text|>"),
    *("<|content_model_end_sampling|>", "<|open|>", "<|close|>", "<|sep|>", "<0x0A>"),
)


class Tokenizer:
    """Has every marker as one token."""

    all_special_ids: tuple[int, ...] = ()
    all_special_tokens: tuple[str, ...] = ()
    chat_template = None
    eos_token_id = 0

    def __init__(self) -> None:
        markers = {mark for row in TOOL_PARSERS for mark in (*row.opening, row.closing) if mark}
        markers |= {mark for pair in REASONING_MARKERS for mark in pair} | set(PARTS)
        self._vocabulary = {marker: place for place, marker in enumerate(sorted(markers), start=1000)}
        self.tokenizer = self
        self.init_kwargs: Mapping[str, Any] = {}

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocabulary)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self._vocabulary[text]] if text in self._vocabulary else [1]

    def decode(self, ids: Any, **_: Any) -> str:
        return ""

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._vocabulary.get(token)


@pytest.mark.parametrize("name", sorted(set(WRITES) - set(ELSEWHERE)))
def test_vllm_reads_the_written_call(name: str) -> None:
    parsers = pytest.importorskip("vllm.tool_parsers")
    chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    properties = {key: {"type": "string"} for key in ARGUMENTS}
    function = {"name": "lookup", "parameters": {"type": "object", "properties": properties}}
    request = chat.ChatCompletionRequest(
        model="m",
        messages=[{"role": "user", "content": "?"}],
        tools=[{"type": "function", "function": function}],
    )
    parser = parsers.ToolParserManager.get_tool_parser(name)(Tokenizer(), request.tools)
    (call,) = parser.extract_tool_calls(WRITES[name]("lookup", ARGUMENTS), request).tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("lookup", ARGUMENTS)
