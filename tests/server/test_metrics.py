from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from governor_server.metrics import MAX_TOOL_NAMES, OTHER_TOOL, TOOL_NAME, Metrics, process_registry


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


@given(st.lists(st.text("abcdef_", min_size=1, max_size=8), min_size=MAX_TOOL_NAMES, max_size=200))
def test_a_client_cannot_grow_the_registry_with_tool_names(names: list[str]) -> None:
    """After the first names all others are one series; the first ones keep theirs."""
    metrics = Metrics(CollectorRegistry())
    labels = [metrics.tool_label(name) for name in names]
    first = list(dict.fromkeys(names))[:MAX_TOOL_NAMES]
    assert set(labels) <= {*first, OTHER_TOOL}
    for name, label in zip(names, labels, strict=True):
        assert label == (name if name in first else OTHER_TOOL)


@given(st.text())
def test_what_is_no_name_of_a_tool_is_no_label(text: str) -> None:
    """A model may write anything where a name should stand, and labels are kept and shown for good."""
    label = Metrics(CollectorRegistry()).tool_label(text)
    assert label == (text if TOOL_NAME.fullmatch(text) else OTHER_TOOL)


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
    metrics.watch_conversations(lambda: len(conversations))
    assert scrape(metrics)["governor_conversations"] == 1
    conversations.append("b")
    assert scrape(metrics)["governor_conversations"] == 2


def test_the_process_shows_its_memory() -> None:
    """A leak is seen from outside."""
    assert scrape(Metrics(process_registry()))["process_resident_memory_bytes"] > 0
