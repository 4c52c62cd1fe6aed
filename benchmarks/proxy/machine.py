"""Where and with what the benchmark ran."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from governor_training.machine import machine

PACKAGES: Final = ("aiohttp", "httptools", "orjson", "uvicorn", "uvloop")


def described(arguments: argparse.Namespace) -> dict[str, Any]:
    """JSON-ready: date, machine, versions, and what was asked for."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": machine()["processor"],
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "litellm": _litellm(arguments.litellm),
        "load": [round(load, 2) for load in os.getloadavg()],
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "cell_seconds": arguments.cell_seconds,
        "clients": arguments.clients,
        "cores": arguments.cores,
    }


def machine_line(run: Mapping[str, Any]) -> str:
    """One sentence on where it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in run["packages"].items())
    other = f", LiteLLM {run['litellm']}" if run["litellm"] else ""
    return (
        f"{run['date']}, {run['cpus']} cores of {run['cpu']}, Linux {run['kernel']}, Python {run['python']}, "
        f"{versions}{other}; load average at the end {run['load'][0]}."
    )


def _litellm(python: Path) -> str:
    if not (python.parent / "litellm").exists():
        return ""
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
