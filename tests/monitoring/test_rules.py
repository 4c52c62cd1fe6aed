"""The rules are valid, every alert is proven to fire and to stay silent, and the page about them is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from governor_server.metrics import LABELS
from scripts import metrics_reference
from tests.binaries import binary

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring" / "prometheus" / "rules.yaml"
CASES = Path(__file__).parent / "rules.yaml"
ALERTS = {rule["alert"]: rule for rule in metrics_reference.rules() if "alert" in rule}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    """By promtool."""
    promtool("check", "rules", RULES)


def test_the_configuration_is_valid() -> None:
    """By promtool, with the rules that it names."""
    promtool("check", "config", "--syntax-only", ROOT / "monitoring" / "prometheus" / "prometheus.yaml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """By promtool, on series written for each."""
    promtool("test", "rules", CASES)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_that_fires_it_and_one_that_does_not(alert: str) -> None:
    """A new alert without both fails here."""
    cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    checks = {
        case["name"]: case["promql_expr_test"] for case in cases if case["name"].startswith(alert + " ")
    }
    assert any("fires" in name and check[0]["exp_samples"] for name, check in checks.items())
    assert any("silent" in name and not check[0]["exp_samples"] for name, check in checks.items())
    assert all(f'alertname="{alert}"' in check[0]["expr"] for check in checks.values())


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_to_do(alert: str) -> None:
    """Whoever is woken by it needs to know."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert all(len(rule["annotations"][note].split()) >= 5 for note in ("summary", "description", "runbook"))


def test_rules_use_only_what_is_exported() -> None:
    """A name with a slip of the pen would never fire."""
    known = {name for name, *_ in metrics_reference.metrics()} | {
        name + suffix
        for name, kind, *_ in metrics_reference.metrics()
        if kind == "histogram"
        for suffix in ("_bucket", "_sum", "_count")
    }
    for rule in metrics_reference.rules():
        used = set(re.findall(r"governor_\w+", rule["expr"]))
        assert used <= known, rule


def test_each_label_says_what_bounds_it() -> None:
    """And no text is kept for a label that is gone."""
    assert {label for *_, labels in metrics_reference.metrics() for label in labels} == set(LABELS)


def test_each_metric_with_a_reason_lists_them() -> None:
    """The label means something else in each."""
    having = {name for name, _, _, labels in metrics_reference.metrics() if "reason" in labels}
    assert having == set(metrics_reference.REASONS)
