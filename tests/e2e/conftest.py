"""One real vLLM with the bundled atlas model for all tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from governor_server import app
from governor_server.engine import Engine
from governor_server.settings import EngineSettings

HERE = Path(__file__).parent
TIMEOUT_S = 1800
"""Of the first test: it waits for the engine, which takes minutes where many things run at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """An engine on cores that are busy with something else is slow to say that it is there."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(app, "READY_TIMEOUT_S", 60.0)
        yield


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running, warmed-up engine; `engine.url` is its address without `/v1`, its model's name is `atlas`.

    `E2E_MODEL` puts another model in the place of the bundled one.
    """
    with as_file(files("governor_training.atlas") / "model") as bundled:
        model = os.environ.get("E2E_MODEL", str(bundled))
        settings = EngineSettings(
            model=model,
            served_model_name="atlas",
            reasoning_parser="qwen3",
            max_num_seqs=16,
            max_logprobs=-1,
        )
        with Engine(settings) as running:
            running.wait_ready()
            yield running
