"""Counting what became of governed requests."""

from __future__ import annotations

from governor.calls import ToolEffect
from governor.decision import Action
from governor.exchange import Exchange
from governor.rewards import CallTurn, RewardSettings, judged
from governor_server.metrics import Metrics

REWARD = RewardSettings()
"""The conventions by which calls are judged for the metrics: those of training, where nobody changed them."""


def account(exchange: Exchange, metrics: Metrics) -> None:
    """Count what became of one exchange."""
    for decision in exchange.decisions:
        metrics.count_call(decision.call.name, decision.action.value, decision.reason.value)
        if decision.proposed is not Action.PASS and not decision.withheld:
            metrics.let_through_total.labels(decision.reason.value).inc()
    for failure in exchange.probe_failures:
        metrics.probe_failures_total.labels(failure).inc()
    for _ in exchange.policy_errors:
        metrics.fail_open_total.labels("policy").inc()
    if exchange.missing_logprobs:
        metrics.missing_logprobs_total.inc()
    for purpose, cost in exchange.costs.items():
        for kind, tokens in cost.items():
            metrics.added_tokens_total.labels(purpose, kind.removesuffix("_tokens")).inc(tokens)
    pruning = exchange.pruning
    for call_id in pruning.new:
        metrics.pruned_results_total.labels(pruning.stubs[call_id].value).inc()
    metrics.pruned_tokens_total.inc(pruning.saved_tokens)
    metrics.recomputed_tokens_total.inc(pruning.recomputed_tokens)
    if exchange.decisions and exchange.entropy is not None:
        metrics.entropy.labels("before").observe(exchange.entropy)
    for record in exchange.completed_records():
        if record.entropy_after is not None:
            metrics.entropy.labels("after").observe(record.entropy_after)
        if record.entropy_reduction is not None:
            metrics.entropy_reduction.observe(record.entropy_reduction)
        if record.label is not None:
            metrics.labels_total.labels(record.label.value).inc()
        if record.entropy_reduction is not None and record.effect == ToolEffect.READ_ONLY:
            (value,) = judged([CallTurn.of_record(record)], REWARD)
            metrics.count_judgement(value)
