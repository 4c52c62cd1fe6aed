"""When a gate is made, made again, and given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil

from governor.certificate import crossings_needed, level_of
from governor.conversations import begun_since, conversations, observed, of_model
from governor.drift import lapse
from governor.gate import rules_of
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.standing import Standing
from governor_calibration.fit import CERTIFYING, eligible, fit

GROWTH = 1.5
"""How many times as many conversations the next attempt needs. The budget of errors is split over the
attempts, so that they must be few."""

RETRY = 1.2
"""The same after one that did not come to a test, and cost none of the budget."""

CROSSING = 1.5
"""How many conversations are taken to give one first crossing, before the first attempt."""


def renew(
    records: Iterable[CallRecord],
    standing: Standing,
    *,
    model: str,
    max_harm: float,
    now: float,
    confidence: float = 0.95,
    settings: RuleSettings | None = None,
) -> Standing:
    """The standing at the time `now`, by all records that are kept.

    It looks for a lapse first. Then a gate is fitted if there are enough new conversations for an attempt; a
    gate without certificate never takes the place of one that enforces. The same standing, if nothing
    changed.
    """
    settings = settings or RuleSettings()
    records = list(records)
    standing = _watched(records, standing, model, max_harm, now, rules_of(settings))
    traffic = begun_since(of_model(conversations(records).values(), model), standing.since)
    labelled = sum(
        observed(calls) and any(call.model == model and eligible(call) for call in calls) for calls in traffic
    )
    if labelled < _enough(standing, max_harm, confidence):
        return standing
    gate = fit(
        [call for calls in traffic for call in calls],
        model=model,
        max_harm=max_harm,
        confidence=confidence,
        version=1 + (standing.gate.version if standing.gate else 0),
        now=now,
        attempt=standing.attempts + 1,
        settings=settings,
    )
    standing = replace(standing, attempts=max(standing.attempts, gate.attempt), conversations=labelled)
    if gate.certificate is None and standing.enforces:
        return standing
    return replace(standing, gate=gate, lapsed="")


def _watched(
    records: list[CallRecord], standing: Standing, model: str, max_harm: float, now: float, rules: str
) -> Standing:
    """With the lapse that is due."""
    if standing.gate is not None and standing.gate.model != model:
        standing = Standing(rules=standing.rules)
    if standing.rules != rules:
        changed = bool(standing.rules)
        standing = replace(standing, rules=rules)
        if changed:
            return _fallen(standing, "The rules were changed.", now)
    if not standing.enforces or standing.gate is None or standing.gate.certificate is None:
        return standing
    bound = standing.gate.certificate.bound
    if bound > max_harm:
        reason = f"It is certified for a harm of at most {bound:.2%}, and {max_harm:.2%} are allowed now."
        return replace(standing, lapsed=reason, conversations=0)
    fallen = lapse(standing.gate, records)
    return standing if fallen is None else _fallen(standing, fallen, now)


def _fallen(standing: Standing, reason: str, now: float) -> Standing:
    """What came before `now` no longer counts."""
    return replace(standing, lapsed=reason if standing.gate else "", since=now, conversations=0)


def _enough(standing: Standing, max_harm: float, confidence: float) -> int:
    """Labelled conversations for the next attempt."""
    if standing.conversations:
        untested = standing.gate is not None and standing.gate.attempt == 0
        return ceil((RETRY if untested else GROWTH) * standing.conversations)
    crossings = crossings_needed(max_harm, level_of(confidence, standing.attempts + 1))
    return ceil(crossings * CROSSING / CERTIFYING)
