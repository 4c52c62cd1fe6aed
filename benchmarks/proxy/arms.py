"""What is compared: no proxy, a bare relay, the governor in all that it may be told to do, and LiteLLM's
proxy."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.proxy.processes import Running, running
from benchmarks.proxy.recordings import MODEL, READ_ONLY
from governor_server.engine import free_port

DIRECT: Final = "direct"
FLOOR: Final = "relay"
"""Copies bytes: what any proxy costs on this machine."""
PASSING: Final = "passing"
"""The governor, told by each request to leave it alone."""
MEASURING: Final = "measuring"
"""Observing without requests of its own."""
OBSERVING: Final = "observing"
ENFORCING: Final = "enforcing"
LITELLM: Final = "litellm"
GOVERNED: Final = (OBSERVING, ENFORCING)
"""The modes as they come: what is promised holds for them."""
OURS: Final = (PASSING, MEASURING, *GOVERNED)
ARMS: Final = (DIRECT, FLOOR, *OURS, LITELLM)
"""In the order in which they are compared."""

RECORDS: Final = 500
VOCABULARY: Final = 151_936
"""Of Qwen3: the bounds of the entropy depend on it, their cost does not."""
LITELLM_KEY: Final = "sk-benchmark-0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to the upstream. `program` is None where nothing stands in between; `headers` are those that
    its clients send besides."""

    name: str
    port: int
    program: Running | None = None
    key: str = "none"
    headers: Mapping[str, str] = field(default_factory=dict)


def settings(arm: str, store: Path) -> dict[str, Any]:
    """The governor's configuration: the defaults, and the tools that may be governed. It logs what is wrong
    and not each request, as LiteLLM's proxy does here, and its store is full within minutes, so that what
    memory grows by after that is lost."""
    mode = "enforce" if arm == ENFORCING else "observe"
    return {
        "server": {"log_level": "warning"},
        "governance": {"mode": mode, "vocab_size": VOCABULARY},
        "observe": {"probe": arm != MEASURING},
        "tools": {"read_only": list(READ_ONLY)},
        "store": {"path": str(store), "max_records": RECORDS},
    }


@contextlib.contextmanager
def relay(upstream: int, at: Path, core: int) -> Iterator[Running]:
    """The bare relay in front of the server at the port `upstream`."""
    port = free_port("127.0.0.1", 0)
    command = [
        *(sys.executable, "-m", "benchmarks.proxy.relay"),
        *("--upstream", str(upstream), "--port", str(port)),
    ]
    with running(FLOOR, command, port, at / f"{FLOOR}.log", core=core) as program:
        yield program


@contextlib.contextmanager
def governor(
    name: str, configuration: Mapping[str, Any], upstream: int, at: Path, core: int
) -> Iterator[Running]:
    """`governor serve` in front of the server at the port `upstream`; its files are in the folder `at`."""
    file = at / f"{name}.yaml"
    file.write_text(yaml.safe_dump(dict(configuration)))
    port = free_port("127.0.0.1", 0)
    command = [
        *(sys.executable, "-m", "governor_server.cli", "serve", "--config", str(file)),
        *("--upstream", f"http://127.0.0.1:{upstream}", "--port", str(port)),
    ]
    with running(name, command, port, at / f"{name}.log", core=core, ready="/readyz") as program:
        yield program


@contextlib.contextmanager
def litellm(python: Path, upstream: int, at: Path, core: int) -> Iterator[Running]:
    """LiteLLM's proxy, one worker that logs errors only; `python` is that of its environment."""
    file = at / "litellm.yaml"
    model = {
        "model_name": MODEL,
        "litellm_params": {
            "model": f"openai/{MODEL}",
            "api_base": f"http://127.0.0.1:{upstream}/v1",
            "api_key": "none",
        },
    }
    configuration = {
        "model_list": [model],
        "general_settings": {"master_key": LITELLM_KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    file.write_text(yaml.safe_dump(configuration))
    port = free_port("127.0.0.1", 0)
    command = [
        *(str(python.parent / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1"),
    ]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": "",
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
    }
    log = at / "litellm.log"
    with running(
        LITELLM, command, port, log, core=core, ready="/health/liveliness", environment=environment
    ) as program:
        yield program
