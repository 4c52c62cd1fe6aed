"""How the models of each tool parser write a call, and answers that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Write = Callable[[str, Mapping[str, Any]], str]


def _json(name: str, arguments: Mapping[str, Any], key: str = "arguments", named: str = "name") -> str:
    return json.dumps({named: name, key: arguments}, ensure_ascii=False)


def _python(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _each(arguments: Mapping[str, Any], form: str) -> str:
    return "".join(form.format(key=key, value=value) for key, value in arguments.items())


def _qwen(open_: str, close: str) -> Write:
    def write(name: str, arguments: Mapping[str, Any]) -> str:
        return (
            f"{open_}\n<function={name}>\n"
            f"{_each(arguments, '<parameter={key}>{value}</parameter>')}\n</function>\n{close}"
        )

    return write


def _tagged(open_: str, close: str, key: str = "arguments") -> Write:
    return lambda name, arguments: open_ + _json(name, arguments, key) + close


def _glm(name: str, arguments: Mapping[str, Any]) -> str:
    pairs = _each(arguments, "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def _dsml(section: str, gap: str = "") -> Write:
    d = f"｜DSML｜{gap}"

    def write(name: str, arguments: Mapping[str, Any]) -> str:
        pairs = "".join(
            f'<{d}parameter name="{key}" string="true">{value}</{d}parameter>\n'
            for key, value in arguments.items()
        )
        return f'<{d}{section}>\n<{d}invoke name="{name}">\n{pairs}</{d}invoke>\n</{d}{section}>'

    return write


def _invokes(open_: str, close: str, space: str = "") -> Write:
    def write(name: str, arguments: Mapping[str, Any]) -> str:
        pairs = "".join(
            f'<{space}parameter name="{key}">{value}</{space}parameter>\n' for key, value in arguments.items()
        )
        return f'{open_}<{space}invoke name="{name}">\n{pairs}</{space}invoke>{close}'

    return write


def _hunyuan(separator: str, suffix: str = "") -> Write:
    def write(name: str, arguments: Mapping[str, Any]) -> str:
        pairs = _each(arguments, "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>")
        text = f"<tool_calls><tool_call>{name}{separator}{pairs}</tool_call></tool_calls>"
        return text.replace(">", f"{suffix}>") if suffix else text

    return write


def _deepseek(head: str, before: str, after: str) -> Write:
    return lambda name, arguments: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{head}{name}{before}"
        f"{json.dumps(arguments)}{after}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )


def _minimax_m3(name: str, arguments: Mapping[str, Any]) -> str:
    n = "]<]minimax[>["
    pairs = _each(arguments, n + "<{key}>{value}" + n + "</{key}>\n")
    return f'{n}<tool_call>\n{n}<invoke name="{name}">\n{pairs}{n}</invoke>\n{n}</tool_call>'


def _kimi_k3(name: str, arguments: Mapping[str, Any]) -> str:
    pairs = _each(
        arguments, '<|open|>argument key="{key}" type="string"<|sep|>{value}<|close|>argument<|sep|>'
    )
    call = f'<|open|>call tool="{name}" index="1"<|sep|>{pairs}<|close|>call<|sep|>'
    return f"<|open|>tools<|sep|>{call}<|close|>tools<|sep|>"


def _k2_horizon(name: str, arguments: Mapping[str, Any]) -> str:
    pairs = _each(arguments, "<ifm|arg_key>{key}</ifm|arg_key><ifm|arg_value>{value}</ifm|arg_value>")
    return f"<ifm|tool_calls><ifm|tool_call>{name}{pairs}</ifm|tool_call></ifm|tool_calls>"


def _plamo(name: str, arguments: Mapping[str, Any]) -> str:
    p = "<|plamo:{}:plamo|>".format
    body = f"{p('begin_tool_name')}{name}{p('end_tool_name')}"
    body += f"{p('begin_tool_arguments')}<|plamo:constrain|>json<|plamo:msg|>{json.dumps(arguments)}"
    body += p("end_tool_arguments")
    call = f"{p('begin_tool_request')}{body}{p('end_tool_request')}"
    return f"{p('begin_tool_requests')}{call}{p('end_tool_requests')}"


def _kimi_k2(name: str, arguments: Mapping[str, Any]) -> str:
    return (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
        f"<|tool_call_argument_begin|>{json.dumps(arguments)}<|tool_call_end|><|tool_calls_section_end|>"
    )


def _cohere(name: str, arguments: Mapping[str, Any]) -> str:
    call = {"tool_call_id": "0", "tool_name": name, "parameters": arguments}
    return f"<|START_ACTION|>[\n    {json.dumps(call)}\n]<|END_ACTION|>"


def _minicpm(name: str, arguments: Mapping[str, Any]) -> str:
    return (
        f'<function name="{name}">' + _each(arguments, '<param name="{key}">{value}</param>') + "</function>"
    )


def _step3(name: str, arguments: Mapping[str, Any]) -> str:
    pairs = _each(arguments, '<steptml:parameter name="{key}">{value}</steptml:parameter>')
    call = f'function<｜tool_sep｜><steptml:invoke name="{name}">{pairs}</steptml:invoke>'
    return f"<｜tool_calls_begin｜><｜tool_call_begin｜>{call}<｜tool_call_end｜><｜tool_calls_end｜>"


WRITES: Mapping[str, Write] = {
    "apertus": lambda name, arguments: f"<|tools_prefix|>{json.dumps([{name: arguments}])}<|tools_suffix|>",
    "cohere_command3": _cohere,
    "cohere_command4": _cohere,
    "deepseek_v3": _deepseek("function<｜tool▁sep｜>", "\n```json\n", "\n```"),
    "deepseek_v31": _deepseek("", "<｜tool▁sep｜>", ""),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml("calls", " "),
    "dots": _invokes("<dots_function_call>\n", "\n</dots_function_call>"),
    "ernie45": _tagged("<tool_call>\n", "\n</tool_call>\n"),
    "functiongemma": lambda name, arguments: (
        f"<start_function_call>call:{name}{{"
        + ",".join(f"{key}:<escape>{value}<escape>" for key, value in arguments.items())
        + "}<end_function_call>"
    ),
    "gemma4": lambda name, arguments: (
        f"<|tool_call>call:{name}{{"
        + ",".join(f'{key}:<|"|>{value}<|"|>' for key, value in arguments.items())
        + "}<tool_call|>"
    ),
    "gigachat3": _tagged("<|function_call|>", ""),
    "glm45": _glm,
    "glm47": lambda name, arguments: _glm(name, arguments).replace("\n", ""),
    "granite": lambda name, arguments: f"<|tool_call|> [{_json(name, arguments)}]",
    "granite-20b-fc": _tagged("<function_call> ", ""),
    "granite4": _tagged("<tool_call>\n", "\n</tool_call>"),
    "hermes": _tagged("<tool_call>\n", "\n</tool_call>"),
    "hf": _tagged("", ""),
    "hunyuan_a13b": lambda name, arguments: f"<tool_calls>[{_json(name, arguments)}]</tool_calls>",
    "hy_v3": _hunyuan("<tool_sep>"),
    "hy_v4": _hunyuan("", ":6124c78e"),
    "inkling": lambda name, arguments: (
        f"<|message_model|><|content_invoke_tool_json|>{_json(name, arguments, 'args')}<|end_message|>"
    ),
    "internlm": _tagged("<|action_start|><|plugin|>\n", "<|action_end|>", "parameters"),
    "jamba": lambda name, arguments: f"<tool_calls>[\n    {_json(name, arguments)}\n]</tool_calls>",
    "k2_horizon": _k2_horizon,
    "kimi_k2": _kimi_k2,
    "kimi_k3": _kimi_k3,
    "lfm2": lambda name, arguments: f"<|tool_call_start|>[{_python(name, arguments)}]<|tool_call_end|>",
    "ling3": _glm,
    "llama3_json": _tagged("<|python_tag|>", "", "parameters"),
    "llama4_json": _tagged("", "", "parameters"),
    "llama4_pythonic": lambda name, arguments: f"<|python_start|>[{_python(name, arguments)}]<|python_end|>",
    "longcat": _tagged("<longcat_tool_call>", "</longcat_tool_call>"),
    "mimo": _qwen("<tool_call>", "</tool_call>"),
    "minicpm5": _minicpm,
    "minimax_m2": _invokes("<minimax:tool_call>", "</minimax:tool_call>"),
    "minimax_m3": _minimax_m3,
    "mistral": lambda name, arguments: f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}",
    "muse_glimmer": lambda name, arguments: (
        f"<|start|>assistant to={name}<|message|>"
        + _invokes("<atem:function_calls>\n", "\n</atem:function_calls>", "atem:")(name, arguments)
        + "<|eom|>"
    ),
    "olmo3": lambda name, arguments: f"<function_calls>{_python(name, arguments)}</function_calls>",
    "openai": lambda name, arguments: (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{json.dumps(arguments)}<|call|>"
    ),
    "phi4_mini_json": lambda name, arguments: f"functools[{_json(name, arguments)}]",
    "plamo3": _plamo,
    "poolside_v1": _glm,
    "pythonic": lambda name, arguments: f"[{_python(name, arguments)}]",
    "qwen3_coder": _qwen("<tool_call>", "</tool_call>"),
    "qwen3_json": _tagged("<tool_call>\n", "\n</tool_call>"),
    "qwen3_xml": _qwen("<tool_call>", "</tool_call>"),
    "seed_oss": _qwen("<seed:tool_call>", "</seed:tool_call>"),
    "step3": _step3,
    "step3p5": _qwen("<tool_call>", "</tool_call>"),
    "xlam": lambda name, arguments: f"```json\n[{_json(name, arguments)}]\n```",
}
"""By the parser's name, a call as its models write it."""
