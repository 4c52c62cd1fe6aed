"""How models write tool calls: the tool parsers of vLLM 0.32.0, as data.

Read from `vllm/tool_parsers` and `vllm/parser` of that version, one row for each name that
`--tool-call-parser` knows. A test compares the names with those of the vLLM that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SOURCE: Final = "vLLM 0.32.0"


@dataclass(frozen=True, slots=True)
class ToolParser:
    """The format that one parser reads.

    `name`: what `--tool-call-parser` calls it.
    `opening`: the texts that open a call or a part of one, the outermost first; none where the format has
    none of its own.
    `closing`: what ends the outermost; "" where the call goes on to the end of the turn.
    `token`: vLLM looks the first opening up in the vocabulary, so it is one token of the models concerned.
    `json`: the arguments are written as JSON.
    `bare`: the parser also reads calls without the opening.
    """

    name: str
    opening: tuple[str, ...] = ()
    closing: str = ""
    token: bool = False
    json: bool = True
    bare: bool = False


_QWEN_XML: Final = ("<tool_call>", "<function=", "<parameter=")
_GLM_XML: Final = ("<tool_call>", "<arg_key>", "<arg_value>")
_HUNYUAN_XML: Final = ("<tool_calls>", "<tool_call>", "<tool_sep>", "<arg_key>", "<arg_value>")
_DEEPSEEK: Final = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>")

TOOL_PARSERS: Final = (
    ToolParser("apertus", ("<|tools_prefix|>",), "<|tools_suffix|>"),
    ToolParser("cohere_command3", ("<|START_ACTION|>",), "<|END_ACTION|>"),
    ToolParser("cohere_command4", ("<|START_ACTION|>",), "<|END_ACTION|>"),
    ToolParser("deepseek_v3", _DEEPSEEK, "<｜tool▁calls▁end｜>", token=True),
    ToolParser("deepseek_v31", _DEEPSEEK, "<｜tool▁calls▁end｜>", token=True),
    ToolParser(
        "deepseek_v32",
        ("<｜DSML｜function_calls>", "<｜DSML｜invoke", "<｜DSML｜parameter"),
        "</｜DSML｜function_calls>",
        token=True,
        json=False,
    ),
    ToolParser(
        "deepseek_v4",
        (
            "<｜DSML｜tool_calls>",
            "<｜DSML｜toolcalls>",
            "<｜DSML｜tool>",
            "<｜DSML｜invoke",
            "<｜DSML｜parameter",
        ),
        "</｜DSML｜tool_calls>",
        token=True,
        json=False,
    ),
    ToolParser(
        "deepseek_v41",
        ("<｜DSML｜ calls>", "<｜DSML｜ invoke", "<｜DSML｜ parameter"),
        "</｜DSML｜ calls>",
        token=True,
        json=False,
    ),
    ToolParser(
        "dots",
        ("<dots_function_call>", "<invoke name"),
        "</dots_function_call>",
        json=False,
        bare=True,
    ),
    ToolParser("ernie45", ("<tool_call>",), "</tool_call>", token=True),
    ToolParser("functiongemma", ("<start_function_call>", "<escape>"), "<end_function_call>", json=False),
    ToolParser("gemma4", ("<|tool_call>", '<|"|>'), "<tool_call|>", token=True, json=False),
    ToolParser("gigachat3", ("<|function_call|>", "function call<|role_sep|>"), ""),
    ToolParser("glm45", _GLM_XML, "</tool_call>", token=True, json=False),
    ToolParser("glm47", _GLM_XML, "</tool_call>", token=True, json=False),
    ToolParser("granite", ("<|tool_call|>", "<tool_call>"), "", token=True),
    ToolParser("granite-20b-fc", ("<function_call>",), ""),
    ToolParser("granite4", ("<tool_call>",), "</tool_call>"),
    ToolParser("hermes", ("<tool_call>",), "</tool_call>"),
    ToolParser("hf", json=False, bare=True),
    ToolParser("hunyuan_a13b", ("<tool_calls>",), "</tool_calls>"),
    ToolParser("hy_v3", _HUNYUAN_XML, "</tool_calls>", token=True, json=False),
    ToolParser("hy_v4", _HUNYUAN_XML, "</tool_calls>", token=True, json=False),
    ToolParser("inkling", ("<|content_invoke_tool_json|>",), "<|end_message|>", token=True),
    ToolParser("internlm", ("<|action_start|>", "<|plugin|>"), "<|action_end|>"),
    ToolParser("jamba", ("<tool_calls>",), "</tool_calls>", token=True),
    ToolParser(
        "k2_horizon",
        ("<ifm|tool_calls>", "<ifm|tool_call>", "<ifm|arg_key>", "<ifm|arg_type>", "<ifm|arg_value>"),
        "</ifm|tool_calls>",
        json=False,
    ),
    ToolParser(
        "kimi_k2",
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
        "<|tool_calls_section_end|>",
        token=True,
    ),
    ToolParser(
        "kimi_k3",
        ("<|open|>tools<|sep|>", "<|open|>call", "<|open|>argument"),
        "<|close|>tools<|sep|>",
        json=False,
    ),
    ToolParser("lfm2", ("<|tool_call_start|>",), "<|tool_call_end|>", token=True, json=False),
    ToolParser("ling3", _GLM_XML, "</tool_call>", token=True, json=False),
    ToolParser("llama3_json", ("<|python_tag|>",), "", token=True, bare=True),
    ToolParser("llama4_json", ("<|python_tag|>",), "", token=True, bare=True),
    ToolParser("llama4_pythonic", ("<|python_start|>",), "<|python_end|>", json=False, bare=True),
    ToolParser("longcat", ("<longcat_tool_call>",), "</longcat_tool_call>"),
    ToolParser("mimo", _QWEN_XML, "</tool_call>", token=True, json=False),
    ToolParser("minicpm5", ("<function name", "<functionname"), "</function>", json=False),
    ToolParser(
        "minimax_m2",
        ("<minimax:tool_call>", "<invoke name"),
        "</minimax:tool_call>",
        token=True,
        json=False,
    ),
    ToolParser(
        "minimax_m3",
        ("]<]minimax[>[<tool_call>", "]<]minimax[>["),
        "]<]minimax[>[</tool_call>",
        json=False,
    ),
    ToolParser("mistral", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), "", token=True),
    ToolParser("muse_glimmer", ("<atem:function_calls>", "<atem:"), "</atem:function_calls>", json=False),
    ToolParser("olmo3", ("<function_calls>",), "</function_calls>", json=False, bare=True),
    ToolParser("openai", ("<|channel|>commentary to=functions.", "to=functions."), "<|call|>"),
    ToolParser("phi4_mini_json", ("functools[",), "]"),
    ToolParser(
        "plamo3",
        (
            "<|plamo:begin_tool_requests:plamo|>",
            "<|plamo:begin_tool_request:plamo|>",
            "<|plamo:begin_tool_name:plamo|>",
        ),
        "<|plamo:end_tool_requests:plamo|>",
    ),
    ToolParser("poolside_v1", _GLM_XML, "</tool_call>", token=True, json=False),
    ToolParser("pythonic", json=False, bare=True),
    ToolParser("qwen3_coder", _QWEN_XML, "</tool_call>", token=True, json=False),
    ToolParser("qwen3_json", ("<tool_call>",), "</tool_call>"),
    ToolParser("qwen3_xml", _QWEN_XML, "</tool_call>", token=True, json=False),
    ToolParser(
        "seed_oss",
        ("<seed:tool_call>", "<function=", "<parameter="),
        "</seed:tool_call>",
        token=True,
        json=False,
    ),
    ToolParser(
        "step3",
        ("<｜tool_calls_begin｜>", "<｜tool_call_begin｜>", "<｜tool_sep｜>", "<steptml:"),
        "<｜tool_calls_end｜>",
        json=False,
    ),
    ToolParser("step3p5", _QWEN_XML, "</tool_call>", token=True, json=False),
    ToolParser("xlam", ("[TOOL_CALLS]", "<tool_call>"), "", bare=True),
)

_COMMON: Final = ("hermes", "qwen3_coder", "mistral", "llama3_json")
"""The first choice among parsers that open a call alike."""

BY_NAME: Final = {parser.name: parser for parser in TOOL_PARSERS}

REASONING_MARKERS: Final = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think>", "</ifm|think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis", "<|channel|>final"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("Here is my thought process:", "Here is my response:"),
    ("Here's my thought process:", "Here's my response:"),
)
"""What opens and closes a thought, from `vllm/reasoning` and `vllm/parser` of the same version: the pairs
whose closing marker closes nothing else."""


def parser_of(text: str) -> ToolParser | None:
    """The parser that most likely reads the call written in `text`: most of its markers are there."""
    found = [parser for parser in TOOL_PARSERS if any(marker in text for marker in parser.opening)]
    return max(found, key=lambda parser: _fit(parser, text), default=None)


def _fit(parser: ToolParser, text: str) -> tuple[int, int, bool]:
    there = sum(marker in text for marker in parser.opening)
    return there, there - len(parser.opening), parser.name in _COMMON
