"""The files that people deploy with: valid by their schemas, and in step with the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from governor_server import launch
from governor_server.access import Access, new_key
from governor_server.app import OWN
from governor_server.settings import EngineSettings, Settings

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
DOCKERFILES = ("docker/Dockerfile", "docker/demo.Dockerfile")
MANIFESTS = ("deployment", "service", "autoscaler", "disruption")
KUBERNETES = "1.30"


def manifest(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "k8s" / f"{name}.yaml").read_text("utf-8"))
    return parsed


def _interpolated(text: str) -> str:
    """The text with the defaults in the places of Compose's variables."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    """The linter that knows Dockerfiles and the shell in them."""
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    assert hadolint is not None
    command = [hadolint, "--no-color", "--ignore", "DL3059", "--ignore", "DL3006", str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_begins_at_an_exact_version_and_ends_without_root(name: str) -> None:
    """A floating tag is another image next week."""
    text = (ROOT / name).read_text("utf-8")
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE).count("${BASE}") == text.count("\nFROM ")
    assert re.findall(r"^USER (\S+)", text, flags=re.MULTILINE) == ["10001:10001"]


def test_the_compose_file_is_valid() -> None:
    """By the Compose specification."""
    # The validator knows neither variables nor YAML's merges, which Compose does: they are resolved first.
    resolved = yaml.safe_dump(yaml.safe_load(_interpolated(COMPOSE.read_text("utf-8"))))
    assert set(PyCompose.from_yaml(resolved).service_names()) == set(SERVICES)


def test_images_have_exact_versions() -> None:
    """Those of others, by their tags."""
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_profiles_are_what_the_readme_says() -> None:
    """One command each."""
    profiles = {name: set(service["profiles"]) for name, service in SERVICES.items()}
    assert {name for name, having in profiles.items() if "gpu" in having} == {"governor", "vllm"}
    assert {name for name, having in profiles.items() if "cpu" in having} == {
        "governor-demo",
        "vllm-cpu",
        "traffic",
    }
    assert {name for name, having in profiles.items() if "monitoring" in having} == {"prometheus", "grafana"}


def test_everything_that_is_mounted_exists() -> None:
    """Docker makes an empty folder of a path with a slip."""
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), source


def test_ports_are_open_to_this_machine_only() -> None:
    """None of the services knows its users."""
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_the_engine_has_shared_memory(name: str) -> None:
    """Its processes talk through it, and do not start with the 64 MiB that a container has by default."""
    service = SERVICES[name]
    assert service.get("ipc") == "host" or service.get("shm_size") == "1gb"


@pytest.mark.parametrize("name", ["governor", "governor-demo"])
def test_the_governor_is_hardened(name: str) -> None:
    """Nothing to write but the records, and nothing to become."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["volumes"] == ["records:/var/lib/governor"]


@pytest.mark.parametrize("name", ["governor", "governor-demo"])
def test_the_settings_in_the_compose_file_are_understood(name: str) -> None:
    """An unknown key is an error, but only once it runs."""
    written = SERVICES[name]["environment"].items()
    environment = {key: _interpolated(str(value)) for key, value in written}
    assert Settings.load(environ=environment).upstream.url == "http://vllm:8000"


@pytest.mark.parametrize("name", ["governor", "governor-demo"])
def test_the_operator_can_be_given_a_key(name: str) -> None:
    """To a container its host is another machine: without a key it would never see the dashboard."""
    value = SERVICES[name]["environment"]["GOVERNOR_AUTH__ADMIN_KEYS"]
    assert value.startswith("${ADMIN_KEYS:-")
    key, lines = new_key(None)
    digest = yaml.safe_load(lines)["auth"]["admin_keys"][0]
    settings = Settings.load(environ={"GOVERNOR_AUTH__ADMIN_KEYS": f'["{digest}"]'})
    access = Access(settings.auth, trusts_upstream=True)
    assert access.by_admin_key and access.is_admin_key(key)


def test_the_reasoning_parser_of_the_compose_file_can_be_left_out() -> None:
    """`${NAME-default}`: an empty value stays empty. The default would hide the answers of a model that does
    not think."""
    (flag,) = (part for part in SERVICES["vllm"]["command"] if part.startswith("--reasoning-parser"))
    assert flag == "--reasoning-parser=${REASONING_PARSER-qwen3}"


def test_the_model_of_the_compose_file_is_given_as_vllm_wants_it() -> None:
    """`vllm serve MODEL`: the image's command is `vllm serve`, to which `--model` is deprecated."""
    assert SERVICES["vllm"]["command"][0].startswith("${MODEL:-")
    assert not any(part.startswith("--model") for part in SERVICES["vllm"]["command"])


def test_the_image_has_what_every_policy_needs() -> None:
    """Without scikit-learn `calibrated` would observe for ever."""
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    (held,) = re.findall(r'^ARG EXTRAS="\[(.*)\]"$', text, flags=re.MULTILINE)
    assert set(held.split(",")) == {"calibration", "otel", "redis"}


def test_the_engine_of_the_demonstration_needs_no_compiler_when_it_runs() -> None:
    """As when the governor starts vLLM itself."""
    text = (ROOT / "docker" / "demo.Dockerfile").read_text("utf-8")
    ours = launch.environment(EngineSettings(), launch.Model("m", None), launch.Build.CPU, {})
    assert f"TORCH_COMPILE_DISABLE={ours['TORCH_COMPILE_DISABLE']}" in text


def _flags(command: list[str]) -> set[str]:
    """`--name value` and `--name=value` alike, without what is each deployment's own."""
    text = _interpolated(" ".join(command))
    pairs = re.findall(r"(--[a-z-]+)(?:[= ](?!--)(\S+))?", text)
    own = {"--model", "--served-model-name", "--host", "--port"}
    return {f"{name} {value}".strip() for name, value in pairs if name not in own}


def _demo_command() -> list[str]:
    text = (ROOT / "docker" / "demo.Dockerfile").read_text("utf-8").split("\nCMD ", 1)[1]
    command: list[str] = yaml.safe_load(text.replace("\\\n", ""))
    return command


@pytest.mark.parametrize(
    ("build", "command"),
    [(launch.Build.GPU, SERVICES["vllm"]["command"]), (launch.Build.CPU, _demo_command())],
    ids=["gpu", "cpu"],
)
def test_vllm_is_started_as_the_governor_would(build: launch.Build, command: list[str]) -> None:
    """A flag that the governor comes to need must not be missing here."""
    settings = EngineSettings(model="model", reasoning_parser="qwen3")
    ours = launch.command(settings, launch.Model("model", None), build, 8000)
    assert _flags(command) == _flags(ours)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid(name: str) -> None:
    """By the schemas of Kubernetes, no unknown field allowed. The selector that kustomize adds is put in."""
    body = manifest(name)
    if name == "deployment":
        labels = {"app.kubernetes.io/name": "tool-governor"}
        body["spec"]["selector"] = {"matchLabels": labels}
        body["spec"]["template"]["metadata"]["labels"] = labels
    kubernetes_validate.validate(body, KUBERNETES, strict=True)


def test_kustomize_builds() -> None:
    """By kubectl, where it is installed; and what it builds is valid as well."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: its kustomize would build k8s/")
    command = [kubectl, "kustomize", str(ROOT / "k8s")]
    built = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))
    assert len(built) == len(MANIFESTS) + 1
    for each in built:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    (deployment,) = (each for each in built if each["kind"] == "Deployment")
    (service,) = (each for each in built if each["kind"] == "Service")
    (budget,) = (each for each in built if each["kind"] == "PodDisruptionBudget")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


REDIS = ("deployment", "service", "policy")


@pytest.mark.parametrize("name", REDIS)
def test_a_manifest_of_the_redis_is_valid(name: str) -> None:
    """By the same schemas."""
    kubernetes_validate.validate(manifest(f"redis/{name}"), KUBERNETES, strict=True)


def test_the_replicas_find_the_redis_of_the_component(tmp_path: Path) -> None:
    """In an overlay beside the base: by the address that it sets, and nobody else is let in."""
    component = manifest("redis/kustomization")
    assert set(component["resources"]) == {f"{name}.yaml" for name in REDIS}
    (patch,) = (each for each in component["patches"] if each["target"]["kind"] == "Deployment")
    ((variable,),) = (operation["value"] for operation in yaml.safe_load(patch["patch"]))
    url = Settings.load(environ={variable["name"]: variable["value"]}).store.redis_url
    service = manifest("redis/service")
    (port,) = service["spec"]["ports"]
    assert url is not None
    assert url.get_secret_value() == f"redis://{service['metadata']['name']}:{port['port']}"
    labels = manifest("redis/deployment")["spec"]["template"]["metadata"]["labels"]
    assert (
        labels
        == service["spec"]["selector"]
        == manifest("redis/policy")["spec"]["podSelector"]["matchLabels"]
    )
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: its kustomize would build an overlay")
    base = os.path.relpath(ROOT / "k8s", tmp_path)
    overlay = {"resources": [base], "components": [f"{base}/redis"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    command = [kubectl, "kustomize", str(tmp_path)]
    built = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))
    assert len(built) == len(MANIFESTS) + 1 + len(REDIS)
    for each in built:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    named = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in built if "spec" in each}
    governor = named["Deployment", "tool-governor"]["template"]
    (container,) = governor["spec"]["containers"]
    assert container["env"] == [variable]
    assert "sessionAffinity" not in named["Service", "tool-governor"]
    # The service of the governor must not send requests to the Redis.
    assert not named["Service", "tool-governor"]["selector"].items() <= labels.items()
    ((allowed,),) = (rule["from"] for rule in named["NetworkPolicy", "tool-governor-redis"]["ingress"])
    assert allowed["podSelector"]["matchLabels"].items() <= governor["metadata"]["labels"].items()


def test_everything_of_the_kustomize_base_is_named() -> None:
    """Without kubectl, the same for its list."""
    base = manifest("kustomization")
    assert set(base["resources"]) == {f"{name}.yaml" for name in MANIFESTS}


def test_probes_ask_what_the_governor_answers() -> None:
    """And liveness does not hang on upstream: killing the governor would not bring vLLM back."""
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    paths: Mapping[str, str] = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    assert set(paths.values()) <= OWN
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_the_settings_of_the_kustomize_base_are_understood() -> None:
    """And the pod lives longer than a shutdown may take."""
    settings = Settings(**manifest("governor"))
    pod = manifest("deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + settings.server.shutdown_grace_s
    assert settings.store.path.startswith(container["volumeMounts"][1]["mountPath"])


def test_replicas_follow_a_metric_that_is_exported() -> None:
    """Requests in flight."""
    (metric,) = manifest("autoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "governor_running_requests"
