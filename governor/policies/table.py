"""Every policy under its name: what it is, how it is made, and what makes it more aggressive."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from governor.errors import GovernorError
from governor.gate import Gate
from governor.policies.calibrated import CalibratedPolicy
from governor.policies.cap import CapPolicy
from governor.policies.identical import IdenticalPolicy
from governor.policies.mean_entropy import MeanEntropyPolicy
from governor.policies.observe import ObservePolicy
from governor.policies.policy import Policy
from governor.policies.rules import RulesPolicy
from governor.policies.tasr import TasrPolicy
from governor.policies.threshold import ThresholdPolicy
from governor.rules import Budgets, RuleSettings


class PolicyError(GovernorError):
    """No policy can be made: `unknown_policy`, `unknown_parameter` or `bad_parameter`; `detail` is the
    sentence for the user."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The parameter of a policy that trades calls against harm; `values` from the most careful to the most
    aggressive."""

    parameter: str
    default: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """A policy before its parameters are chosen. `factory` takes them by keyword, and says of a wrong one by
    TypeError or ValueError."""

    name: str
    description: str
    factory: Callable[..., Policy]
    sweep: Sweep | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, where the factory tells them."""
        kinds = inspect.signature(self.factory).parameters.values()
        return tuple(p.name for p in kinds if p.name != "name" and p.kind is not p.VAR_KEYWORD)

    def make(self, **parameters: Any) -> Policy:
        """The policy. Raises `PolicyError` for parameters that it does not have or cannot use."""
        taken = self.parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.factory).parameters.values())
        for parameter in parameters:
            if parameter not in taken and not anything:
                has = f"it has {', '.join(taken)}" if taken else "it has none"
                raise PolicyError("unknown_parameter", f"{self.name} has no parameter {parameter!r}: {has}")
        try:
            return self.factory(**parameters)
        except (TypeError, ValueError) as error:
            raise PolicyError("bad_parameter", f"{self.name}: {error}") from error


def _observe() -> Policy:
    return ObservePolicy()


def _rules(
    *,
    failing_attempts: int = 2,
    per_conversation: int | None = None,
    per_tool: Mapping[str, int] = MappingProxyType({}),
) -> Policy:
    return RulesPolicy(_rule_settings(failing_attempts, per_conversation, per_tool))


def _threshold(
    *,
    margin: float = 0.9,
    entropy: float = 0.5,
    failing_attempts: int = 2,
    per_conversation: int | None = None,
    per_tool: Mapping[str, int] = MappingProxyType({}),
) -> Policy:
    settings = _rule_settings(failing_attempts, per_conversation, per_tool)
    return ThresholdPolicy(_number("margin", margin), _number("entropy", entropy), settings)


def _cap(*, calls: int = 5) -> Policy:
    return CapPolicy(_whole("calls", calls))


def _identical(*, times: int = 2) -> Policy:
    return IdenticalPolicy(_whole("times", times))


def _tasr(*, margin: float = 0.25, calibration: Any = ()) -> Policy:
    points = tuple((_number("calibration", gap), _number("calibration", value)) for gap, value in calibration)
    return TasrPolicy(_number("margin", margin), points)


def _mean_entropy(*, entropy: float = 0.1) -> Policy:
    return MeanEntropyPolicy(_number("entropy", entropy))


def _calibrated(
    *,
    gate: Gate | None = None,
    failing_attempts: int = 2,
    per_conversation: int | None = None,
    per_tool: Mapping[str, int] = MappingProxyType({}),
) -> Policy:
    if gate is not None and not isinstance(gate, Gate):
        raise ValueError("gate must be a gate")
    return CalibratedPolicy(gate, _rule_settings(failing_attempts, per_conversation, per_tool))


def _rule_settings(
    failing_attempts: int, per_conversation: int | None, per_tool: Mapping[str, int]
) -> RuleSettings:
    whole = None if per_conversation is None else _whole("per_conversation", per_conversation)
    budgets = Budgets(whole, {name: _whole("per_tool", value) for name, value in dict(per_tool).items()})
    return RuleSettings(budgets, _whole("failing_attempts", failing_attempts))


def _whole(name: str, value: object) -> int:
    """Parameters come from files and command lines: 2.0 is two, "2" is a mistake."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)


_KINDS: Final = (
    PolicyKind("observe", "withholds nothing", _observe),
    PolicyKind("rules", "repeats, cycles, failing retries and budgets; needs no logprobs", _rules),
    PolicyKind(
        "threshold",
        "rules, then a forced answer that is certain in every token",
        _threshold,
        Sweep("margin", 0.9, (0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1, 0.0)),
    ),
    PolicyKind(
        "cap",
        "at most so many read-only calls a conversation",
        _cap,
        Sweep("calls", 5, (20, 10, 8, 6, 5, 4, 3, 2, 1, 0)),
    ),
    PolicyKind(
        "identical",
        "the same call with the same arguments, made so many times before",
        _identical,
        Sweep("times", 2, (4, 3, 2, 1)),
    ),
    PolicyKind(
        "tasr",
        "a forced answer that repeats itself with a margin (arXiv 2606.13814)",
        _tasr,
        Sweep("margin", 0.25, (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.25, 0.1, 0.0)),
    ),
    PolicyKind(
        "mean_entropy",
        "a forced answer of low mean token entropy",
        _mean_entropy,
        Sweep("entropy", 0.1, (0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)),
    ),
    # What makes it more aggressive is the harm that it was fitted for.
    PolicyKind("calibrated", "a gate that was learned from a log, with its certificate", _calibrated),
)

POLICIES: Final[Mapping[str, PolicyKind]] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""The built-in policies by name."""


def find_kind(name: str, table: Mapping[str, PolicyKind] = POLICIES) -> PolicyKind:
    """The kind of that name. Raises `PolicyError` that names the nearest one and all."""
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    nearest = f"did you mean {close[0]}? " if close else ""
    raise PolicyError("unknown_policy", f"no policy {name!r}: {nearest}There are {', '.join(table)}")


def policy(name: str, **parameters: Any) -> Policy:
    """The built-in policy of that name.

    >>> policy("cap", calls=3).name
    'cap'
    >>> policy("cup")
    Traceback (most recent call last):
    ...
    governor.policies.table.PolicyError: unknown_policy: no policy 'cup': did you mean cap? ...
    """
    return find_kind(name).make(**parameters)
