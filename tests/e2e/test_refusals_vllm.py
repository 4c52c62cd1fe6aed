"""A real vLLM that refuses what the governor adds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from governor_server.doctor import examine
from governor_server.engine import Engine
from governor_server.examination import SAMPLE
from governor_server.refusals import TIMES
from governor_server.settings import EngineSettings, Settings
from tests.server.bodies import assembled
from tests.server.scripted_upstream import proxied
from tests.wire.assembled import Assembled
from tests.wire.generated import chat

RECORDED = Path(__file__).parent.parent / "wire" / "vllm_0_32_chat_fields.txt"


@pytest.fixture(scope="module")
def strict() -> Iterator[Engine]:
    """An engine that allows no logprobs beside the sampled token's own."""
    with as_file(files("governor_training.atlas") / "model") as model:
        settings = EngineSettings(model=str(model), served_model_name="atlas", max_num_seqs=4, max_logprobs=0)
        with Engine(settings) as running:
            running.wait_ready()
            yield running


def without_ids(body: bytes) -> Assembled:
    """The message without what no two answers of vLLM share."""
    message = assembled(body)
    calls = tuple(("", tool, arguments) for _, tool, arguments in message.calls)
    return replace(message, calls=calls, ids=frozenset())


@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("stream", [False, True])
async def test_clients_of_a_vllm_without_logprobs_notice_nothing(
    strict: Engine, mode: str, stream: bool
) -> None:
    """`--max-logprobs 0`: they get the answer that they get without a governor, before and after it is
    remembered, and upstream is asked no more for what it refuses."""
    asked = chat(stream=stream, temperature=0, max_tokens=48)
    async with proxied(strict.url, mode) as proxy:
        direct = await proxy.chat(asked, x_governor="off")
        for _ in range(TIMES + 2):
            status, _, body = await proxy.chat(asked)
            assert status == direct[0] == 200
            assert without_ids(body) == without_ids(direct[2])
        # vLLM refuses a stream within the stream.
        reason = "error_event" if stream else "status_400"
        labels = {"addition": "logprobs", "reason": reason, "model": "atlas"}
        assert proxy.metric("governor_refused_additions_total", **labels) == TIMES
        async with proxy.client.get("/governor/refusals") as response:
            (told,) = json.loads(await response.read())["refusals"]
    assert told["left_out"] and told["addition"] == "logprobs"


async def test_the_doctor_names_the_flag(strict: Engine) -> None:
    """So that an operator knows what to change."""
    settings = Settings.load(None, {"upstream": {"url": strict.url}, "engine": {"model": None}}, {})
    diagnosis = await examine(settings, None, SAMPLE)
    assert any("--max-logprobs" in fix for fix in diagnosis.fixes)


def test_the_recorded_fields_are_those_of_the_installed_vllm() -> None:
    """A new version's fields need a row in `governor.fields`. Asked in another process: what vLLM warns of
    while it is imported is not ours."""
    asked = (
        "from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest\n"
        "print('fields:', *ChatCompletionRequest.model_fields)"
    )
    told = subprocess.run([sys.executable, "-c", asked], stdout=subprocess.PIPE, text=True, check=True)
    (fields,) = (line for line in told.stdout.splitlines() if line.startswith("fields:"))
    assert set(RECORDED.read_text().split()) == set(fields.split()[1:])
