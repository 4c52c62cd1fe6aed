"""The Helm chart: linted and rendered by Helm's own code, valid by Kubernetes' schemas, in step with k8s/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from governor_server.settings import Settings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "k8s" / "chart"
KUBERNETES = "1.30"
WARNING = 2

VALUES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "with a Redis and keys": {"redis": {"enabled": True}, "existingSecret": "governor-keys"},
    "fixed in number": {"autoscaling": {"enabled": False}, "replicas": 3},
    "placed": {
        "nodeSelector": {"pool": "small"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {},
        "image": {"repository": "registry.example/governor", "tag": "1.2.3", "pullPolicy": "Always"},
    },
}


def rendered(values: dict[str, Any], name: str = "governor") -> dict[tuple[str, str], dict[str, Any]]:
    """What an installation would apply, by kind and name."""
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=name, namespace="agents")
    found = [
        each
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for each in yaml.safe_load_all(text)
        if each
    ]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def manifest(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "k8s" / f"{name}.yaml").read_text("utf-8"))
    return parsed


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_lint_finds_nothing(values: dict[str, Any]) -> None:
    found = helm.lint(str(CHART), values, strict=True)
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["severity"] >= WARNING] == []


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_what_is_rendered_is_valid(values: dict[str, Any]) -> None:
    """By the schemas of Kubernetes, no unknown field allowed."""
    for each in rendered(values).values():
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_pods_are_those_of_the_kustomize_base() -> None:
    """One way to run the governor, written down twice."""
    chart = rendered({})["Deployment", "governor-tool-governor"]["spec"]["template"]["spec"]
    base = manifest("deployment")["spec"]["template"]["spec"]
    (ours,), (theirs,) = chart["containers"], base["containers"]
    assert {**ours, "image": "", "imagePullPolicy": ""} == {**theirs, "image": "", "imagePullPolicy": ""}
    volumes = {volume["name"]: volume for volume in base["volumes"]} | {"settings": chart["volumes"][0]}
    assert {volume["name"]: volume for volume in chart["volumes"]} == volumes
    rest = {"containers", "volumes"}
    assert {k: v for k, v in chart.items() if k not in rest} == {
        k: v for k, v in base.items() if k not in rest
    }


def test_the_redis_is_that_of_the_kustomize_component() -> None:
    """And the governor finds it, and only the governor may reach it."""
    found = rendered({"redis": {"enabled": True}})
    chart = found["Deployment", "governor-tool-governor-redis"]["spec"]["template"]["spec"]
    assert chart == manifest("redis/deployment")["spec"]["template"]["spec"]
    pod = found["Deployment", "governor-tool-governor"]["spec"]["template"]
    (variable,) = pod["spec"]["containers"][0]["env"]
    url = Settings.load(environ={variable["name"]: variable["value"]}).store.redis_url
    assert url is not None
    assert url.get_secret_value() == "redis://governor-tool-governor-redis:6379"
    policy = found["NetworkPolicy", "governor-tool-governor-redis"]["spec"]
    ((allowed,),) = (rule["from"] for rule in policy["ingress"])
    assert allowed["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    service = found["Service", "governor-tool-governor"]["spec"]
    assert "sessionAffinity" not in service
    # The service of the governor must not send requests to the Redis.
    redis = found["Deployment", "governor-tool-governor-redis"]["spec"]["template"]["metadata"]["labels"]
    assert not service["selector"].items() <= redis.items()


def test_the_settings_are_understood_and_those_of_the_kustomize_base() -> None:
    written = rendered({})["ConfigMap", "governor-tool-governor"]["data"]["governor.yaml"]
    assert yaml.safe_load(written) == manifest("governor")
    assert Settings(**yaml.safe_load(written)).upstream.url == "http://vllm:8000"


def test_the_commands_of_the_documentation_set_what_they_say() -> None:
    """Each `--set` of the page, read and rendered as Helm does."""
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    expressions = [one or two for one, two in re.findall(r"--set (?:'([^']+)'|(\S+))", page)]
    assert len(expressions) == 4
    everything: dict[str, Any] = {}
    for expression in expressions:
        given = helm.parse_set_string(expression)
        assert rendered(given)
        for name, value in given.get("settings", {}).items():
            everything.setdefault(name, {}).update(value)
    settings = Settings(**everything)
    assert settings.governance.mode == "enforce"
    assert settings.tools.read_only == ("search*", "get_*")


def test_new_settings_make_new_pods() -> None:
    """A ConfigMap that changes alone would be read at the next restart, whenever that is."""

    def template(values: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = rendered(values)["Deployment", "governor-tool-governor"]["spec"]["template"]
        return found

    assert template({}) == template({})
    assert template({}) != template({"settings": {"governance": {"mode": "enforce"}}})


def test_every_selector_finds_the_pods() -> None:
    """Whatever the release is called."""
    for name in ("governor", "tool-governor", "x" * 53):
        found = rendered({}, name)
        (deployment,) = (each for (kind, _), each in found.items() if kind == "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for (kind, _), each in found.items():
            if kind == "Service":
                assert each["spec"]["selector"] == labels
            elif kind in ("PodDisruptionBudget", "Deployment"):
                assert each["spec"]["selector"]["matchLabels"] == labels
            elif kind == "HorizontalPodAutoscaler":
                assert each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert len(each["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"settings": {"upstream": {"url": "vllm:8000"}}},
        {"service": {"port": 0}},
        {"image": {"pullPolicy": "Sometimes"}},
    ],
)
def test_a_slip_in_the_values_is_an_error(values: dict[str, Any]) -> None:
    """Before anything is applied."""
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(values)
        chart.render(values, name="governor")
