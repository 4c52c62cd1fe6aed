"""Where Prometheus and promtool are, and what to do where they are not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

UNPACKED = Path(sys.prefix) / "prometheus" / "usr" / "bin"
"""Where `scripts/prometheus` puts them."""


def binary(name: str) -> str:
    """The path of `name`; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if found is None:
        pytest.skip(f"{name} is not installed: run scripts/prometheus, or apt-get install prometheus")
    return found
