"""The settings that are compared: each policy over the parameter that trades calls against harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from governor.decision import Mode
from governor.experiment import Experiment
from governor.gate import Gate
from governor.governance import Governance
from governor.policies import ObservePolicy
from governor.policies.calibrated import CalibratedPolicy
from governor.policies.forecast import ForecastPolicy
from governor.policies.table import POLICIES, PolicyKind
from governor.pruning import PruneSettings

MAX_HARMS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""The values of `max_harm` that the calibrated gate is swept over."""

FORECASTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""The thresholds of P(useful) that the gate is swept over without a certificate, like any other policy."""

CAPS = (5, 4, 3, 2, 1, 0)
"""More calls than these hardly any agent makes; the table's longer sweep would repeat the ungoverned run."""

PRUNING: Mapping[str, PruneSettings] = {
    "none": PruneSettings("none"),
    "low_value, from 64 tokens": PruneSettings("low_value"),
    "low_value, from 16 tokens": PruneSettings("low_value", min_tokens=16, batch_tokens=64),
    "age, last 5": PruneSettings("age", min_tokens=16, keep_last=5),
    "age, last 2": PruneSettings("age", min_tokens=16, keep_last=2),
    "age, last 1": PruneSettings("age", min_tokens=16, keep_last=1),
    "age, last 0": PruneSettings("age", min_tokens=16, keep_last=0),
}
"""How the results of the calls that pass are pruned, without any call being withheld."""

UNGOVERNED = "ungoverned"
CALIBRATED = "calibrated"
FORECAST = "forecast"
PRUNED = "pruning"


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of one policy. `setting` says in words what it is; "" where there is nothing to set."""

    policy: str
    setting: str
    governance: Governance

    @property
    def name(self) -> str:
        return f"{self.policy} {self.setting}".strip()


def measuring(base: Governance) -> Governance:
    """Everything is measured and labelled, nothing withheld."""
    return replace(base, mode=Mode.OBSERVE, policy=ObservePolicy(), experiment=Experiment(labels=1.0))


def setting_count(policies: Iterable[str] | None) -> int:
    """How many settings `points` has."""
    counts = {CALIBRATED: len(MAX_HARMS), FORECAST: len(FORECASTS), PRUNED: len(PRUNING)}
    names = dict.fromkeys([*POLICIES, *counts] if policies is None else policies)
    return sum(counts[name] if name in counts else len(_values(POLICIES[name])) for name in names)


def points(
    base: Governance,
    gates: Mapping[float, Gate],
    *,
    policies: Iterable[str] | None = None,
    table: Mapping[str, PolicyKind] = POLICIES,
) -> Iterator[Point]:
    """Every setting of `policies` (None: of all, pruning among them). `gates` are the fitted ones by
    `max_harm`."""
    wanted = [*table, CALIBRATED, FORECAST, PRUNED] if policies is None else list(policies)
    for name in dict.fromkeys(wanted):
        if name == CALIBRATED:
            for max_harm, gate in gates.items():
                certified = CalibratedPolicy(gate, base.rules)
                yield Point(name, f"max_harm={max_harm:g}", governed(base, certified))
        elif name == FORECAST:
            # Without certificates they are the same gate: any will do.
            gate = next(iter(gates.values()))
            for threshold in FORECASTS:
                policy = ForecastPolicy(gate, threshold, base.rules)
                yield Point(name, f"P(useful)<={threshold:g}", governed(base, policy))
        elif name == PRUNED:
            for setting, pruning in PRUNING.items():
                # Low value is known by labels, so that these are part of the price.
                labels = Experiment(labels=1.0 if pruning.policy == "low_value" else 0.0)
                acting = replace(governed(base, ObservePolicy()), experiment=labels, pruning=pruning)
                yield Point(name, setting, acting)
        else:
            yield from _swept(base, table[name])


def governed(base: Governance, policy: Any) -> Governance:
    """The policy acts on every conversation, and nothing is measured but what it asks for."""
    return replace(base, mode=Mode.ENFORCE, policy=policy, experiment=Experiment(labels=0.0))


def _swept(base: Governance, kind: PolicyKind) -> Iterator[Point]:
    for value in _values(kind):
        if kind.sweep is None or value is None:
            yield Point(kind.name, "", governed(base, kind.make()))
        else:
            policy = kind.make(**{kind.sweep.parameter: value})
            yield Point(kind.name, f"{kind.sweep.parameter}={value:g}", governed(base, policy))


def _values(kind: PolicyKind) -> Sequence[float | None]:
    """Of the parameter that is swept over; a None where there is none."""
    if kind.sweep is None:
        return (None,)
    return CAPS if kind.name == "cap" else kind.sweep.values
