"""How the proxy itself is, from what it counts."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

WINDOW_S: Final = 60.0

Buckets = Sequence[tuple[float, float]]
"""Upper bounds, and how many values are at most that; the last bound is infinite."""


class Health:
    """Looks at a registry now and then; what it says of the last minute needs two looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[float, float]]] = deque()

    def look(self, registry: CollectorRegistry, now: float) -> dict[str, Any]:
        """JSON-ready. Times of the governor's overhead in seconds, of the last minute where there was traffic
        in it."""
        samples: dict[str, list[Sample]] = defaultdict(list)
        for family in registry.collect():
            for sample in family.samples:
                samples[sample.name].append(sample)
        return {
            "upstreams": _by(samples["governor_upstream_up"], "upstream"),
            "requests": _by(samples["governor_requests_total"], "code"),
            "running": _sum(samples["governor_running_requests"]),
            "waiting": _sum(samples["governor_waiting_requests"]),
            "upstream_failures": _by(samples["governor_upstream_failures_total"], "reason"),
            "fail_open": _by(samples["governor_fail_open_total"], "where"),
            "refused": _by(samples["governor_refused_requests_total"], "reason"),
            "ungoverned": _by(samples["governor_ungoverned_requests_total"], "reason"),
            "probe_failures": _by(samples["governor_probe_failures_total"], "reason"),
            "missing_logprobs": _sum(samples["governor_missing_logprobs_total"]),
            "store_errors": _sum(samples["governor_store_errors_total"]),
            "added_tokens": _by(samples["governor_added_tokens_total"], "purpose"),
            "pruned_tokens": _sum(samples["governor_pruned_tokens_total"]),
            "recomputed_tokens": _sum(samples["governor_recomputed_tokens_total"]),
            "overhead": self._overhead(samples["governor_overhead_seconds_bucket"], now),
        }

    def _overhead(self, samples: Iterable[Sample], now: float) -> dict[str, Any]:
        counts = {float(sample.labels["le"]): sample.value for sample in samples}
        self._looks.append((now, counts))
        while len(self._looks) > 2 and now - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()
        before = self._looks[0][1]
        lately = sorted((bound, count - before.get(bound, 0.0)) for bound, count in counts.items())
        recent = bool(lately) and lately[-1][1] > 0
        buckets = lately if recent else sorted(counts.items())
        return {
            "recent": recent,
            "requests": buckets[-1][1] if buckets else 0,
            "p50": quantile(buckets, 0.5),
            "p99": quantile(buckets, 0.99),
        }


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value that a share of all is at most, evenly spread within its bucket; None without values. Beyond
    the last finite bound it is that bound.

    >>> quantile([(1.0, 2.0), (2.0, 4.0), (float("inf"), 4.0)], 0.75)
    1.5
    """
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def _by(samples: Iterable[Sample], label: str) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        name = sample.labels.get(label, "")
        found[name] = found.get(name, 0.0) + sample.value
    return found


def _sum(samples: Iterable[Sample]) -> float:
    return sum(sample.value for sample in samples)
