"""A tool that runs Python in a process of its own, with limits of time and memory.

That is no sandbox: the code can read what this user can read, and reach the network. Train in a container.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

READ_ONLY = ["run_python"]
SYSTEM = "Solve the problem. Run code only where you are not sure. Give the answer itself in the end."

SECONDS = 10
MEMORY = 1 << 30
MOST = 4000
"""Characters of output that the model is shown."""


def run_python(code: str) -> str:
    """Run a Python program and read what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", code],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                preexec_fn=_limit,
            )
        except subprocess.TimeoutExpired:
            return f"error: not done after {SECONDS} seconds"
    said = done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"
    return said[-MOST:] or "(nothing was printed)"


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
