"""Where the programs are that tests run and pip does not install, and what to do where they are not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus", "redis-server": "redis"}
"""The script in `scripts/` that gets a program; it unpacks it into a folder of the environment so named."""


def found(name: str) -> str | None:
    """The path of `name`, if it is there."""
    unpacked = Path(sys.prefix) / PACKAGES[name] / "usr" / "bin"
    return shutil.which(name) or shutil.which(name, path=str(unpacked))


def binary(name: str) -> str:
    """The path of `name`; skips the test where there is none."""
    path = found(name)
    if path is None:
        pytest.skip(f"{name} is not installed: run scripts/{PACKAGES[name]}, or apt-get install {name}")
    return path


def environment(path: str) -> Mapping[str, str]:
    """What the program at `path` needs to find the libraries that were unpacked beside it."""
    libraries = [str(folder) for folder in Path(path).parents[1].glob("lib/*-linux-gnu")]
    beside = Path(sys.prefix) in Path(path).parents
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)} if beside else os.environ
