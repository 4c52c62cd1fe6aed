"""The four quadrants of what a call was worth."""

from __future__ import annotations

import pytest

from governor.labels import Label, label
from governor.probe import ProbeAnswer


def answer(text: str, entropy: float, *, finished: bool = True) -> ProbeAnswer:
    """A forced answer."""
    return ProbeAnswer(text, finished, entropy, entropy, 1.0, -1.0, 5, 100)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (answer("It is Chad.", 1.0), answer("It is Mali.", 0.1), Label.USEFUL),
        (answer("It is Chad.", 0.1), answer("It is Mali.", 1.0), Label.CONFLICT),
        (answer("It is Chad.", 1.0), answer("it is  chad.", 0.1), Label.CONFIRMATION),
        (answer("It is Chad.", 0.1), answer("It is Chad.", 0.1), Label.LOW_VALUE),
        (answer("It is Chad.", 0.1), answer("It is Chad.", 1.0), Label.LOW_VALUE),
        (answer("It is Chad.", 0.010), answer("It is Mali.", 0.011), Label.USEFUL),
    ],
)
def test_the_quadrants(before: ProbeAnswer, after: ProbeAnswer, expected: Label) -> None:
    """A wrong certainty that the result corrects is useful, although no entropy is gained."""
    assert label(before, after) is expected


def test_only_a_changed_answer_speaks_for_the_call() -> None:
    """A conflict too: what was withheld would have mattered."""
    assert [kind for kind in Label if kind.changed] == [Label.USEFUL, Label.CONFLICT]


@pytest.mark.parametrize("missing", [None, answer("It is", 0.1, finished=False)])
def test_half_a_pair_is_no_label(missing: ProbeAnswer | None) -> None:
    """An answer that was cut off compares as another one, and is none."""
    whole = answer("It is Chad.", 0.1)
    assert label(missing, whole) is None
    assert label(whole, missing) is None
