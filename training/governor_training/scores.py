"""How well a score tells right from wrong: area under the ROC curve, and expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence

Scored = tuple[float, bool]
"""A score and whether the thing scored was right."""


def auroc(scored: Sequence[Scored]) -> float | None:
    """Probability that a right one scores above a wrong one, ties counting half; None where one kind is
    missing.

    >>> auroc([(0.9, True), (0.8, True), (0.8, False), (0.1, False)])
    0.875
    """
    right = [score for score, ok in scored if ok]
    wrong = [score for score, ok in scored if not ok]
    if not right or not wrong:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def calibration_error(scored: Sequence[Scored], bins: int = 10) -> float:
    """Mean |confidence - accuracy| over bins of equal width, weighted by their size (Guo et al., arXiv
    1706.04599).

    >>> calibration_error([(0.95, True), (0.95, True), (0.05, False), (0.05, True)])
    0.25
    """
    error = 0.0
    for index in range(bins):
        members = [(score, ok) for score, ok in scored if min(bins - 1, int(score * bins)) == index]
        gap = sum(score for score, _ in members) - sum(ok for _, ok in members)
        error += abs(gap)
    return error / len(scored)
