"""How the proxy is, read from its metrics."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry

from governor_server.dashboard.health import Health, quantile
from governor_server.metrics import Metrics


def test_the_overhead_is_that_of_the_last_minute() -> None:
    """An old outlier must not stand there for good; without traffic lately, it is that of all time."""
    metrics, health = Metrics(CollectorRegistry()), Health()
    for _ in range(100):
        metrics.overhead_seconds.observe(0.4)
    before = health.look(metrics.current(), 0.0)["overhead"]
    assert (before["recent"], before["requests"]) == (False, 100)
    assert before["p99"] > 0.25
    for _ in range(50):
        metrics.overhead_seconds.observe(0.0003)
    after = health.look(metrics.current(), 30.0)["overhead"]
    assert (after["recent"], after["requests"]) == (True, 50)
    assert after["p99"] <= 0.0005
    health.look(metrics.current(), 200.0)
    assert health.look(metrics.current(), 230.0)["overhead"]["recent"] is False


def test_it_counts_what_went_wrong() -> None:
    """Each under its own name, and nothing that did not happen is left out."""
    metrics = Metrics(CollectorRegistry())
    metrics.upstream_up.labels("http://a").set(1)
    metrics.upstream_up.labels("http://b").set(0)
    metrics.fail_open_total.labels("policy").inc(3)
    metrics.missing_logprobs_total.inc(2)
    metrics.requests.labels("chat", "200").inc(5)
    metrics.requests.labels("other", "200").inc(4)
    found = Health().look(metrics.current(), 0.0)
    assert found["upstreams"] == {"http://a": 1.0, "http://b": 0.0}
    assert found["fail_open"]["policy"] == 3 and found["fail_open"]["chunk"] == 0
    assert found["missing_logprobs"] == 2
    assert found["requests"] == {"200": 9.0}
    assert found["overhead"]["p50"] is None


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (math.inf, 0.0)], 0.5, None),
        ([(1.0, 4.0), (math.inf, 4.0)], 0.5, 0.5),
        ([(1.0, 0.0), (2.0, 10.0), (math.inf, 10.0)], 0.9, 1.9),
        ([(1.0, 1.0), (math.inf, 10.0)], 0.99, 1.0),
    ],
)
def test_a_quantile_lies_where_the_values_are(
    buckets: list[tuple[float, float]], share: float, expected: float | None
) -> None:
    """Beyond the last bound nobody knows how far."""
    assert quantile(buckets, share) == (None if expected is None else pytest.approx(expected))
