"""`governor tune`: what it certifies, what it refuses, and what it writes."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from governor.certificate import upper_bound
from governor.policies import POLICIES, ThresholdPolicy
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor_server import tune
from governor_server.cli import main
from governor_server.gatekeeper import Gatekeeper
from governor_server.replay import Recorded
from governor_server.settings import Settings
from tests.server import logs

# Seconds on a busy machine, so here and not within the time limit of the first test that needs it.
pytest.importorskip("governor_calibration.renewal")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any configuration file."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def traffic() -> list[CallRecord]:
    """Enough to certify policies on."""
    return logs.traffic(600)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, traffic: list[CallRecord]) -> Path:
    return logs.store(tmp_path_factory.mktemp("log") / "records.db", traffic)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "governor-tuned.yaml"


@pytest.fixture(scope="module")
def found(log: Path, out: Path) -> dict[str, Any]:
    """What one run finds on the log."""
    config = out.with_name("empty.yaml")
    config.touch()
    arguments = Namespace(log=log, max_harm=0.05, confidence=0.95, out=out, config=config, json=True)
    result: dict[str, Any] = json.loads(tune.run(arguments))
    return result


def tuned(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = main(["tune", *map(str, arguments)])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tuned(capsys, *arguments, "--json"))
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["policy"]: entry for entry in found["policies"]}


def test_the_most_aggressive_safe_setting_is_found(found: dict[str, Any]) -> None:
    """Useful calls have margins below 0.6 here, useless ones above 0.7, and the cap knows nothing of it."""
    entries = by_name(found)
    assert entries["mean_entropy"]["certified"]
    assert entries["mean_entropy"]["parameters"] == {"entropy": 0.2}, "0.15 is the doubt at a margin of 0.7"
    assert not entries["cap"]["certified"]
    assert entries["cap"]["verdict"] == "too harmful"
    assert entries["identical"]["verdict"].startswith("too few")


def test_what_is_certified_holds_on_the_log(found: dict[str, Any]) -> None:
    """Each at a level that is a share of the whole, since the best of them is chosen afterwards."""
    entries = [entry for entry in found["policies"] if entry["certified"] and entry["policy"] != "calibrated"]
    assert entries
    for entry in entries:
        summary = entry["summary"]
        assert summary["bound"] <= 0.05
        assert summary["bound"] == pytest.approx(
            upper_bound(summary["harmful"], summary["labelled"], 0.05 / 7)
        )


def test_the_gate_is_fitted_and_certified(
    log: Path,
    traffic: list[CallRecord],
    found: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what is written of it replays to the same figures."""
    entry = by_name(found)["calibrated"]
    assert entry["certified"], entry["verdict"]
    standings, _ = tune.calibrated(
        Recorded.of(traffic), tune.Aim(0.05, 0.05 / 7), ["atlas"], Settings().governance.rules()
    )
    tune._write(tmp_path / "x.yaml", tune.HEADER, standings)
    argument = f"gate={tune.gates_path(tmp_path / 'x.yaml')}"
    assert main(["replay", str(log), "--policy", "calibrated", "--set", argument, "--json"]) == 0
    (replayed,) = json.loads(capsys.readouterr().out)["policies"]
    assert replayed["crossings"] == entry["summary"]["crossings"] > 0
    assert main(["replay", str(log), "--policy", "calibrated", "--set", f"{argument}#other"]) == 2
    assert "which gate" in capsys.readouterr().err


def test_the_settings_that_it_writes_are_read_by_the_proxy(found: dict[str, Any], out: Path) -> None:
    """The policy that they make is the one that was certified."""
    entry = by_name(found)[found["recommended"]]
    assert entry["certified"]
    settings = Settings.load(out, environ={})
    assert settings.governance.policy == found["recommended"]
    assert settings.governance.parameters == entry["parameters"]
    assert settings.governance.mode == "observe", "to enforce is for the operator to say"
    settings.governance.build_policy()
    tune._check_out(out)


def test_a_recommended_gate_is_written_beside_the_settings(traffic: list[CallRecord], tmp_path: Path) -> None:
    """The proxy finds it where the settings say, as the gate that every tenant begins with."""
    arguments = Namespace(log=Path("log"), max_harm=0.05, confidence=0.95, out=tmp_path / "tuned.yaml")
    best = tune.Tuned("calibrated", "", {}, None, True, "")
    standings, _ = tune.calibrated(Recorded.of(traffic), tune.Aim(0.05, 0.01), ["atlas"], RuleSettings())
    tune._write(arguments.out, tune._snippet(best, arguments, "It is good."), standings)
    settings = Settings.load(arguments.out, environ={})
    assert settings.governance.policy == "calibrated"
    keeper = Gatekeeper(settings.calibration, RuleSettings(), list, lambda: None)
    keeper.load()
    assert keeper.standings["", "atlas"].enforces


def test_the_recommended_one_saves_most_of_the_certified(found: dict[str, Any]) -> None:
    """By the calls that are saved for sure."""
    saved = {
        name: entry["summary"]["saved_least"] for name, entry in by_name(found).items() if entry["certified"]
    }
    assert saved[found["recommended"]] == max(saved.values())


def test_a_file_of_another_is_not_written_over(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be the operator's own."""
    out = tmp_path / "governor.yaml"
    out.write_text("server: {port: 1}\n")
    assert main(["tune", str(log), "--out", str(out)]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert out.read_text() == "server: {port: 1}\n"


def test_with_too_little_it_says_how_much_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And recommends to observe, in settings too."""
    log = logs.store(tmp_path / "records.db", logs.traffic(60))
    output = tuned(capsys, log)
    assert "Recommended: observe." in output
    assert "more labelled ones are needed" in output
    found = as_json(capsys, log)
    more = min(entry["more_conversations"] for entry in found["policies"] if entry["more_conversations"])
    assert found["settings"] == {"governance": {"mode": "observe"}}
    enough = logs.store(tmp_path / "more.db", logs.traffic(60 + more))
    assert as_json(capsys, enough)["recommended"] != "observe"


@pytest.mark.parametrize("conversations", [20, 60, 100])
def test_where_more_is_needed_the_row_is_the_setting_that_needs_it(
    conversations: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a bolder one that no amount of traffic would certify."""
    log = logs.store(tmp_path / "records.db", logs.traffic(conversations))
    found = as_json(capsys, log, "--max-harm", "0.05")
    lacking = [entry for entry in found["policies"] if entry["more_conversations"]]
    assert lacking
    for entry in lacking:
        assert entry["summary"]["harmful"] <= 0.05 * entry["summary"]["labelled"]
    nearest = min(lacking, key=lambda entry: entry["more_conversations"])
    assert f"About {nearest['more_conversations']} more labelled ones are needed for " in found["says"]
    parameter, _, value = (
        found["says"].partition(f"for {nearest['policy']} with ")[2].partition(",")[0].partition("=")
    )
    assert nearest["parameters"][parameter] == float(value)
    enough = logs.store(tmp_path / "more.db", logs.traffic(conversations + nearest["more_conversations"]))
    assert by_name(as_json(capsys, enough, "--max-harm", "0.05"))[nearest["policy"]]["certified"]


def test_without_labels_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More traffic of the same kind would not help."""
    records = [replace(record, probe_after=None) for record in logs.traffic(300)]
    output = tuned(capsys, logs.store(tmp_path / "records.db", records))
    assert "no call that one would have withheld has a label" in output
    assert "no answer was forced after a result" in output


def test_governed_conversations_certify_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their labels were chosen by a policy."""
    records = [replace(record, arm="governed") for record in logs.traffic(300)]
    found = as_json(capsys, logs.store(tmp_path / "records.db", records))
    assert found["observed_conversations"] == 0
    assert found["recommended"] == "observe"


def test_missing_labels_may_hide_harm(tmp_path: Path, traffic: list[CallRecord]) -> None:
    """A fifth of them missing: no certificate, though all that are there are harmless."""
    records = [
        replace(record, probe_after=None) if hash_of(record) % 5 == 0 else record for record in traffic
    ]
    aim = tune.Aim(0.05, 0.01)
    whole = tune.tuned(POLICIES["threshold"], Recorded.of(traffic), aim, {})
    holed = tune.tuned(POLICIES["threshold"], Recorded.of(records), aim, {})
    assert whole.certified
    assert not holed.certified
    assert holed.verdict == "too few labels"


def hash_of(record: CallRecord) -> int:
    return int(record.conversation.split()[1])


def test_the_rules_are_those_of_the_settings(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is certified must be what would run."""
    config = tmp_path / "mine.yaml"
    config.write_text("governance: {failing_attempts: 5, thresholds: {entropy: 0.25}}\n")
    found = by_name(as_json(capsys, log, "--max-harm", "0.05", "--config", config))["threshold"]
    assert (found["parameters"]["failing_attempts"], found["parameters"]["entropy"]) == (5, 0.25)
    made = POLICIES["threshold"].make(**found["parameters"])
    assert isinstance(made, ThresholdPolicy)
    assert made.entropy == 0.25


def test_without_scikit_learn_the_others_are_still_tuned(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = tuned(capsys, log, "--max-harm", "0.05")
    assert "pip install '.[calibration]'" in output
    assert "Recommended: " in output
    assert "Recommended: observe" not in output


def test_the_snippet_is_yaml_and_says_where_it_comes_from(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --out it is printed."""
    output = tuned(capsys, log, "--max-harm", "0.05")
    snippet = output[output.index(tune.HEADER) :]
    assert str(log) in snippet
    assert set(yaml.safe_load(snippet)) <= {"governance", "calibration"}


@pytest.mark.parametrize("value", ["0", "1", "2%", "x"])
def test_a_share_is_between_0_and_1(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two percent are 0.02."""
    assert main(["tune", "log", "--max-harm", value]) == 2
    assert "is not between 0 and 1" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """By example."""
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    assert "governor tune records.db --max-harm 0.01 --out governor-tuned.yaml" in capsys.readouterr().out
