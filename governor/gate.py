"""The calibrated gate: P(useful) of a proposed call, and the threshold at which it may be withheld.

A `Gate` is a value: it is fitted elsewhere, from records of executed calls, and read here with plain
arithmetic.

    z_i = clip((f_i(x_i) - mean_i) / scale_i, -5, 5)
    s = b + b_tool + sum_i (w_i + w_tool,i) z_i
    P(useful) = isotonic(s)

over the signals x_i of `governor.signals`, where f_i brings a signal to a scale on which a straight line
makes sense, and w_tool and b_tool are how the tool deviates from all tools taken together. A missing signal
counts as its mean. The signs of the weights come from the data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, isfinite, log
from typing import TYPE_CHECKING, Any, Final

from governor.calls import ToolEffect, digest
from governor.certificate import Certificate
from governor.errors import GovernorError
from governor.probe import ProbeAnswer, fingerprint
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.signals import Signals, signals

if TYPE_CHECKING:
    from governor.policies.policy import Evidence

FORMAT: Final = 2
"""1 was found on calls in other orders, and on conversations that quick clients had split."""

NEVER: Final = inf
"""The score of a call that the gate never withholds."""

LIMIT: Final = 5.0
"""Standard deviations at which a signal is cut off: no single strange value decides alone."""

TRANSFORMS: Final[Mapping[str, Callable[[float], float]]] = {
    "identity": lambda x: x,
    # An entropy or another amount of doubt, in nats: its order of magnitude matters.
    "log": lambda x: log(max(x, 0.0) + 0.001),
    # A log-probability: minus the logarithm of the doubt in it, so that it still rises with the signal.
    "surprise": lambda x: -log(max(-x, 0.0) + 0.001),
    # A margin: how close to 1.
    "gap": lambda x: -log(1 - min(x, 1.0) + 0.0001),
}

TRANSFORM_OF: Final[Mapping[str, str]] = {
    "segment_entropy": "log",
    "decision_entropy": "log",
    "decision_margin": "gap",
    "argument_entropy": "log",
    "probe_logprob": "surprise",
    "probe_mean_entropy": "log",
    "probe_max_entropy": "log",
    "probe_least_margin": "gap",
}
"""By signal; the others are left as they are."""

_EMPTY: Final = fingerprint("")


class GateMalformed(GovernorError, ValueError):
    """The data are no gate of this version."""


class GateOutdated(GateMalformed):
    """The data are a gate of an earlier version: what it promises was found in another way."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """All that decides whether a gate withholds a call; nothing else may.

    The certificate is found on the facts of recorded calls, and calls are judged by the facts of their
    evidence: both go through `Gate.score`, so that what is withheld is what was certified. `answered` says
    that there is a finished forced answer with a text. That a rule speaks against the call is one of the
    signals: how much that means is learned, since there are models that read a result only the second time.
    """

    tool: str
    schema: str
    model: str
    read_only: bool
    step: int
    answered: bool
    signals: Signals

    @classmethod
    def of_record(cls, record: CallRecord) -> CallFacts:
        """Of a call that was recorded."""
        return cls(
            tool=record.tool,
            schema=record.schema,
            model=record.model,
            read_only=record.effect == ToolEffect.READ_ONLY,
            step=record.evidence_step,
            answered=_answered(record.probe_before),
            signals=record.signals,
        )

    @classmethod
    def of_evidence(cls, evidence: Evidence, rule: str) -> CallFacts:
        """Of a call that is to be judged; `rule` is the reason of the rule that speaks against it, or ""."""
        return cls(
            tool=evidence.call.name,
            schema=evidence.schema,
            model=evidence.model,
            read_only=evidence.effect is ToolEffect.READ_ONLY,
            step=evidence.step,
            answered=_answered(evidence.probe),
            signals=signals(evidence, rule),
        )


def _answered(probe: ProbeAnswer | None) -> bool:
    """By the fingerprint, since records may be kept without the text."""
    return probe is not None and probe.finished and probe.fingerprint != _EMPTY


def rules_of(settings: RuleSettings) -> str:
    """A fingerprint of the rules: a certificate holds for the rules under which its calls were recorded."""
    budgets = settings.budgets
    values = (budgets.per_conversation, sorted(budgets.per_tool.items()), settings.failing_attempts)
    return digest(repr(values))[:16]


@dataclass(frozen=True, slots=True)
class SignalWeight:
    """How one signal enters: the name of its transform, mean and scale (> 0) of the transformed signal, and
    its weight over all tools."""

    name: str
    transform: str
    mean: float
    scale: float
    weight: float

    def standard(self, value: float | None) -> float:
        """The signal in standard deviations from its mean; 0 where it is missing."""
        if value is None or not isfinite(value):
            return 0.0
        return max(-LIMIT, min(LIMIT, (TRANSFORMS[self.transform](value) - self.mean) / self.scale))


@dataclass(frozen=True, slots=True)
class ToolWeights:
    """One tool: the fingerprint of the description that `labels` labelled calls were made under, and how it
    deviates from all tools, in the order of the gate's signals (empty: not at all)."""

    schema: str
    labels: int
    intercept: float = 0.0
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """What was usual when the gate was fitted, over the calls up to each conversation's first crossing: the
    nine deciles of each signal that has nine different ones, and the calibration error of P(useful)."""

    deciles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration_error: float = 0.0


_Line = tuple[float, tuple[tuple[SignalWeight, float], ...]]


@dataclass(frozen=True)
class Gate:
    """For the calls of one model.

    `created` is in seconds of the caller's clock. `attempt` is the number of the attempt at a certificate, 0
    if there was too little to test. `knots` are (score, P(useful)) in rising order of both, linear in between
    and constant outside. From step `horizon` on nothing was measured, and nothing is withheld. `rules` is
    `rules_of` the rules' settings. Without a certificate, `refusal` says why, and the gate withholds nothing.
    """

    model: str
    version: int
    created: float
    attempt: int
    signals: tuple[SignalWeight, ...]
    intercept: float
    tools: Mapping[str, ToolWeights]
    knots: tuple[tuple[float, float], ...]
    horizon: int
    rules: str
    certificate: Certificate | None = None
    refusal: str = ""
    reference: Reference = field(default_factory=Reference)

    @property
    def threshold(self) -> float | None:
        """The highest score at which a call is withheld; None: withhold nothing."""
        return None if self.certificate is None else self.certificate.threshold

    def knows(self, facts: CallFacts) -> bool:
        """Whether calls of this tool, description and model, this early in a conversation, were learned
        from."""
        tool = self.tools.get(facts.tool)
        return (
            facts.read_only
            and tool is not None
            and tool.schema == facts.schema
            and self.model == facts.model
            and facts.step < self.horizon
        )

    def score(self, facts: CallFacts) -> float:
        """The call is withheld if and only if this is at most the threshold. This and nothing else is the set
        of calls that the certificate is about.

        `NEVER` for a call of what the gate does not know, and for one without an answer to fall back on;
        else P(useful).
        """
        if not facts.answered or not self.knows(facts):
            return NEVER
        return self.probability(facts.signals, facts.tool)

    def probability(self, signals: Signals, tool: str) -> float:
        """P(useful) in [0, 1] by the signals alone; a tool that was not seen counts as the average one."""
        return self.calibrated(self.linear(signals, tool))

    def linear(self, signals: Signals, tool: str) -> float:
        """The score s before calibration."""
        intercept, terms = self._terms.get(tool) or self._common
        return intercept + sum(weight * entry.standard(signals.get(entry.name)) for entry, weight in terms)

    @cached_property
    def _common(self) -> _Line:
        return self.intercept, tuple((entry, entry.weight) for entry in self.signals)

    @cached_property
    def _terms(self) -> dict[str, _Line]:
        """Common and own weights added up, by tool."""
        return {
            name: (
                self.intercept + tool.intercept,
                tuple(
                    (entry, entry.weight + own) for entry, own in zip(self.signals, tool.weights, strict=True)
                ),
            )
            for name, tool in self.tools.items()
            if tool.weights
        }

    def calibrated(self, linear: float) -> float:
        """P(useful) at the score s."""
        place = bisect_left(self.knots, (linear, -inf))
        if place == 0:
            return self.knots[0][1]
        if place == len(self.knots):
            return self.knots[-1][1]
        (left, low), (right, high) = self.knots[place - 1 : place + 1]
        return low + (high - low) * ((linear - left) / (right - left))

    def explain(self) -> str:
        """What the gate may do and why, in one or two plain sentences."""
        return self.refusal if self.certificate is None else self.certificate.explain()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gate:
        """What `as_dict` gave, also after a trip through JSON. Raises `GateMalformed` on anything else."""
        if not isinstance(data, Mapping) or "format" not in data:
            raise GateMalformed("no_gate", "the data are not those of a gate")
        if data["format"] in range(1, FORMAT):
            raise GateOutdated("outdated", f"format {data['format']!r}, this version makes {FORMAT}")
        if data["format"] != FORMAT:
            raise GateMalformed("format", f"format {data['format']!r}, this version reads {FORMAT}")
        try:
            return _gate(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GateMalformed("malformed", repr(error)) from error


def _gate(data: Mapping[str, Any]) -> Gate:
    certificate = data["certificate"]
    reference = data["reference"]
    gate = Gate(
        model=str(data["model"]),
        version=int(data["version"]),
        created=_number(data["created"]),
        attempt=int(data["attempt"]),
        signals=tuple(_signal(entry) for entry in data["signals"]),
        intercept=_number(data["intercept"]),
        tools={str(name): _tool(entry) for name, entry in data["tools"].items()},
        knots=tuple((_number(score), _number(value)) for score, value in data["knots"]),
        horizon=int(data["horizon"]),
        rules=str(data["rules"]),
        certificate=None if certificate is None else Certificate.from_dict(certificate),
        refusal=str(data["refusal"]),
        reference=Reference(
            {str(name): _numbers(values) for name, values in reference["deciles"].items()},
            _number(reference["calibration_error"]),
        ),
    )
    scores, values = zip(*gate.knots, strict=True)
    if list(scores) != sorted(set(scores)) or list(values) != sorted(values):
        raise ValueError("the knots do not rise")
    if not 0 <= values[0] <= values[-1] <= 1:
        raise ValueError("a probability outside of [0, 1]")
    if any(tool.weights and len(tool.weights) != len(gate.signals) for tool in gate.tools.values()):
        raise ValueError("weights of a tool without their signals")
    return gate


def _signal(entry: Mapping[str, Any]) -> SignalWeight:
    if entry["transform"] not in TRANSFORMS:
        raise ValueError(f"unknown transform {entry['transform']!r}")
    scale = _number(entry["scale"])
    if scale <= 0:
        raise ValueError("a scale that is not positive")
    return SignalWeight(
        str(entry["name"]), entry["transform"], _number(entry["mean"]), scale, _number(entry["weight"])
    )


def _tool(entry: Mapping[str, Any]) -> ToolWeights:
    return ToolWeights(
        str(entry["schema"]), int(entry["labels"]), _number(entry["intercept"]), _numbers(entry["weights"])
    )


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)


def _number(value: Any) -> float:
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{value!r} is no number to reckon with")
    return number
