"""From records of calls to a gate with its certificate.

**Data.** Labelled calls of read-only tools of one model. Conversations are split by a hash of their name: a
third is learned from, two thirds certify, so that a conversation stays on its side in every later fit. Only
conversations in which nothing was withheld certify. What was explored in governed conversations is learned
from, each call with weight 1: whether a call was explored was drawn by lot, and whether it could be was
decided by the signals alone, so that given the signals its label is as likely as anywhere, and P(useful |
signals) is what is learned. That these calls were selected by an earlier threshold, which the certifying
conversations chose, lets one number of theirs into the fit; a gate could not aim at single conversations by
it.

**Model.** A logistic regression with an L2 penalty. Tools share strength: each signal enters once for all
tools and once more for each tool (H. Daume III, "Frustratingly Easy Domain Adaptation", ACL 2007), so that a
tool with few calls is judged like the average tool, and one with many by its own. Then isotonic regression on
scores of conversations that the model had not seen (five folds), which makes them probabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, log

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from governor.calls import ToolEffect
from governor.certificate import Certificate, Refusal, certify
from governor.conversations import conversations, observed, of_model
from governor.crossings import ScoredCall, candidates, reached
from governor.drift import calibration_error
from governor.experiment import lot
from governor.gate import (
    NEVER,
    TRANSFORM_OF,
    TRANSFORMS,
    CallFacts,
    Gate,
    Reference,
    SignalWeight,
    ToolWeights,
    rules_of,
)
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.signals import SIGNALS

CERTIFYING = 2 / 3
"""The share of conversations that certify; the others are learned from."""

ENOUGH = 60
"""Labelled calls to learn from, below which nothing is certified."""

ENOUGH_OF_TOOL = 20
"""Labelled calls of a tool to learn from, below which its calls are never withheld."""

FOLDS = 5
PENALTY = 1.0
"""Of the squared weights, against the sum of the log-losses of all calls, signals being in standard
deviations."""

DEVIATION = 0.5
"""The scale of a tool's own columns: deviating costs a weight 1 / DEVIATION^2 times what a common one
costs."""

Floats = NDArray[np.float64]


def fit(
    records: Iterable[CallRecord],
    *,
    model: str,
    max_harm: float,
    confidence: float = 0.95,
    version: int = 1,
    now: float = 0.0,
    attempt: int = 1,
    settings: RuleSettings | None = None,
) -> Gate:
    """The gate for the calls of `model`, the same whatever the order of `records`.

    `max_harm` and `confidence` are in (0, 1); `now` is the time it is created at. `attempt` (from 1) counts
    the attempts at a certificate; a gate whose `attempt` is 0 spent none. `settings` are the rules under
    which the records were made. Without a certificate the gate's `refusal` says what is missing.
    """
    traffic = {calls[0].conversation: calls for calls in of_model(conversations(records).values(), model)}
    clean = {name: calls for name, calls in traffic.items() if observed(calls)}
    learned = _learned(traffic, clean, model)
    gate = replace(
        _gate(learned, clean, model),
        model=model,
        version=version,
        created=now,
        attempt=attempt,
        rules=rules_of(settings or RuleSettings()),
    )
    if len(learned) < ENOUGH:
        refusal = _little(len(learned), len(clean))
        return replace(gate, attempt=0, refusal=refusal.explain())
    certifying = [calls for name, calls in clean.items() if not learned_from(name)]
    outcome = certify(
        (candidates(gate, calls) for calls in certifying),
        max_harm=max_harm,
        confidence=confidence,
        attempt=attempt,
    )
    if isinstance(outcome, Certificate):
        gate = replace(gate, certificate=outcome)
        return replace(gate, reference=_reference(gate, certifying))
    return replace(gate, attempt=attempt * outcome.spent, refusal=outcome.explain(CERTIFYING))


def learned_from(conversation: str) -> bool:
    """Whether the gate learns from this conversation; else it is certified by it."""
    return lot("calibration", "side", conversation) >= CERTIFYING


def eligible(record: CallRecord) -> bool:
    """Whether something can be learned of the record's call: it has a label and could be withheld."""
    return record.effect == ToolEffect.READ_ONLY and record.label is not None


@dataclass(frozen=True, slots=True)
class _Example:
    conversation: str
    facts: CallFacts
    useful: bool


def _learned(
    traffic: Mapping[str, Sequence[CallRecord]], clean: Mapping[str, Sequence[CallRecord]], model: str
) -> list[_Example]:
    schemas = _schemas(call for calls in traffic.values() for call in calls if call.model == model)
    examples = []
    for name, calls in traffic.items():
        for call in calls:
            mine = learned_from(name) if name in clean else call.explored
            label = call.label
            if mine and label is not None and call.model == model and eligible(call):
                facts = CallFacts.of_record(call)
                if facts.answered and facts.schema == schemas[call.tool]:
                    examples.append(_Example(name, facts, label.changed))
    return examples


def _schemas(calls: Iterable[CallRecord]) -> dict[str, str]:
    """The description that each tool had last."""
    last: dict[str, tuple[float, str]] = {}
    for call in calls:
        last[call.tool] = max(last.get(call.tool, (call.created, "")), (call.created, call.schema))
    return {tool: schema for tool, (_, schema) in last.items()}


def _gate(examples: Sequence[_Example], clean: Mapping[str, Sequence[CallRecord]], model: str) -> Gate:
    """The gate without a name and without a certificate."""
    measured = [
        call
        for calls in clean.values()
        for call in calls
        if call.model == model and call.probe_before is not None
    ]
    signals = _signals(examples)
    tools = Counter(example.facts.tool for example in examples)
    names = sorted(tool for tool, labels in tools.items() if labels >= ENOUGH_OF_TOOL)
    schemas = {example.facts.tool: example.facts.schema for example in examples}
    columns = _columns(examples, signals, names)
    useful = np.array([example.useful for example in examples], dtype=bool)
    intercept, weights = _logistic(columns, useful)
    common = weights[: len(signals)]
    own = DEVIATION * weights[len(signals) :].reshape(-1, 1 + len(signals))
    return Gate(
        model="",
        version=0,
        created=0.0,
        attempt=0,
        signals=tuple(
            replace(entry, weight=float(weight)) for entry, weight in zip(signals, common, strict=True)
        ),
        intercept=intercept,
        tools={
            name: ToolWeights(
                schemas[name],
                tools[name],
                *((float(own[place, 0]), tuple(own[place, 1:].tolist())) if len(own) else ()),
            )
            for place, name in enumerate(names)
        },
        knots=_knots(examples, columns, useful),
        horizon=1 + max((call.evidence_step for call in measured), default=-1),
        rules="",
    )


def _signals(examples: Sequence[_Example]) -> list[SignalWeight]:
    """Those that differ between calls, with mean and standard deviation after their transform."""
    found = []
    for name in SIGNALS:
        transform = TRANSFORM_OF.get(name, "identity")
        values = [example.facts.signals.get(name) for example in examples]
        changed = [TRANSFORMS[transform](value) for value in values if value is not None and isfinite(value)]
        scale = float(np.std(changed)) if changed else 0.0
        if scale > 1e-9:
            found.append(SignalWeight(name, transform, float(np.mean(changed)), scale, 0.0))
    return found


def _columns(examples: Sequence[_Example], signals: Sequence[SignalWeight], tools: Sequence[str]) -> Floats:
    """(examples, signals), and for each of several tools (examples, 1 + signals) more, 0 for other tools'."""
    common = np.array(
        [
            [entry.standard(example.facts.signals.get(entry.name)) for entry in signals]
            for example in examples
        ],
        dtype=np.float64,
    ).reshape(len(examples), len(signals))
    if len(tools) < 2:
        return common
    own = np.hstack([np.ones((len(examples), 1)), common]) * DEVIATION
    is_of = [np.array([[example.facts.tool == tool] for example in examples]) for tool in tools]
    return np.hstack([common, *(own * mask for mask in is_of)])


def _logistic(columns: Floats, useful: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Intercept and weights; only an intercept where all labels are alike."""
    if useful.all() or not useful.any() or not columns.shape[1]:
        share = (useful.sum() + 0.5) / (len(useful) + 1)
        return log(share / (1 - share)), np.zeros(columns.shape[1])
    regression = LogisticRegression(C=1 / PENALTY, solver="newton-cholesky", max_iter=200)
    regression.fit(columns, useful)
    return float(regression.intercept_[0]), regression.coef_[0]


def _knots(
    examples: Sequence[_Example], columns: Floats, useful: NDArray[np.bool_]
) -> tuple[tuple[float, float], ...]:
    """The isotonic regression of the labels on scores by models that did not see the conversation."""
    if not examples:
        return ((0.0, 0.5),)
    fold = np.array([int(FOLDS * lot("calibration", "fold", example.conversation)) for example in examples])
    scores = np.zeros(len(examples))
    for place in range(FOLDS):
        held_out = fold == place
        if held_out.any():
            intercept, weights = _logistic(columns[~held_out], useful[~held_out])
            scores[held_out] = intercept + columns[held_out] @ weights
    return _centred(scores, useful)


def _centred(scores: Floats, useful: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Centred isotonic regression (A. P. Oron and N. Flournoy, Stat. Biopharm. Res. 9:258-267, 2017).

    Each block of the isotonic regression becomes one knot at its mean score. So the order of the scores is
    kept within a block too, and a careful threshold need not take in a whole one. A block with k useful of n
    calls has the value (k + 1/2) / (n + 1), since none of 20 is not never; beyond the outer knots it goes
    half-way on to 0 and to 1.
    """
    level = IsotonicRegression().fit(scores, useful.astype(np.float64)).predict(scores)
    _, block = np.unique(level, return_inverse=True)
    size = np.bincount(block)
    centres = np.bincount(block, scores) / size
    values = np.maximum.accumulate((np.bincount(block, useful) + 0.5) / (size + 1))
    at = np.concatenate([[scores.min()], centres, [scores.max()]])
    values = np.concatenate([[values[0] / 2], values, [(values[-1] + 1) / 2]])
    rises = np.concatenate([[True], np.diff(at) > 0])
    return tuple(zip(at[rises].tolist(), values[rises].tolist(), strict=True))


def _reference(gate: Gate, certifying: Iterable[Sequence[CallRecord]]) -> Reference:
    seen = [scored for calls in certifying for scored in reached(gate, calls)]
    return Reference(_deciles(gate, seen), calibration_error(seen))


def _deciles(gate: Gate, seen: Sequence[ScoredCall]) -> dict[str, tuple[float, ...]]:
    """Of those signals that are spread enough to have nine different ones."""
    judged = [scored.record.signals for scored in seen if scored.score != NEVER]
    deciles = {}
    for entry in gate.signals:
        values = [value for value in (signals.get(entry.name) for signals in judged) if value is not None]
        if values:
            cuts = np.quantile(values, np.arange(1, 10) / 10).tolist()
            if len(set(cuts)) == len(cuts):
                deciles[entry.name] = tuple(cuts)
    return deciles


def _little(labelled: int, conversations: int) -> Refusal:
    cause = f"There are {labelled} labelled calls to learn from, and {ENOUGH} are the least."
    each = max(labelled, 1) / max(conversations, 3)
    return Refusal(cause, ceil((ENOUGH - labelled) / each), spent=False)
