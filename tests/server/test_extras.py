"""Every command explains itself without the extras, and says in a line which one it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from governor_server import extras

ROOT = Path(__file__).parents[2]
MODULES = sorted({name.partition(".")[0] for names in extras.MODULES.values() for name in names})

COMMANDS = {
    "atlas evaluate": "training",
    "atlas train": "training",
    "demo": "demo",
    "eval": "eval",
    "files train": "training",
    "live": "demo",
    "report": "report",
    "train collect --out logs.jsonl": "training",
    "train diagnose records.db": "training",
    "train export run": "training",
    "train offline --data records.db": "training",
    "train online": "training",
    "train prepare records.db --out rows.jsonl": "training",
    "train study": "training",
}
"""Commands that cannot be run by the proxy's own dependencies, and what they need."""


def run_without_extras(*commands: str, directory: Path) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of commands in a process that has no extra."""
    program = (
        "import contextlib, io, json, sys\n"
        f"sys.modules.update(dict.fromkeys({[*MODULES, 'scipy', 'pandas', 'PIL']!r}))\n"
        "from governor_server.cli import main\n"
        "found = []\n"
        f"for command in {commands!r}:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try:\n"
        "            code = main(command.split())\n"
        "        except SystemExit as end:\n"
        "            code = end.code\n"
        "    found.append((code, out.getvalue(), err.getvalue()))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=directory, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def test_a_command_without_its_extra_ends_with_one_line_that_names_it(tmp_path: Path) -> None:
    """Before it has begun anything, with a command that works in a clone: no index has the project."""
    for (command, extra), (code, out, err) in zip(
        COMMANDS.items(), run_without_extras(*COMMANDS, directory=tmp_path), strict=True
    ):
        assert (code, out) == (2, ""), command
        assert err.startswith(f"governor: `governor {command.split()[0]}` needs the extra `{extra}`"), command
        assert f"pip install '.[{extra}]'" in err and err.count("\n") == 1, err


def test_help_needs_no_extra(tmp_path: Path) -> None:
    """Of every command: it is what one asks before anything is installed for it."""
    own = ["serve", "doctor", "key", "replay", "tune", "version"]
    names = [*own, *(" ".join(word for word in name.split()[:2] if word.isalpha()) for name in COMMANDS)]
    names = [name.removesuffix(" records.db") for name in names]
    commands = [f"{name} --help" for name in ["", "train", "atlas", "files", *names]]
    for command, (code, out, err) in zip(
        commands, run_without_extras(*commands, directory=tmp_path), strict=True
    ):
        assert code == 0 and "usage: governor" in out, (command, code, out, err)
        assert err == "", command


def test_the_help_of_training_has_its_options_without_the_extra(tmp_path: Path) -> None:
    """Those that we declare; for those that a library declares, it says how to see them."""
    (_, diagnose, _), (_, offline, _) = run_without_extras(
        "train diagnose --help", "train offline --help", directory=tmp_path
    )
    assert "--dead-zone" in diagnose and "examples:" in diagnose
    assert extras.how_to_install("training") in " ".join(offline.split())


def test_the_modules_of_each_extra_are_those_that_it_installs() -> None:
    """The table and `pyproject.toml` cannot drift apart. Where a distribution is not installed here, its name
    is the module's."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    modules_of: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules_of.setdefault(name.lower().replace("_", "-"), set()).add(module)

    def distributions(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in declared[extra]:
            name = requirement.split(">")[0].split("=")[0].split("<")[0]
            if name.startswith("tool-governor["):
                found |= {each for part in name[14:-1].split(",") for each in distributions(part)}
            else:
                found.add(name)
        return found

    for extra, listed in extras.MODULES.items():
        tops = {module.partition(".")[0] for module in listed}
        for name in distributions(extra):
            assert tops & modules_of.get(name, {name}), (extra, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "statement"),
    [
        ("demo", "from governor_training.atlas import demo, live, picture"),
        ("eval", "import governor_training.evaluation.run, governor_training.evaluation.plots"),
        ("eval", "import governor_training.atlas.environment, governor_training.files.environment"),
        ("report", "import governor_server.report.traffic, governor_server.report.document"),
        ("calibration", "import governor_calibration.fit, governor_calibration.renewal"),
    ],
)
def test_an_extra_is_all_that_its_command_needs(extra: str, statement: str) -> None:
    """Whoever installs what the hint names must not meet the next hint, or a traceback."""
    own = {name.partition(".")[0] for name in extras.MODULES[extra]} | {"numpy"}
    hidden = sorted(set(MODULES) - own) + ([] if "sklearn" in own else ["scipy"])
    # A finder, since SciPy looks into `sys.modules` for what others have imported.
    program = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {hidden!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        f"{statement}\n"
    )
    stack = (
        "import argparse; from governor_training.atlas import cli\n"
        "cli._stack(argparse.Namespace(model=None, upstream='http://gpu:8000'))\n"
    )
    program += stack if extra == "demo" else ""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_hints_at_a_package_index() -> None:
    """`pip install tool-governor` would find nothing: every hint says how to install from a clone."""
    files = [
        *(path for folder in ("server", "training", "calibration") for path in (ROOT / folder).rglob("*.py")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name for name in ("README.md", "governor.example.yaml", "docker/Dockerfile")),
    ]
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text("utf-8").splitlines()
        if "tool-governor[" in line
    ]
    assert wrong == []


@pytest.mark.parametrize("extra", ["calibration", "vllm"])
def test_what_is_there_is_not_missing(extra: str) -> None:
    """This environment has both."""
    assert extras.missing(extra) == ()
