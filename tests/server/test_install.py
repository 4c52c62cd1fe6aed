"""The proxy can be installed without the engine and the training code."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_proxy_needs_only_its_own_dependencies() -> None:
    """The command and the application import without torch, vllm, transformers or the openai package."""
    blocked = (
        *("torch", "vllm", "transformers", "tokenizers", "openai", "matplotlib", "numpy"),
        "opentelemetry",
    )
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import governor_server.app, governor_server.serve, governor_server.cli\n"
        "assert governor_server.cli.main(['serve', '--print-config']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


def test_every_dependency_of_the_proxy_is_pinned() -> None:
    """The lock file, which the image uses as constraints, has a version for each of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        line.split("==")[0].strip().lower()
        for line in (ROOT / "requirements" / "lock.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    wanted = {requirement.split(">")[0].split("=")[0].strip() for requirement in project["dependencies"]}
    assert wanted <= pinned
