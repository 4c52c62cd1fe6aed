"""The optional parts of the distribution: what each needs, and how it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Final

from governor_server.errors import ServerError

_CALIBRATION: Final = ("numpy", "sklearn")
_DEMO: Final = ("matplotlib", "openai", "rich")

MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "calibration": _CALIBRATION,
    "demo": _DEMO,
    "eval": (*_CALIBRATION, *_DEMO),
    "otel": ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"),
    "redis": ("redis",),
    "report": ("jinja2", "matplotlib"),
    "training": (
        *_CALIBRATION,
        *_DEMO,
        *("accelerate", "datasets", "peft", "pyarrow", "safetensors"),
        *("tokenizers", "torch", "tqdm", "transformers", "trl"),
    ),
    "vllm": ("vllm",),
}
"""The modules that each extra of the distribution brings, as `pyproject.toml` declares them; a test compares
the two."""


class MissingExtra(ServerError):
    """A command or a setting needs an extra that is not installed."""

    exit_code = 2


def how_to_install(extra: str) -> str:
    """The command that installs an extra. No package index has this distribution, so it is installed from
    a clone.

    >>> how_to_install("redis")
    "pip install '.[redis]' in your clone of the repository"
    """
    return f"pip install '.[{extra}]' in your clone of the repository"


def missing(extra: str) -> tuple[str, ...]:
    """The modules of an extra that cannot be imported here."""
    return tuple(name for name in MODULES[extra] if not _importable(name))


def check(what: str, extra: str) -> None:
    """Raises `MissingExtra` unless `what` can be done here."""
    if absent := missing(extra):
        raise MissingExtra(
            f"{what} needs the extra `{extra}` (missing here: {', '.join(absent)}): {how_to_install(extra)}"
        )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # A package above it is missing.
        return False
