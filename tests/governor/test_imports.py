"""Arrows point one way: server, training -> calibration -> governor, and the core stands on the standard
library alone."""

from __future__ import annotations

import ast
import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import governor

ROOT = Path(__file__).parents[2]
FORBIDDEN_TO_THE_CORE = {
    # I/O, clocks, randomness, concurrency: all of it is injected.
    "asyncio",
    "datetime",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
    "urllib",
    "uuid",
}


def modules(package: str) -> list[Path]:
    """The source files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path.name}"
            yield (node.module or "").split(".")[0]


def test_there_is_something_to_check() -> None:
    """A moved folder must not turn the tests below into no tests."""
    for package in (
        "governor",
        "calibration/governor_calibration",
        "server/governor_server",
        "training/governor_training",
    ):
        assert modules(package)


@pytest.mark.parametrize("path", modules("governor"), ids=lambda path: path.stem)
def test_the_core_imports_the_standard_library_and_itself(path: Path) -> None:
    """And of the standard library nothing that does I/O, tells the time or draws lots."""
    names = set(imported(path))
    assert names <= sys.stdlib_module_names | {"governor"}
    assert not names & FORBIDDEN_TO_THE_CORE


def test_the_server_does_not_know_the_training() -> None:
    """Except for the command line, which offers the training's commands where they are installed."""
    users = {path.name for path in modules("server") if "governor_training" in imported(path)}
    assert users <= {"cli.py"}


def test_the_training_does_not_know_the_server() -> None:
    """It shares the core with it, nothing else."""
    assert not [path for path in modules("training") if "governor_server" in imported(path)]


def test_the_calibration_knows_the_core_and_nothing_above_it() -> None:
    """Server and training may use it; it uses neither."""
    names = {name for path in modules("calibration") for name in imported(path)}
    ours = {name for name in names if name.startswith("governor")}
    assert ours == {"governor", "governor_calibration"}
    assert names - ours <= sys.stdlib_module_names | {"numpy", "sklearn"}


@pytest.mark.parametrize("path", modules("governor"), ids=lambda path: path.stem)
def test_the_examples_in_the_docstrings_are_true(path: Path) -> None:
    """Each is run as it stands."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_core_is_typed() -> None:
    """A type checker of another project reads its annotations."""
    assert (Path(governor.__file__).parent / "py.typed").is_file()
