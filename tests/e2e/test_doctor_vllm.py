"""`governor doctor` before a real vLLM that has all it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from governor_server.cli import main
from governor_server.engine import Engine
from governor_training.atlas.tools import ANSWERING

QUESTION = "Please double-check: what is the domain of Cuba?"
"""The model looks it up, and answers in a few words when it may not."""

PROVEN = (
    "logprobs",
    "top_logprobs",
    "tool calls",
    "logprobs of calls",
    "streamed logprobs",
    "usage in streams",
    "call start token",
    "call ban",
    "forced answer",
    "prefix cache",
)


def test_the_doctor_finds_the_bundled_engine_fit_for_every_tier(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the launcher starts is what the governor needs; a new vLLM that changes it is told here."""
    monkeypatch.chdir(tmp_path)
    system = {"role": "system", "content": "Answer with the help of the tools."}
    request = {"messages": [system, {"role": "user", "content": QUESTION}], "tools": ANSWERING}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = ["doctor", "--upstream", engine.url, "--tools", "request.json", "--timeout", "600", "--json"]
    code = main(command)
    report = json.loads(capsys.readouterr().out)
    seen = {check["check"]: (check["result"], check["seen"]) for check in report["checks"]}
    assert {check: seen[check] for check in PROVEN if seen[check][0] != "ok"} == {}
    assert seen["engine"][1].startswith("vLLM ")
    assert seen["model"][1].startswith("atlas, ")
    assert [tier["works"] for tier in report["tiers"]][:2] == ["yes", "yes"]
    assert code == 0


def test_a_served_model_must_be_named(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is not examined then, and the one fix says so."""
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--upstream", engine.url, "--model", "nobody"]) == 1
    assert "nobody is not among the served: atlas" in capsys.readouterr().out
