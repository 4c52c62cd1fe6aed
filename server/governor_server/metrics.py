"""What the governor counts, under the names that dashboards and alerts may rely on.

All names start with `governor_`, in base units (seconds, nats, tokens). The registry is injected, so that two
proxies in one process, or two tests, never share a counter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

MAX_TOOL_NAMES = 50
"""Tool names come from clients; past this many the label is `other`, or a client could grow the registry."""

OTHER_TOOL = "other"

TOOL_NAME = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Upper bounds of the histograms, one tuple for each family."""

    overhead: tuple[float, ...] = (
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    )  # fmt: skip
    """Seconds that the governor itself takes: it should stay in the first few."""
    request: tuple[float, ...] = (
        0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0,
    )  # fmt: skip
    """Seconds that a model takes; the same scale as vLLM's own latency histograms."""
    entropy: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
    """Nats. A confident model lives below 0.1, a guessing one above 1."""
    reduction: tuple[float, ...] = (
        -2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
    )  # fmt: skip
    """Nats, through zero: a negative reduction is a result that left the model less sure."""


class Metrics:
    """The governor's own metrics. `registry` is where they are registered and what `render` shows."""

    def __init__(self, registry: CollectorRegistry, buckets: Buckets | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        buckets = buckets or Buckets()
        self.registry = registry
        self._tools: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"governor_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"governor_{name}", text, labels, buckets=bounds, registry=registry)

        self.requests = counter("requests", "HTTP requests answered.", "route", "code")
        self.tool_calls = counter(
            "tool_calls",
            "Tool calls that the model proposed, by what became of them.",
            "tool",
            "decision",
            "reason",
        )
        self.entropy = histogram(
            "entropy_nats",
            "Mean token entropy of a segment before or after a tool result.",
            buckets.entropy,
            "phase",
        )
        self.entropy_reduction = histogram(
            "entropy_reduction_nats", "Entropy before a call minus after its result.", buckets.reduction
        )
        self.overhead_seconds = histogram(
            "overhead_seconds", "Time the governor itself added to a request.", buckets.overhead
        )
        self.upstream_seconds = histogram(
            "upstream_request_duration_seconds", "Time until the upstream's last byte.", buckets.request
        )
        self.time_to_first_token_seconds = histogram(
            "time_to_first_token_seconds", "Time until the first chunk went to the client.", buckets.request
        )
        self.probe_seconds = histogram("probe_duration_seconds", "Time a probe took.", buckets.request)
        self.probe_failures_total = counter("probe_failures", "Probes that gave no answer.", "reason")
        self.added_tokens_total = counter(
            "added_tokens",
            "Tokens of the requests that the governor added; most of the prompts are in the prefix cache.",
            "purpose",
            "kind",
        )
        self.pruned_results_total = counter(
            "pruned_results", "Results that a stub took the place of.", "reason"
        )
        self.pruned_tokens_total = counter(
            "pruned_tokens", "Estimated prompt tokens that stubs saved, counted in every request."
        )
        self.recomputed_tokens_total = counter(
            "recomputed_tokens", "Estimated prompt tokens whose cache a new stub cost."
        )
        self.gate_enforces = Gauge(
            "governor_gate_enforces", "1 while a model's gate is certified.", ("model",), registry=registry
        )
        self.gate_harm_bound = Gauge(
            "governor_gate_harm_bound",
            "Upper bound on the share of harmful first withheld calls; 1 without a certificate.",
            ("model",),
            registry=registry,
        )
        self.judged_total = counter(
            "judged_calls",
            "Executed calls, as the rewards of training judge the entropy around them.",
            "judgement",
        )
        self.labels_total = counter("labels", "Executed calls, by what their result was worth.", "label")
        self.fail_open_total = counter(
            "fail_open", "Calls that passed because a part of the governor failed.", "where"
        )
        self.refused_requests_total = counter(
            "refused_requests", "Requests that the proxy itself refused, by the type of the error.", "reason"
        )
        self.upstream_failures_total = counter(
            "upstream_failures",
            "Answers of upstream that were none, broke off, or were a 429 or 5xx.",
            "reason",
        )
        self.missing_logprobs_total = counter(
            "missing_logprobs",
            "Responses without the logprobs that were asked for, or not of all tokens.",
        )
        self.store_errors_total = counter("store_errors", "Records that could not be read or written.")
        self.engine_restarts_total = counter(
            "engine_restarts", "Times the engine was started again after it died."
        )
        self.conversations = Gauge(
            "governor_conversations", "Conversations that have a record.", registry=registry
        )
        self.upstream_up = Gauge(
            "governor_upstream_up", "1 while a server answers, of several.", ("upstream",), registry=registry
        )
        self.running_requests = Gauge(
            "governor_running_requests", "Requests that have their turn.", registry=registry
        )
        self.waiting_requests = Gauge(
            "governor_waiting_requests", "Requests that wait for their turn.", registry=registry
        )

    def count_call(self, tool: str, decision: str, reason: str) -> None:
        """Count one proposed call; unlike `tool_calls` itself, this caps the tool's name by `tool_label`."""
        self.tool_calls.labels(self.tool_label(tool), decision, reason).inc()

    def count_judgement(self, value: float | None) -> None:
        """Count one executed call: 0 and 1 as `governor.rewards` has it, None where it is not to be
        judged."""
        name = "spared" if value is None else "informative" if value > 0 else "uninformative"
        self.judged_total.labels(name).inc()

    def count_upstream(self, status: int) -> None:
        """Count an answer of upstream that says that it could not do its work."""
        if status == 429 or status >= 500:
            self.upstream_failures_total.labels(f"status_{status if status < 600 else 'other'}").inc()

    def tool_label(self, tool: str) -> str:
        """The tool's name while fewer than `MAX_TOOL_NAMES` others have been seen, else `other`: so is what
        is no name, since a model may write anything in its place."""
        if tool in self._tools:
            return tool
        if len(self._tools) >= MAX_TOOL_NAMES or not TOOL_NAME.fullmatch(tool):
            return OTHER_TOOL
        self._tools.add(tool)
        return tool

    def watch_conversations(self, count: Callable[[], float]) -> None:
        """Ask `count` for the number of conversations at each scrape."""
        self.conversations.set_function(count)

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of a scrape."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def process_registry() -> CollectorRegistry:
    """A fresh registry with the memory, CPU time and open files of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
