"""A model in this process, and logs that come of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from governor.entropy import estimate
from governor.spans import Markup
from governor_server.cli import main
from governor_training.atlas.environment import AtlasEnvironment
from governor_training.environment import Split
from governor_training.finetuning.logs import read
from governor_training.inprocess import InProcess, parsed

QUESTION = "What is the capital of Germany?"


def body(**more: Any) -> dict[str, Any]:
    (task,) = AtlasEnvironment().tasks(1, 1, Split.TRAIN)
    messages = [task.messages[0], {"role": "user", "content": QUESTION}]
    return {"model": "atlas", "messages": messages, "tools": list(task.tools), "temperature": 0, **more}


def test_it_answers_as_an_engine_does(engine: InProcess) -> None:
    """Reasoning, a call with its own id, the finish reason and the usage."""
    (answer,) = engine.answer([body()])
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning"] == "Germany: Berlin"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "lookup"
    assert json.loads(call["function"]["arguments"]) == {"country": "Germany", "field": "capital"}
    assert answer["usage"]["completion_tokens"] > 5


def test_requests_of_every_kind_share_a_batch(engine: InProcess) -> None:
    """A ban, a temperature or a limit of one row does not reach another."""
    banned = body(
        logit_bias={str(engine.token_id("<tool_call>")): -100},
        chat_template_kwargs={"enable_thinking": False},
    )
    alone, forced, short, hot = engine.answer([body(), banned, body(max_tokens=2), body(temperature=3.0)])
    assert alone["choices"] == [
        {**engine.answer([body()])[0]["choices"][0], "message": alone["choices"][0]["message"]}
    ]
    assert forced["choices"][0]["message"]["content"] == "The capital of Germany is Berlin."
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 2)
    assert hot["choices"][0]["message"] != alone["choices"][0]["message"]


def test_its_logprobs_are_those_of_the_model(engine: InProcess) -> None:
    """Before temperature and bans, as vLLM's are: the whole vocabulary gives the exact entropy."""
    size = engine.vocab_size
    (answer,) = engine.answer([body(logprobs=True, top_logprobs=size, max_tokens=3)])
    for token in answer["choices"][0]["logprobs"]["content"]:
        logprobs = [one["logprob"] for one in token["top_logprobs"]]
        assert len(logprobs) == size
        assert estimate(logprobs, size).tail == 0.0
        assert torch.tensor(logprobs).exp().sum().item() == pytest.approx(1.0, abs=1e-4)
        assert max(logprobs) == pytest.approx(token["logprob"], abs=1e-4)


async def test_requests_that_wait_are_answered_together(engine: InProcess) -> None:
    """Each by its own, and a failure reaches all who wait instead of leaving them waiting."""
    first, second = await asyncio.gather(engine(body()), engine(body(max_tokens=2)))
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert second["usage"]["completion_tokens"] == 2
    broken = {"messages": [{"role": "user"}], "max_tokens": 1, "tools": [1]}
    found = await asyncio.gather(engine(broken), engine(broken), return_exceptions=True)
    assert all(isinstance(one, Exception) for one in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hi.", {"content": "Hi."}),
        ("<think>\nHm.\n</think>\n\nHi.", {"content": "Hi.", "reasoning": "Hm."}),
        ("<think>\n\n</think>\n\nHi.", {"content": "Hi."}),
        ("<tool_call>\n{broken}\n</tool_call>", {"content": "<tool_call>\n{broken}\n</tool_call>"}),
        ('<tool_call>\n{"name": 1}\n</tool_call>', {"content": '<tool_call>\n{"name": 1}\n</tool_call>'}),
    ],
)
def test_a_text_is_read_as_a_message(text: str, message: dict[str, str]) -> None:
    """A broken call is text, as the agent would get it."""
    assert parsed(text, Markup(), iter(["c1"])) == {"role": "assistant", **message}


def test_collect_and_prepare_make_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a model to rows with labelled calls, and shortened ones beside them."""
    logs, rows = tmp_path / "logs.parquet", tmp_path / "rows.jsonl"
    assert main(["train", "collect", "--tasks", "6", "--temperature", "0", "--out", str(logs)]) == 0
    assert main(["train", "prepare", str(logs), "--out", str(rows), "--shorten"]) == 0
    found = list(read([rows]))
    assert "6 conversations, 100.0% right" in capsys.readouterr().out
    real = [one for one in found if one.kind == "logged"]
    assert len(real) == 6
    assert all(call.label is not None for one in real for call in one.executed)
    assert any(call.measured.reduction is not None for one in real for call in one.executed)
    assert len(found) > 6


def test_prepare_puts_bad_rows_aside_and_loses_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or ends with one line that names the row."""
    log, rows = tmp_path / "log.jsonl", tmp_path / "rows.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    log.write_text(f"{json.dumps(good)}\n{{\n")
    assert main(["train", "prepare", str(log), "--out", str(rows)]) == 2
    assert f"{log}:2: the line is no JSON" in capsys.readouterr().err
    assert not rows.exists()
    assert main(["train", "prepare", str(log), "--out", str(rows), "--skip-bad"]) == 0
    rejected = json.loads((tmp_path / "rows.jsonl.rejected.jsonl").read_text())
    assert rejected == {"error": f"{log}:2: the line is no JSON", "row": "{"}
    assert len(list(read([rows]))) == 1
