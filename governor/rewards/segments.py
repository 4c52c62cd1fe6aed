"""Which tokens of a turn its entropy is taken over, and by which model.

The choice decides everything: over the last eight tokens before a call, which are JSON, an entropy reduction
can say the opposite of what it says over the reasoning. `governor train diagnose` compares the choices on
one's own logs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, fsum

from governor.rewards.judgement import CallTurn
from governor.spans import FREE_KINDS, Span, SpanKind, segment

QUOTE = 8
"""Tokens in a row that also stand in a tool's result: a quotation, while an answer that is found there is
shorter."""


class Statistic(StrEnum):
    """How the entropies of a segment become one."""

    MEAN = "mean"
    """As in the paper, and in the governor's records."""
    MAX = "max"
    TOP_FIFTH = "top_fifth"
    """The mean of the largest fifth: where the model decided something (arXiv 2506.01939)."""


class MeasuredBy(StrEnum):
    """Whose entropy it is. A trainer's matter: the core is given the numbers."""

    REFERENCE = "reference"
    """The frozen model that training began with: a policy cannot become uncertain on purpose."""
    POLICY = "policy"
    """The model that is trained, as in the paper."""


@dataclass(frozen=True, slots=True)
class SpanChoice:
    """What a segment is made of.

    Parameters
    ----------
    kinds
        Of spans. Calls and template are left out by default: grammar forces most of their tokens.
    quote
        Leave out runs of at least so many tokens that stand word for word in a tool's result: copying costs
        no thought, and would look like certainty. 0: leave out nothing.
    skip
        So many tokens at the beginning of the segment that do not count; entropy rises right behind a result
        whatever it says (ARPO, arXiv 2507.19849).
    last
        Only so many tokens at its end; 0: all.
    least
        A segment with fewer tokens left than this has no entropy.
    statistic
        Of the tokens' entropies.
    measured_by
        Which model's.
    """

    kinds: frozenset[SpanKind] = FREE_KINDS
    quote: int = QUOTE
    skip: int = 0
    last: int = 0
    least: int = 1
    statistic: Statistic = Statistic.MEAN
    measured_by: MeasuredBy = MeasuredBy.REFERENCE

    def __post_init__(self) -> None:
        if min(self.quote, self.skip, self.last) < 0 or self.least < 1:
            raise ValueError(f"quote, skip and last are not negative, and least is 1 or more: {self}")


def segment_entropy(
    entropies: Sequence[float],
    texts: Sequence[str],
    spans: Sequence[Span],
    choice: SpanChoice,
    results: Collection[str] = (),
) -> float | None:
    """The entropy of one turn in nats, None where too few tokens are left. `entropies[i]` and `texts[i]` are
    of token i of the turn, `spans` cover it, and `results` are the texts of the results that were in the
    context."""
    quoted = copied(texts, results, choice.quote)
    places = segment(range(len(texts)), spans, choice.kinds)[choice.skip :]
    values = [entropies[place] for place in places[-choice.last :] if not quoted[place]]
    if len(values) < choice.least:
        return None
    if choice.statistic is Statistic.MAX:
        return max(values)
    if choice.statistic is Statistic.TOP_FIFTH:
        values = sorted(values, reverse=True)[: ceil(len(values) / 5)]
    return fsum(values) / len(values)


def copied(texts: Sequence[str], results: Collection[str], least: int) -> list[bool]:
    """For each token whether it is in a run of `least` tokens or more that stands in one of `results`. By
    text, not by id: a tokenizer cuts the same words in another way behind another character.

    >>> copied(["It", " says", " more", " than", " that"], ["no more than that"], 3)
    [False, False, True, True, True]
    """
    found = [False] * len(texts)
    if least <= 0 or not results:
        return found
    for start in range(len(texts) - least + 1):
        run = "".join(texts[start : start + least]).strip()
        if run and any(run in result for result in results):
            found[start : start + least] = [True] * least
    return found


def call_turns(entropies: Sequence[float | None], calls: Sequence[int]) -> list[CallTurn]:
    """The calls of a conversation from its turns: `entropies[t]` is the segment's of turn t, `calls[t]` the
    number of its calls. Behind the last turn nothing is known.

    >>> call_turns([1.0, 0.25], [1, 0])
    [CallTurn(before=1.0, after=0.25, gain=None, changed=None)]
    """
    after = [*entropies[1:], None]
    return [
        CallTurn(before, behind)
        for before, behind, made in zip(entropies, after, calls, strict=True)
        for _ in range(made)
    ]
