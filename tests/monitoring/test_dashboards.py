"""The dashboards keep the rules of Grafana's dashboard-linter, and their queries name what exists.

The linter itself is in none of the registries that we install from, so that its rules are written down here,
under its names, with those that provisioning from files adds.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from scripts import metrics_reference
from tests.monitoring.dashboards import FOLDER, NAMES, ROOT, dashboard, panels, queries
from tests.wire.recorded import HERE

EACH = pytest.mark.parametrize("name", NAMES)
PROVISIONING = ROOT / "monitoring" / "grafana" / "provisioning"


def variables(name: str) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in dashboard(name)["templating"]["list"]}


def test_there_are_no_others() -> None:
    """A dashboard that no test knows would not be checked."""
    assert {path.name for path in FOLDER.glob("*")} == set(NAMES)


@EACH
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    """A file with inputs or an id is refused or overwrites another; the uid is what links hold on to."""
    board = dashboard(name)
    assert "__inputs" not in board
    assert board["id"] is None
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["title"] and board["description"]
    assert board["schemaVersion"] >= 39
    known = {dashboard(other)["uid"] for other in NAMES}
    assert {link["url"].removeprefix("/d/") for link in board["links"]} <= known


def test_uids_and_titles_are_unique() -> None:
    """Grafana keeps only one of two."""
    assert len({dashboard(name)["uid"] for name in NAMES}) == len(NAMES)
    assert len({dashboard(name)["title"] for name in NAMES}) == len(NAMES)


@EACH
def test_uneditable_dashboard(name: str) -> None:
    """What is changed in the browser is lost with the next start."""
    assert dashboard(name)["editable"] is False


@EACH
def test_template_rules(name: str) -> None:
    """template-datasource-rule, template-job-rule, template-instance-rule, template-label-promql-rule,
    template-on-time-change-reload-rule."""
    known = variables(name)
    assert known["datasource"]["type"] == "datasource"
    assert known["datasource"]["query"] == "prometheus"
    for label in ("job", "instance"):
        variable = known[label]
        assert variable["type"] == "query"
        assert variable["label"].lower() == label
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        assert variable["refresh"] == 2
        assert re.fullmatch(rf"label_values\([^()]+, {label}\)", variable["query"]["query"])
        assert variable["datasource"]["uid"] == "${datasource}"


@EACH
def test_panel_rules(name: str) -> None:
    """panel-datasource-rule, panel-title-description-rule, panel-units-rule, panel-no-targets-rule; and
    panels that do not lie on one another."""
    board = dashboard(name)
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(board):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"] and len(panel["description"].split()) >= 4, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]


@EACH
def test_target_rules(name: str) -> None:
    """target-job-rule, target-instance-rule, target-rate-interval-rule, target-counter-agg-rule."""
    vllm = 'job=~"$vllm_job"'
    for query in queries(name):
        selectors = re.findall(r"[a-z0-9_:]+\{([^}]*)\}", query.expression)
        assert selectors, query
        for selector in selectors:
            assert vllm in selector or 'job=~"$job", instance=~"$instance"' in selector, query
        ranges = re.findall(r"\[([^\]]+)\]", query.expression)
        assert set(ranges) <= {"$__rate_interval", "$__range"}, query
        assert not re.search(r"irate\(", query.expression), query
        for counter in re.finditer(r"(\w+\()?[a-z0-9_:]+_total\{", query.expression):
            assert counter[1] in ("rate(", "increase("), query


@EACH
def test_queries_use_only_what_is_exported(name: str) -> None:
    """By the governor's code, and by what vLLM showed when it was asked."""
    ours = {metric for metric, *_ in metrics_reference.metrics()}
    vllm = set(re.findall(r"^# TYPE (\S+)", (HERE / "metrics.txt").read_text("utf-8"), flags=re.MULTILINE))
    process = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
    for query in queries(name):
        for metric in re.findall(r"([a-z0-9_:]+)\{", query.expression):
            assert re.sub(r"_(bucket|sum|count)$", "", metric) in ours | vllm | process, query


def test_every_metric_of_ours_is_shown() -> None:
    """One that nobody ever looks at is not worth its series."""
    shown = " ".join(query.expression for name in NAMES for query in queries(name))
    shown += " ".join(variable["query"]["query"] for variable in variables("governor.json").values() if
                      isinstance(variable["query"], dict))  # fmt: skip
    missing = [metric for metric, *_ in metrics_reference.metrics() if metric not in shown]
    assert missing == []


def test_provisioning_names_the_datasource_and_the_folder() -> None:
    """Of the files that the compose file mounts."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"], source["url"]) == (
        "prometheus",
        True,
        "http://prometheus:9090",
    )
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/governor.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
