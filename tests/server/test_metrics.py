from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from governor.generation import Purpose
from governor.standing import Standing
from governor_server import accounting, governed_chat, proxy
from governor_server.metrics import (
    FAIL_OPEN,
    MAX_MODEL_NAMES,
    MAX_TOOL_NAMES,
    MULTIPROCESS_DIR,
    OTHER,
    TOOL_NAME,
    Metrics,
    process_registry,
)


def scrape(metrics: Metrics) -> dict[str, float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {
        " ".join((sample.name, *(value for _, value in sorted(sample.labels.items())))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_name_is_ours_and_says_its_unit() -> None:
    """Dashboards and alerts rely on the names."""
    metrics = Metrics(CollectorRegistry())
    metrics.requests.labels("/v1/chat/completions", "200").inc()
    names = {family.name for family in text_string_to_metric_families(metrics.render()[0].decode())}
    assert len(names) >= 15
    for name in names:
        assert re.fullmatch(r"governor_[a-z_]+", name), name
        assert not name.endswith(("_ms", "_created")), name


def test_a_call_is_counted_by_what_became_of_it() -> None:
    """One series for each tool, decision and reason."""
    metrics = Metrics(CollectorRegistry())
    metrics.count_call("search", "answer", "repeated_call")
    metrics.count_call("search", "answer", "repeated_call")
    metrics.count_call("search", "pass", "effectful_tool")
    samples = scrape(metrics)
    assert samples["governor_tool_calls_total answer repeated_call search"] == 2
    assert samples["governor_tool_calls_total pass effectful_tool search"] == 1


@settings(max_examples=20)
@given(st.lists(st.text("abcdef_", min_size=1, max_size=8), min_size=MAX_TOOL_NAMES, max_size=100))
def test_a_client_cannot_grow_the_registry_with_tool_names(names: list[str]) -> None:
    """After the first names all others are one series; the first ones keep theirs."""
    metrics = Metrics(CollectorRegistry())
    labels = [metrics.tool_label(name) for name in names]
    first = list(dict.fromkeys(names))[:MAX_TOOL_NAMES]
    assert set(labels) <= {*first, OTHER}
    for name, label in zip(names, labels, strict=True):
        assert label == (name if name in first else OTHER)


@given(st.text())
def test_what_is_no_name_of_a_tool_is_no_label(text: str) -> None:
    """A model may write anything where a name should stand, and labels are kept and shown for good."""
    label = Metrics(CollectorRegistry()).tool_label(text)
    assert label == (text if TOOL_NAME.fullmatch(text) else OTHER)


def test_a_negative_entropy_reduction_is_seen() -> None:
    """A result that made the model less sure is what the histogram is for."""
    metrics = Metrics(CollectorRegistry())
    metrics.entropy_reduction.observe(-0.3)
    samples = scrape(metrics)
    assert samples["governor_entropy_reduction_nats_bucket -0.5"] == 0
    assert samples["governor_entropy_reduction_nats_bucket -0.2"] == 1
    assert samples["governor_entropy_reduction_nats_count"] == 1


def test_judgements_are_counted_in_three_kinds() -> None:
    """A conflict is neither for nor against a call; half an informative call is one."""
    metrics = Metrics(CollectorRegistry())
    for value in (1.0, 0.5, 0.0, None):
        metrics.count_judgement(value)
    samples = scrape(metrics)
    assert samples["governor_judged_calls_total informative"] == 2
    assert samples["governor_judged_calls_total uninformative"] == 1
    assert samples["governor_judged_calls_total spared"] == 1


def test_two_proxies_in_one_process_do_not_share_counters() -> None:
    """The registry is injected, and no metric is global."""
    one, other = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    one.store_errors_total.inc()
    assert scrape(one)["governor_store_errors_total"] == 1
    assert scrape(other)["governor_store_errors_total"] == 0


def test_conversations_are_counted_when_scraped() -> None:
    """The store knows the number; nobody has to keep a second one."""
    metrics = Metrics(CollectorRegistry())
    conversations = ["a"]
    metrics.watch(metrics.conversations, lambda: len(conversations))
    assert scrape(metrics)["governor_conversations"] == 1
    conversations.append("b")
    assert scrape(metrics)["governor_conversations"] == 2


def test_the_process_shows_its_memory() -> None:
    """A leak is seen from outside."""
    assert scrape(Metrics(process_registry()))["process_resident_memory_bytes"] > 0


@settings(max_examples=20)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=MAX_MODEL_NAMES, max_size=50))
def test_a_client_cannot_grow_the_registry_with_names_of_models(models: list[str]) -> None:
    """They come from requests, too."""
    metrics = Metrics(CollectorRegistry())
    for model in models:
        metrics.show_gate(model, Standing())
    shown = [name for name in scrape(metrics) if name.startswith("governor_gate_lapsed")]
    assert len(shown) <= MAX_MODEL_NAMES + 1


def test_a_lapsed_certificate_shows() -> None:
    """And its gate neither enforces nor promises anything."""
    metrics = Metrics(CollectorRegistry())
    metrics.show_gate("atlas", Standing(lapsed="harm was seen"))
    samples = scrape(metrics)
    assert samples["governor_gate_lapsed atlas"] == 1
    assert samples["governor_gate_enforces atlas"] == 0
    assert samples["governor_gate_harm_bound atlas"] == 1


def test_the_first_failure_is_an_increase() -> None:
    """A series that appears with its first failure has none, and no alert would see that failure."""
    samples = scrape(Metrics(CollectorRegistry()))
    assert samples["governor_fail_open_total policy"] == 0
    assert samples["governor_upstream_failures_total unreachable"] == 0


def test_all_that_fails_open_is_listed() -> None:
    """Or it would not be 0 before it fails."""
    source = "".join(inspect.getsource(module) for module in (proxy, governed_chat, accounting))
    named = re.findall(r'fail_open\("(\w+)"\)|fail_open_total\.labels\("(\w+)"\)', source)
    assert {one or other for one, other in named} <= set(FAIL_OPEN)
    assert {Purpose.ANSWER.value, Purpose.CONTINUATION.value} <= set(FAIL_OPEN)


WORKER = """
import os, signal, sys
from prometheus_client import CollectorRegistry
from governor_server.metrics import Metrics
metrics = Metrics(CollectorRegistry())
metrics.watch(metrics.conversations, lambda: int(sys.argv[1]))
metrics.requests.labels("chat", "200").inc(int(sys.argv[1]))
metrics.running_requests.set(int(sys.argv[1]))
metrics.render()
if sys.argv[2] == "close":
    metrics.close()
print(metrics.render()[0].decode() if sys.argv[2] == "show" else "", flush=True)
"""


def test_a_scrape_of_one_process_shows_all(tmp_path: Path) -> None:
    """Counters of all processes add up, also of those that ended; gauges of those that run."""
    environment = {**os.environ, MULTIPROCESS_DIR: str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}

    def worker(count: int, ending: str) -> str:
        command = [sys.executable, "-c", WORKER, str(count), ending]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    worker(1, "close")
    worker(2, "go on")
    shown = worker(4, "show").splitlines()
    assert 'governor_requests_total{code="200",route="chat"} 7.0' in shown
    assert "governor_running_requests 6.0" in shown
    # Each knows all of them.
    assert "governor_conversations 4.0" in shown
