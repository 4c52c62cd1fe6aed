"""How often a gate is wrong at most: a bound that holds for any model of P(useful), good or bad.

**The unit is the first crossing.** Of each conversation in which nothing was withheld, the first call that
the gate would have withheld at a threshold counts, and no other. Conversations are independent of each other;
calls of one conversation are not, so that counting all of them would make a small sample look large. And
behind the first withheld call the conversation would have gone another way: what was observed there is not
what the gate would have met. (As arXiv 2608.13237 puts it, the policy is its first crossing.)

**The bound** is the exact one of C. J. Clopper and E. S. Pearson (1934), Biometrika 26:404-413, one-sided.

**The threshold** is found by fixed sequence testing, as in Learn then Test (A. N. Angelopoulos et al., arXiv
2110.01052): from the most careful threshold to the most aggressive, each at the whole level, and the first
failure stops. To certify a harmful setting the sequence must pass the first harmful one, which happens with
at most the probability of that one test; so there is nothing to correct for the number of thresholds. It may
begin anywhere, as long as the labels have no say in where: here, where the gate's own forecast (a function of
the scores, which were fitted on other conversations) says that the
test will likely pass. Where no test likely passes, none is made.

**Repeated attempts** spend the error budget d = 1 - confidence: attempt v tests at level d / (v (v + 1)), and
as these sum to d, all certificates of a deployment's life hold together with the stated confidence. An
attempt that found too few crossings to test anything spends nothing.

**What is not promised.** Nothing about a single tool, user or conversation: the bound is on the mixture that
was observed. Nothing about a second withheld call of the same conversation. Nothing about traffic of another
kind; for that there is `governor.drift`. And harm is what the label says: the forced answer would have been
another one. A change from one wrong answer to another counts as harm though it is none, and a result that
pays off only two calls later does not count though it is. Errors of labels that are independent of the gate
add to the rate that is bounded, and so make the gate more careful. Conversations that repeat one question are
independent draws if users send them so, and are not if one job sends them in a row; `distinct` says how many
different ones there were.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from math import ceil, exp, expm1, inf, lgamma, log, log1p
from typing import Any, Final

THRESHOLDS: Final = 50
"""At most so many thresholds are tried."""

UNLABELLED: Final = 0.1
"""Greatest share of first crossings that may be without a label: it could hide harm."""

LIKELY: Final = 0.5
"""How likely the first test must be to pass, by the gate's own forecast; else none is made, and no budget
spent."""


FORESEEN: Final = 30.0
"""How many times as many conversations are considered when it is said how many are missing."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One call of a conversation as the certificate sees it. It would be withheld at every threshold not
    below `score`; `harmful` is None without a label; equal `likeness` means the same question."""

    score: float
    harmful: bool | None
    likeness: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """At `threshold`, of `crossings` labelled first crossings (`distinct` different ones) `harmful` were
    harmful, and `bound` is the upper bound on the rate, not above `max_harm`.

    `confidence` is that of all attempts of the deployment together, `attempt` counts from 1, `unlabelled`
    first crossings were left out.
    """

    threshold: float
    crossings: int
    harmful: int
    unlabelled: int
    distinct: int
    bound: float
    max_harm: float
    confidence: float
    attempt: int

    def explain(self) -> str:
        """One plain sentence."""
        left_out = f"; {self.unlabelled} more had no label" if self.unlabelled else ""
        return (
            f"Of the first calls that it would have withheld in {self.crossings} observed conversations "
            f"({self.distinct} different ones), {self.harmful} would have changed the answer, so that with "
            f"{self.confidence:.0%} confidence at most {self.bound:.2%} of them do, where "
            f"{self.max_harm:.2%} are allowed (attempt {self.attempt}{left_out})."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """What `as_dict` gave. Raises TypeError, ValueError or KeyError on anything else."""
        numbers = {entry.name: data[entry.name] for entry in fields(cls)}
        if not all(isinstance(value, int | float) for value in numbers.values()):
            raise TypeError("a certificate holds numbers only")
        certificate = cls(**numbers)
        if not 0 <= certificate.bound <= certificate.max_harm <= 1:
            raise ValueError(f"bound {certificate.bound} above {certificate.max_harm}")
        return certificate


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no certificate. `more`: about how many more conversations would be enough, None if their
    number is not what is missing. `spent`: a test was made, and the attempt counts."""

    cause: str
    more: int | None
    spent: bool

    def explain(self, share: float = 1.0) -> str:
        """One or two plain sentences; `share` of all conversations are used for the certificate."""
        if self.more is None:
            return self.cause
        return f"{self.cause} About {ceil(self.more / share):,} more conversations are needed."


def tail(harmful: int, crossings: int, rate: float) -> float:
    """The probability of at most `harmful` among `crossings`, each with probability `rate`.

    It is the regularised incomplete beta function I_{1 - rate}(crossings - harmful, harmful + 1).
    """
    if harmful >= crossings or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    return _beta(crossings - harmful, harmful + 1, 1 - rate, rate)


def upper_bound(harmful: int, crossings: int, level: float) -> float:
    """The exact upper confidence bound on a rate of which `harmful` of `crossings` were seen; it is too low
    with a probability of at most `level`. 1 without crossings."""
    if not 0 <= harmful <= crossings or not 0 < level < 1:
        raise ValueError(f"no bound for {harmful} of {crossings} at level {level}")
    if harmful == crossings:
        return 1.0
    if harmful == 0:
        return -expm1(log(level) / crossings)
    low, high = harmful / crossings, 1.0
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        if tail(harmful, crossings, middle) > level:
            low = middle
        else:
            high = middle
    return high


def crossings_needed(max_harm: float, level: float, harmful: int = 0) -> int:
    """The least number of crossings of which `harmful` may be harmful and the bound still not be above
    `max_harm`, which is in (0, 1)."""
    if not 0 < max_harm < 1:
        raise ValueError(f"max_harm {max_harm} is not in (0, 1)")
    low, high = harmful, harmful + 1
    while tail(harmful, high, max_harm) > level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if tail(harmful, middle, max_harm) > level:
            low = middle
        else:
            high = middle
    return high


def level_of(confidence: float, attempt: int) -> float:
    """The error that attempt number `attempt` (from 1) may make."""
    return (1 - confidence) / (attempt * (attempt + 1))


def last_safe(
    counts: Sequence[tuple[int, int]], max_harm: float, level: float, start: int | None = None
) -> int | None:
    """The fixed sequence test over settings from careful to aggressive, each with its numbers of harmful
    crossings and of crossings: the place of the last setting before the first failure.

    `start` must not depend on the labels; by default it is the first setting that passes if nothing in it is
    harmful. None: not even the first one passed, or there is none.
    """
    if start is None:
        needed = crossings_needed(max_harm, level)
        start = next((place for place, (_, n) in enumerate(counts) if n >= needed), len(counts))
    safe = None
    for place in range(start, len(counts)):
        harmful, crossings = counts[place]
        if tail(harmful, crossings, max_harm) > level:
            break
        safe = place
    return safe


def certify(
    conversations: Iterable[Sequence[Candidate]],
    *,
    max_harm: float,
    confidence: float = 0.95,
    attempt: int = 1,
) -> Certificate | Refusal:
    """The most aggressive threshold that is certified.

    Each conversation is the sequence of its calls in their order, without those that the gate never
    withholds; it may be empty. `max_harm` and `confidence` are in (0, 1).
    """
    level = level_of(confidence, attempt)
    lows = [_running_lows(calls) for calls in conversations]
    thresholds = _thinned(sorted({low.score for calls in lows for low in calls}))
    swept = _sweep(lows, thresholds)
    start = _start(swept, max_harm, level)
    if start is None:
        return _untested(swept, len(lows), max_harm, level)
    usable = [(step.harmful, step.crossings) for step in swept]
    for place, step in enumerate(swept):
        if step.unlabelled > UNLABELLED * (step.crossings + step.unlabelled):
            usable[place] = (step.crossings, step.crossings)
    safe = last_safe(usable, max_harm, level, start)
    if safe is None:
        return _failed(swept[start], len(lows), max_harm, level_of(confidence, attempt + 1))
    step, threshold = swept[safe], thresholds[safe]
    return Certificate(
        threshold=threshold,
        crossings=step.crossings,
        harmful=step.harmful,
        unlabelled=step.unlabelled,
        distinct=len({call.likeness for call in _crossings(lows, threshold) if call.harmful is not None}),
        bound=upper_bound(step.harmful, step.crossings, level),
        max_harm=max_harm,
        confidence=confidence,
        attempt=attempt,
    )


@dataclass(slots=True)
class _Step:
    """The first crossings at one threshold; `forecast` is the sum of their probabilities of harm according to
    the gate."""

    crossings: int = 0
    harmful: int = 0
    unlabelled: int = 0
    forecast: float = 0.0


def _running_lows(calls: Sequence[Candidate]) -> list[Candidate]:
    """The calls that can be first crossings at some threshold: those lower than all before them."""
    lows: list[Candidate] = []
    for call in calls:
        if call.score < (lows[-1].score if lows else inf):
            lows.append(call)
    return lows


def _crossings(lows: Iterable[Sequence[Candidate]], threshold: float) -> Iterable[Candidate]:
    for calls in lows:
        first = next((call for call in calls if call.score <= threshold), None)
        if first is not None:
            yield first


def _thinned(scores: Sequence[float]) -> Sequence[float]:
    if len(scores) <= THRESHOLDS:
        return scores
    return [scores[(len(scores) - 1) * place // (THRESHOLDS - 1)] for place in range(THRESHOLDS)]


def _sweep(lows: Iterable[Sequence[Candidate]], thresholds: Sequence[float]) -> list[_Step]:
    """A call is its conversation's first crossing from its own score on, up to the score of the lowest call
    before it."""
    changes = [[0.0] * (len(thresholds) + 1) for _ in range(4)]
    for calls in lows:
        end = len(thresholds)
        for call in calls:
            begin = bisect_left(thresholds, call.score)
            labelled = call.harmful is not None
            figures = (labelled, bool(call.harmful), not labelled, labelled * max(call.score, 0.0))
            for change, figure in zip(changes, figures, strict=True):
                change[begin] += figure
                change[end] -= figure
            end = begin
    crossings, harmful, unlabelled, forecast = (list(accumulate(change)) for change in changes)
    return [
        _Step(round(crossings[place]), round(harmful[place]), round(unlabelled[place]), forecast[place])
        for place in range(len(thresholds))
    ]


def _start(swept: Sequence[_Step], max_harm: float, level: float) -> int | None:
    """The first place whose test likely passes by forecast."""
    return next((place for place, step in enumerate(swept) if _chance(step, max_harm, level) >= LIKELY), None)


def _chance(step: _Step, max_harm: float, level: float) -> float:
    """The probability that the test of `step` passes if its rate is the forecast one; 0 if it cannot."""
    # One more harmful one than forecast: the forecast is an estimate too.
    rate = (step.forecast + 1) / (step.crossings + 1)
    allowed = None if rate >= max_harm else _allowed(step.crossings, max_harm, level)
    return 0.0 if allowed is None else tail(allowed, step.crossings, rate)


def _allowed(crossings: int, max_harm: float, level: float) -> int | None:
    """The greatest number of harmful crossings that still passes, None if not even 0 does."""
    if crossings == 0 or tail(0, crossings, max_harm) > level:
        return None
    # The median of the number of harmful ones is within 1 of the mean, and levels are below one half.
    low, high = 0, min(crossings, ceil(crossings * max_harm) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if tail(middle, crossings, max_harm) > level:
            high = middle
        else:
            low = middle
    return low


def _untested(swept: Sequence[_Step], conversations: int, max_harm: float, level: float) -> Refusal:
    """Of as many times the conversations, would a test likely pass?"""
    most = max((step.crossings for step in swept), default=0)
    cause = f"{most} labelled first calls to withhold do not yet show a harm of at most {max_harm:.2%}."
    if not most:
        return Refusal(cause, crossings_needed(max_harm, level), spent=False)
    times = 1.0
    while times < FORESEEN:
        times *= 1.2
        grown = [_Step(round(times * s.crossings), forecast=times * s.forecast) for s in swept]
        if _start(grown, max_harm, level) is not None:
            return Refusal(cause, ceil((times - 1) * conversations), spent=False)
    cause = f"The signals do not tell useless from useful calls well enough for {max_harm:.2%} of harm."
    return Refusal(cause, None, spent=False)


def _failed(step: _Step, conversations: int, max_harm: float, next_level: float) -> Refusal:
    if step.unlabelled > UNLABELLED * (step.crossings + step.unlabelled):
        cause = (
            f"Of the first calls to withhold, {step.unlabelled} have no label, and {step.crossings} have one."
        )
        return Refusal(cause, None, spent=True)
    rate = step.harmful / step.crossings
    cause = (
        f"Of the first calls that a careful threshold would withhold, {step.harmful} of {step.crossings} "
        f"would have changed the answer, which does not show a harm of at most {max_harm:.2%}."
    )
    if rate > max_harm / 2:
        return Refusal(f"{cause} The signals do not tell these calls apart well enough.", None, spent=True)
    enough = step.crossings
    while tail(ceil(rate * enough), enough, max_harm) > next_level:
        enough += max(1, enough // 20)
    each = step.crossings / conversations
    return Refusal(cause, ceil((enough - step.crossings) / each), spent=True)


def _beta(a: float, b: float, x: float, y: float) -> float:
    """The regularised incomplete beta function I_x(a, b), where y = 1 - x."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, y, x)
    front = a * log(x) + b * (log1p(-x) if x < y else log(y)) + lgamma(a + b) - lgamma(a) - lgamma(b) - log(a)
    return exp(front) * _continued_fraction(a, b, x)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """DLMF 8.17.22 by Lentz's method. It converges within O(sqrt(max(a, b))) terms."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            return value
    raise ArithmeticError(f"I_{x}({a}, {b}) did not converge")


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
