"""Policies by name in the settings, built-in ones and those of other packages."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from governor.policies import CapPolicy, ObservePolicy, Policy, PolicyError, TasrPolicy, ThresholdPolicy
from governor_server import policies
from governor_server.errors import SettingsError
from governor_server.settings import Settings


def never_on_monday(day: str = "Monday") -> Policy:
    """Withholds nothing, on no day."""
    return ObservePolicy(name=f"never on {day}")


NO_POLICY = 7


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good one, three broken ones, and one that takes a built-in name."""
    here = "tests.server.test_policies"
    values = {
        "never": f"{here}:never_on_monday",
        "absent": "no_such_package:policy",
        "number": f"{here}:NO_POLICY",
        "cap": f"{here}:never_on_monday",
    }
    points = EntryPoints(EntryPoint(name, value, policies.GROUP) for name, value in values.items())
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: points)


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "governor.yaml"
    path.write_text(text)
    return Settings.load(path, environ={})


def made(tmp_path: Path, governance: str) -> Policy:
    return settings(tmp_path, f"governance: {governance}").build_governance(None, None).policy


@pytest.mark.parametrize(
    ("governance", "policy"),
    [
        ("{policy: cap, parameters: {calls: 3}}", CapPolicy(3)),
        ("{policy: tasr}", TasrPolicy()),
        ("{policy: threshold, thresholds: {margin: 0.5}}", ThresholdPolicy(0.5)),
        (
            "{policy: threshold, thresholds: {margin: 0.5}, parameters: {margin: 0.25}}",
            ThresholdPolicy(0.25),
        ),
    ],
)
def test_a_policy_is_made_from_its_name_and_its_parameters(
    governance: str, policy: Policy, tmp_path: Path
) -> None:
    """The older settings of the threshold still count, and `parameters` win over them."""
    assert made(tmp_path, governance) == policy


@pytest.mark.parametrize(
    ("governance", "text"),
    [
        (
            "{policy: treshold}",
            "governance.policy (from {file}, line 1): no policy 'treshold': did you mean threshold?",
        ),
        (
            "{policy: cap, parameters: {k: 3}}",
            "governance.parameters (from {file}, line 1): cap has no parameter 'k'",
        ),
        ("{policy: cap, parameters: {calls: few}}", "calls must be a whole number"),
    ],
)
def test_a_wrong_name_or_parameter_stops_the_start(governance: str, text: str, tmp_path: Path) -> None:
    """In one line that says where it stands."""
    with pytest.raises(SettingsError) as raised:
        made(tmp_path, governance)
    assert text.format(file=tmp_path / "governor.yaml") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("plugins")
def test_a_plug_in_is_a_policy_like_the_others(tmp_path: Path) -> None:
    """With its parameters and the first line of its docstring."""
    assert made(tmp_path, "{policy: never, parameters: {day: Sunday}}").name == "never on Sunday"
    assert policies.table()["never"].description == "Withholds nothing, on no day."


@pytest.mark.usefixtures("plugins")
def test_broken_plug_ins_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """One line each; the others work."""
    with caplog.at_level(logging.WARNING):
        table = policies.table()
    assert {"absent", "number"}.isdisjoint(table)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "policy absent of no_such_package:policy is left out: ModuleNotFoundError" in lines[0]
    assert "a int makes no policy" in lines[1]


@pytest.mark.usefixtures("plugins")
def test_a_plug_in_does_not_take_a_built_in_name(caplog: pytest.LogCaptureFixture) -> None:
    """Who reads `cap` in a record must know what it was."""
    assert policies.policy("cap", {}) == CapPolicy()
    with caplog.at_level(logging.WARNING):
        assert isinstance(policies.table()["cap"].make(), CapPolicy)
    assert "the name is taken" in caplog.text


@pytest.mark.usefixtures("plugins")
def test_an_unknown_name_is_told_with_the_plug_ins() -> None:
    """They are part of the table."""
    with pytest.raises(PolicyError, match="observe, .*, never$"):
        policies.policy("x", {})


def test_parameters_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, like every mapping."""
    monkeypatch.chdir(tmp_path)
    environ: dict[str, Any] = {
        "GOVERNOR_GOVERNANCE__POLICY": "cap",
        "GOVERNOR_GOVERNANCE__PARAMETERS": '{"calls": 2}',
    }
    assert Settings.load(environ=environ).governance.build_policy() == CapPolicy(2)
