"""What the governor counts, under the names that dashboards and alerts may rely on.

All names start with `governor_`, in base units (seconds, nats, tokens). The registry is injected, so that two
proxies in one process, or two tests, never share a counter. Where PROMETHEUS_MULTIPROC_DIR is set, a scrape
of one process shows them all: every gauge says how the values of several become one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client import values as client_values
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from governor.standing import Standing
from governor_server.ungoverned import Ungoverned

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
WORKERS_FILE: Final = "workers"
"""In that folder: the ids of the processes that run, where `governor serve` started them."""
PARENT: Final = 0
"""The number of the process that started the workers; theirs begin with 1."""

MAX_TOOL_NAMES = 50
"""Tool names come from clients; past this many the label is `other`, or a client could grow the registry."""

MAX_MODEL_NAMES = 20
"""The same for the names of models."""

OTHER = "other"

FAIL_OPEN: Final = (
    "request", "admission", "chunk", "response", "decision", "release", "body", "review", "record", "policy",
    "refused", "unreadable", "held_bytes", "review_queue", "answer", "continuation", "trace",
    "log",
)  # fmt: skip
"""The parts that can fail open. Each is shown as 0 from the start: the increase of a series that appears with
its first failure would miss that one."""

UPSTREAM_FAILURES: Final = ("timeout", "connect_timeout", "unreachable", "broken", "truncated")
"""What can go wrong between us and upstream; shown from the start, too."""

REFUSED: Final = (
    "invalid_api_key", "permission_denied", "request_headers_too_large", "request_timeout",
    "request_too_large", "server_overloaded", "too_many_requests", "internal_error",
)  # fmt: skip
"""The types of the errors that the proxy itself answers with; shown from the start, too."""

LABELS: Final[Mapping[str, str]] = {
    "route": "`chat` (chat completions) or `other`",
    "code": "the HTTP status that the client got; 499 where it went away",
    "tool": f"the tool's name; `{OTHER}` for all names after the first {MAX_TOOL_NAMES}, and what is no name",
    "decision": "`pass`, `answer`, `notice` or `drop` (left out, while the other calls of the message pass)",
    "reason": "one word; the values are listed below",
    "phase": "`before` a tool result or `after` it",
    "purpose": "what the request was for: `probe`, `label`, `answer`, `continuation`",
    "kind": "`prompt` or `completion`",
    "upstream": "the address of a server, as configured",
    "model": f"the name that requests give, behind the tenant's; `{OTHER}` after the first {MAX_MODEL_NAMES}",
    "addition": "`logprobs`, `stubs` (of pruned results), `probe`, `answer`, `continuation`",
    "judgement": "`informative`, `uninformative` or `spared`",
    "label": "`useful`, `confirmation`, `low_value` or `conflict`",
    "where": "the part that failed: " + ", ".join(f"`{where}`" for where in FAIL_OPEN),
    "version": "of the governor",
    "mode": "`observe` or `enforce`, as configured",
    "policy": "as configured",
}
"""What the values of each label are, and what bounds their number."""

Merge = Literal["livesum", "livemax", "livemostrecent"]
"""How a gauge of several processes becomes one value; those that ended no longer count."""

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
        self._tools = Names(MAX_TOOL_NAMES)
        self._models = Names(MAX_MODEL_NAMES)
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"governor_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"governor_{name}", text, labels, buckets=bounds, registry=registry)

        def gauge(name: str, text: str, merge: Merge, *labels: str) -> Gauge:
            return Gauge(f"governor_{name}", text, labels, registry=registry, multiprocess_mode=merge)

        self.info = gauge(
            "info", "Always 1; its labels say what runs.", "livemostrecent", "version", "mode", "policy"
        )
        self.requests = counter("requests", "HTTP requests answered.", "route", "code")
        self.upstream_up = gauge(
            "upstream_up",
            "1 if the server answered its last health check: of one server at this scrape.",
            "livemostrecent",
            "upstream",
        )
        self.tool_calls = counter(
            "tool_calls",
            "Tool calls that the model proposed, by what became of them.",
            "tool",
            "decision",
            "reason",
        )
        self.let_through_total = counter(
            "let_through_calls",
            "Calls that passed though the policy would have withheld them: observed, held out or explored.",
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
        self.gate_enforces = gauge(
            "gate_enforces", "1 while a model's gate is certified.", "livemostrecent", "model"
        )
        self.gate_lapsed = gauge(
            "gate_lapsed", "1 while a model's certificate has lapsed.", "livemostrecent", "model"
        )
        self.gate_harm_bound = gauge(
            "gate_harm_bound",
            "Upper bound on the share of harmful first withheld calls; 1 without a certificate.",
            "livemostrecent",
            "model",
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
        self.refused_additions_total = counter(
            "refused_additions",
            "Refusals of what the governor adds, where upstream answers the client's own request.",
            "addition",
            "reason",
            "model",
        )
        self.paused_additions = gauge(
            "paused_additions",
            "Additions that are left out for now, of one tenant and model on one server each.",
            "livesum",
        )
        self.refused_requests_total = counter(
            "refused_requests", "Requests that the proxy itself refused, by the type of the error.", "reason"
        )
        self.ungoverned_requests_total = counter(
            "ungoverned_requests", "Requests with tools that passed without being governed, by why.", "reason"
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
        self.dropped_spans_total = counter(
            "dropped_spans", "Spans that got lost: the collector took none of them, or too many waited."
        )
        self.engine_restarts_total = counter(
            "engine_restarts", "Times the engine was started again after it died."
        )
        self.worker_restarts_total = counter(
            "worker_restarts", "Times one of several workers was started again after it died."
        )
        self.conversations = gauge("conversations", "Conversations that have a record.", "livemax")
        self.volatile_tools = gauge(
            "volatile_tools", "Tools that were seen to change their answers by themselves.", "livemax"
        )
        self.running_requests = gauge("running_requests", "Requests that have their turn.", "livesum")
        self.waiting_requests = gauge("waiting_requests", "Requests that wait for their turn.", "livesum")
        for where in FAIL_OPEN:
            self.fail_open_total.labels(where)
        for reason in UPSTREAM_FAILURES:
            self.upstream_failures_total.labels(reason)
        for reason in REFUSED:
            self.refused_requests_total.labels(reason)
        for reason in Ungoverned:
            self.ungoverned_requests_total.labels(reason.value)

    def count_call(self, tool: str, decision: str, reason: str) -> None:
        """Count one proposed call; unlike `tool_calls` itself, this caps the tool's name by `tool_label`."""
        self.tool_calls.labels(self.tool_label(tool), decision, reason).inc()

    def count_refusal(self, addition: str, reason: str, model: str) -> None:
        """Count one refusal of what the governor added; `model` is capped like the models of the gates."""
        self.refused_additions_total.labels(addition, reason, self._models.label(model)).inc()

    def count_judgement(self, value: float | None) -> None:
        """Count one executed call: 0 and 1 as `governor.rewards` has it, None where it is not to be
        judged."""
        name = "spared" if value is None else "informative" if value > 0 else "uninformative"
        self.judged_total.labels(name).inc()

    def count_upstream(self, status: int) -> None:
        """Count an answer of upstream that says that it could not do its work."""
        if status == 429 or status >= 500:
            self.upstream_failures_total.labels(f"status_{status if status < 600 else 'other'}").inc()

    def count_ungoverned(self, reason: str) -> None:
        """Count a request with tools that passed without being governed."""
        self.ungoverned_requests_total.labels(reason).inc()

    def tool_label(self, tool: str) -> str:
        """The tool's name while fewer than `MAX_TOOL_NAMES` others have been seen, else `other`: so is what
        is no name, since a model may write anything in its place."""
        return self._tools.label(tool) if TOOL_NAME.fullmatch(tool) else OTHER

    def show_gate(self, model: str, standing: Standing) -> None:
        """Where a deployment stands with the gate of `model`."""
        certificate = standing.gate.certificate if standing.gate and standing.enforces else None
        label = self._models.label(model)
        self.gate_enforces.labels(label).set(certificate is not None)
        self.gate_lapsed.labels(label).set(bool(standing.lapsed))
        self.gate_harm_bound.labels(label).set(certificate.bound if certificate else 1.0)

    def watch(self, gauge: Gauge, count: Callable[[], float]) -> None:
        """Ask `count` for the gauge's value at each scrape."""
        self._watched.append((gauge, count))

    def current(self) -> CollectorRegistry:
        """Where the values of all processes are, as they are now."""
        # No function is set on the gauges: those are not seen by other processes.
        for gauge, count in self._watched:
            gauge.set(count())
        registry = self.registry
        if MULTIPROCESS_DIR in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(Processes(Path(os.environ[MULTIPROCESS_DIR]) / WORKERS_FILE))
        return registry

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of a scrape."""
        return generate_latest(self.current()), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """The gauges of this process no longer count, where it is one of several."""
        if MULTIPROCESS_DIR in os.environ:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


class Names:
    """Bounds the values of a label that clients choose: the first `limit` names stand for themselves."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def label(self, name: str) -> str:
        """`name`, or `other`."""
        if name in self._seen:
            return name
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(name)
        return name


class Processes(Collector):
    """Memory, CPU time and open files of all processes together whose ids stand in the file `path`; nothing
    where there is no such file. The start is that of the first, the limit of files that of each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterable[Metric]:
        """One family for each of the metrics of `process_registry`."""
        try:
            pids = [int(pid) for pid in self._path.read_text().split()]
        except FileNotFoundError:
            return
        families: dict[str, list[Metric]] = {}
        for pid in pids:
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                families.setdefault(family.name, []).append(family)
        for name, (first, *others) in families.items():
            values = [sample.value for family in (first, *others) for sample in family.samples]
            together = min if name in ("process_start_time_seconds", "process_max_fds") else sum
            first.samples = [first.samples[0]._replace(value=together(values))]
            yield first


def join_workers(number: int) -> None:
    """From now on the metrics of this process are those of the worker `number`. What another process counted
    under that number goes on."""
    client_values.ValueClass = client_values.MultiProcessValue(lambda: number)  # type: ignore


def mark_worker_dead(number: int) -> None:
    """The gauges of a worker no longer count."""
    mark_process_dead(number)  # type: ignore[no-untyped-call]


def write_workers(pids: Iterable[int]) -> None:
    """Say which processes run, to those that are scraped."""
    path = Path(os.environ[MULTIPROCESS_DIR]) / WORKERS_FILE
    fresh = path.with_suffix(".new")
    fresh.write_text(" ".join(map(str, pids)))
    os.replace(fresh, path)


def process_registry() -> CollectorRegistry:
    """A fresh registry with the memory, CPU time and open files of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
