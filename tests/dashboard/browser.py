"""Where Chromium is, and what to do where it is not."""

from __future__ import annotations

import shutil

import pytest


def chromium() -> str:
    """The path of the browser; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed: run scripts/chromium as root, or apt-get install chromium")
    return found
