"""When a gate's certificate no longer holds: the traffic is not the one that it was found on.

Three signs are looked for in what happened since the gate was made. A new model, or a new description of a
tool, is no matter of this module: the gate does not know such calls, and never withholds them.

**Harm seen.** First crossings that were let through, in the holdout and by exploration, have labels. Against
"their rate of harm m is at most `max_harm`" we bet: a stake of 1 is split over starts j = 1, 2, ... in the
shares 1 / (j (j + 1)) and over rates q > m, and each part grows by q / m with a harmful crossing and by (1 -
q) / (1 - m) with a harmless one. While the claim is true no part grows on average, so that the wealth ever
reaches 1 / ALPHA with a probability of at most ALPHA (J. Ville, 1939; see A. Ramdas et al., "Game-theoretic
statistics and safe anytime-valid inference", arXiv 2210.01948). It may therefore be looked at as often as one
likes. The many starts are there for a gate that goes bad after a long good time: a late start has lost
nothing on the good time.

**Calibration.** P(useful) against the labels, far from what it was.

**Shift.** The population stability index of a signal, sum (p - q) ln(p / q) over its former deciles, above
0.25, the usual mark for a distribution that is another one. Signals that take few values have no ten deciles
and are left out. These two compare calls up to each conversation's first crossing, where governed and
observed conversations went the same way; their marks are several standard errors away from chance, so that
repeated looks do little.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import log
from typing import Final

from governor.certificate import Certificate
from governor.conversations import begun_since, conversations, observed, of_model
from governor.crossings import ScoredCall, reached
from governor.gate import NEVER, Gate
from governor.records import CallRecord

ALPHA: Final = 0.001
"""The probability that a gate whose harm is within bounds ever lapses for harm."""

MULTIPLES: Final = (1.5, 2.0, 4.0, 8.0, 16.0)
"""The rates of harm that are bet on, as multiples of the allowed one."""

RECENT: Final = 200
"""Calls needed to speak of calibration and shift."""

WINDOW: Final = 500
"""The latest conversations whose calls are compared."""

BINS: Final = 5
"""Of equal size, for the calibration error."""

MISCALIBRATED: Final = 0.15
"""How far the calibration error may rise. With RECENT calls its own noise is about 0.05."""

SHIFTED: Final = 0.25
"""Population stability index."""


def lapse(gate: Gate, recent: Sequence[CallRecord]) -> str | None:
    """Why the certificate of `gate` no longer holds, in plain words; None if it does, or there is none.

    `recent` are all records that are kept; conversations that began before the gate was made are left out.
    """
    if gate.certificate is None:
        return None
    known = of_model(conversations(recent).values(), gate.model)
    traffic = sorted(begun_since(known, gate.created), key=lambda calls: calls[0].created)
    let_through = (calls for calls in traffic if observed(calls) or any(call.explored for call in calls))
    latest = [scored for calls in traffic[-WINDOW:] for scored in reached(gate, calls)]
    return (
        _harm(gate.certificate, [reached(gate, calls)[-1] for calls in let_through])
        or _miscalibration(gate, latest)
        or _shift(gate, latest)
    )


def wealth(harms: Iterable[bool], max_harm: float) -> float:
    """What a stake of 1 has become after these labels of first crossings, in their order."""
    rates = [rate for multiple in MULTIPLES if (rate := multiple * max_harm) < 1] or [(1 + max_harm) / 2]
    running = [0.0] * len(rates)
    seen = 0
    for harm in harms:
        seen += 1
        start = 1 / (seen * (seen + 1) * len(rates))
        for place, rate in enumerate(rates):
            growth = rate / max_harm if harm else (1 - rate) / (1 - max_harm)
            running[place] = min((running[place] + start) * growth, 1e100)
    return sum(running) + 1 / (seen + 1)


def calibration_error(reached: Iterable[ScoredCall]) -> float:
    """The mean difference between P(useful) and the share of useful calls, over bins of equal size, in [0,
    1]; 0 without any labelled call that was judged by P(useful)."""
    judged = sorted((s.score, s.harmful) for s in reached if _judged(s) and s.harmful is not None)
    error = 0.0
    for place in range(BINS):
        part = judged[place * len(judged) // BINS : (place + 1) * len(judged) // BINS]
        error += abs(sum(score for score, _ in part) - sum(bool(harmful) for _, harmful in part))
    return error / max(len(judged), 1)


def stability_index(deciles: Sequence[float], values: Sequence[float]) -> float:
    """The population stability index of `values` against a distribution with these deciles."""
    counts = [0] * (len(deciles) + 1)
    for value in values:
        counts[bisect_right(deciles, value)] += 1
    # Half a value more in each part keeps an empty one finite.
    whole = len(values) + 0.5 * len(counts)
    shares = [(count + 0.5) / whole for count in counts]
    expected = 1 / len(counts)
    return sum((share - expected) * log(share / expected) for share in shares)


def _judged(scored: ScoredCall) -> bool:
    return scored.score != NEVER


def _harm(certificate: Certificate, last: Iterable[ScoredCall]) -> str | None:
    """By the last call looked at of each conversation that may have crossed and gone on."""
    labels = (crossing.harmful for crossing in last if crossing.score <= certificate.threshold)
    harms = [harmful for harmful in labels if harmful is not None]
    max_harm = certificate.max_harm
    if wealth(harms, max_harm) < 1 / ALPHA:
        return None
    return (
        f"Of {len(harms)} first calls that it would have withheld and that were let through, {sum(harms)} "
        f"changed the answer: more than the allowed {max_harm:.2%}, and more than chance explains."
    )


def _miscalibration(gate: Gate, reached: Sequence[ScoredCall]) -> str | None:
    labelled = [s for s in reached if _judged(s) and s.harmful is not None]
    if len(labelled) < RECENT:
        return None
    error, usual = calibration_error(labelled), gate.reference.calibration_error
    if error <= usual + MISCALIBRATED:
        return None
    return (
        f"P(useful) was off by {error:.2f} on average over the last {len(labelled)} labelled calls, against "
        f"{usual:.2f} when the gate was made."
    )


def _shift(gate: Gate, reached: Sequence[ScoredCall]) -> str | None:
    judged = [scored.record.signals for scored in reached if _judged(scored)]
    for name, deciles in gate.reference.deciles.items():
        values = [value for value in (signals.get(name) for signals in judged) if value is not None]
        if len(values) >= RECENT and (index := stability_index(deciles, values)) > SHIFTED:
            return (
                f"The signal {name} is distributed in another way than when the gate was made (population "
                f"stability index {index:.2f}, usual is less than {SHIFTED:.2f})."
            )
    return None
