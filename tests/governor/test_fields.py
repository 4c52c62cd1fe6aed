"""What of the client's request goes into the governor's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from governor.fields import FIELDS, Use, repeated
from governor.probe import ProbeSettings, probe_request
from tests.wire.generated import chat

RECORDED = Path(__file__).parent.parent / "wire" / "vllm_0_32_chat_fields.txt"
ONCE: dict[str, Any] = {
    "kv_transfer_params": {"do_remote_prefill": True, "remote_block_ids": [1]},
    "ec_transfer_params": {"a": 1},
    "request_id": "r",
    "store": True,
    "metadata": {"run": "1"},
    "return_prompt_text": True,
}
KEPT: dict[str, Any] = {
    "cache_salt": "s",
    "user": "u",
    "session_id": "c",
    "priority": 3,
    "stop": ["\n"],
    "response_format": {"type": "json_object"},
    "structured_outputs": {"json": {}},
    "chat_template": "t",
    "vllm_xargs": {"a": 1},
    "provider": {"only": ["x"]},
}


@pytest.mark.parametrize("name", RECORDED.read_text().split())
def test_every_field_of_vllm_has_a_row(name: str) -> None:
    """Recorded from `ChatCompletionRequest` of vLLM 0.32: what becomes of each was decided, and why."""
    assert FIELDS[name].why


@pytest.mark.parametrize("probe", [False, True])
def test_what_belongs_to_one_request_is_not_repeated(probe: bool) -> None:
    """Neither in a probe nor in what takes the place of withheld calls; what shapes the answer is, and what
    nobody knows."""
    assert repeated(chat(**ONCE, **KEPT), probe=probe) == chat(**KEPT)


@pytest.mark.parametrize("name", [name for name, row in FIELDS.items() if row.probe is Use.KEEP])
def test_a_probe_keeps_what_it_is_said_to_keep(name: str) -> None:
    """The same object, so that the engine's prefix cache serves the prompt."""
    value = object()
    assert probe_request({**chat(), name: value}, ProbeSettings())[name] is value


@pytest.mark.parametrize("name", [name for name, row in FIELDS.items() if row.probe is Use.DROP])
def test_a_probe_drops_what_it_is_said_to_drop(name: str) -> None:
    """Also where the client set it."""
    assert name not in probe_request({**chat(), name: 1}, ProbeSettings())


@pytest.mark.parametrize("start", [None, 7])
def test_a_probe_sets_what_it_is_said_to_set(start: int | None) -> None:
    """Nothing but the fields that the table names differs from the client's."""
    settings = ProbeSettings(call_start_id=start, chat_template_kwargs={"enable_thinking": False})
    sent = probe_request(chat(), settings)
    changed = {name for name in sent if sent[name] != chat().get(name)}
    assert changed <= {name for name, row in FIELDS.items() if row.probe is Use.SET}
    assert sent["tool_choice"] == "none"
