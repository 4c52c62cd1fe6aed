"""What governing did to conversations: the governed ones against the holdout.

The holdout is a share of the conversations, drawn by lottery, that is only observed. Both arms are judged by
the conversations that proposed a call at all: nothing is governed before the first proposal, so this choice
is the same in both, and the difference between them is the effect of governing. An arm is what the lottery
said, also where no call was withheld in the end.

Conversations are compared whole: all turns from the first proposal on, the last one included, which calls
nothing. One that is still under way has taken less than it will, and those of the holdout are under way for
longer; to leave out just those that are under way would leave out the long ones. So the line is drawn by
when a conversation began, which no arm has a say in: compared are those that began so long ago that the
longest one would be over by now.

Nothing here knows why a score is missing: where the arms differ in their share of scored conversations, ask
that first. Each interval holds for one look: who looks every day, and stops on the day that pleases, is less
sure than these say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from typing import Any, Final

from governor.estimates import LEAST, LEVEL, Estimate, mean, mean_difference, share, share_difference
from governor.experiment import Arm
from governor.prices import Prices
from governor.turn_record import TurnRecord

MARGIN = 0.01
"""The loss of score that the sentence speaks of: one point of a hundred."""
ABANDONED_S = 600.0
"""An agent that has not come back with results for so long is not waited for. One that does come back later
is counted whole again."""
MOST_LAG_S = 3600.0
"""The comparison lags behind by no more than this, however long the longest conversation takes."""

PASS_OR_FAIL = "Wilson's score interval; Newcombe's method 10 for the difference"
MEANS = "skewness-corrected t interval; Welch's for the difference"

MEASURES: Final = ("calls", "tokens", "own_tokens", "seconds", "money")
"""What conversations are compared in, beside their score."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation that proposed a call, as a whole.

    `score` is in [0, 1], None where nobody told it. `calls` counts those that reached the agent, `tokens` the
    prompt and completion tokens that upstream counted for the client's requests, `own_tokens` those of the
    governor's own. `seconds` is the time that the user waited: for each message, and for the agent's tools
    between two of them. `money` is the price of all tokens and calls. None where nobody counted.
    """

    arm: str
    score: float | None
    calls: float
    tokens: float | None = None
    own_tokens: float = 0.0
    seconds: float | None = None
    money: float | None = None

    @classmethod
    def of(cls, turns: Sequence[TurnRecord], score: float | None, prices: Prices) -> Conversation:
        """From the turns of one conversation, oldest first. Its arm is that of its first turn: a change of
        mode in the middle must not move it to the side that suits its course.

        Raises ValueError without turns.
        """
        if not turns:
            raise ValueError("a conversation without turns is in no arm")
        calls = [(tool, many) for turn in turns for tool, many in turn.delivered.items()]
        own = [_pair(turn.own_usage) for turn in turns]
        known = all(turn.usage for turn in turns)
        spent = [_pair(turn.usage) for turn in turns]
        prompt, completion = (sum(pair[place] for pair in [*spent, *own]) for place in (0, 1))
        money = prices.of_tokens(prompt, completion) + sum(
            many * prices.of_call(tool) for tool, many in calls
        )
        return cls(
            arm=turns[0].arm,
            score=score,
            calls=float(sum(many for _, many in calls)),
            tokens=float(sum(map(sum, spent))) if known else None,
            own_tokens=float(sum(map(sum, own))),
            seconds=_seconds(turns),
            money=money if prices.of_anything and (known or not prices.of_any_token) else None,
        )

    def measure(self, name: str) -> float | None:
        """Its value in one of `MEASURES`."""
        value: float | None = getattr(self, name)
        return value


def _pair(usage: Mapping[str, int]) -> tuple[int, int]:
    return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


def _seconds(turns: Sequence[TurnRecord]) -> float:
    """The waits for messages, and between a message with calls and the request that follows it."""
    tools = sum(
        max(0.0, after.arrived - before.ended)
        for before, after in zip(turns, turns[1:], strict=False)
        if before.expects_results
    )
    return tools + sum(turn.seconds for turn in turns)


@dataclass(frozen=True, slots=True)
class Compared:
    """The conversations to compare, by name; `under_way` others may still be so, and of `cut` ones the first
    turns are forgotten."""

    conversations: Mapping[str, Sequence[TurnRecord]]
    under_way: int = 0
    cut: int = 0


def comparable(turns: Iterable[TurnRecord], now: float, since: float = -inf, until: float = inf) -> Compared:
    """The conversations that proposed a call, began between `since` and `until`, and can be compared at
    `now`, each with its turns, oldest first; whatever the order of `turns`."""
    found: defaultdict[str, list[TurnRecord]] = defaultdict(list)
    for turn in turns:
        found[turn.conversation].append(turn)
    whole: dict[str, list[TurnRecord]] = {}
    cut = 0
    for name, talk in found.items():
        talk.sort(key=lambda turn: turn.created)
        if talk[0].created > min(turn.begun for turn in talk):
            cut += 1
        elif any(turn.proposed for turn in talk) and since <= talk[0].created <= until:
            whole[name] = talk
    longest = max((_until_first_answer(talk, now) for talk in whole.values()), default=0.0)
    line = now - min(longest, MOST_LAG_S)
    over = {name: talk for name, talk in whole.items() if talk[0].created < line}
    return Compared(over, len(whole) - len(over), cut)


def _until_first_answer(turns: Sequence[TurnRecord], now: float) -> float:
    """How many seconds a conversation took until its first answer, or has taken so far; 0 where the agent is
    not expected to come back for it."""
    answered = next((turn.ended for turn in turns if not turn.expects_results), None)
    if answered is None:
        answered = now if now - turns[-1].ended < ABANDONED_S else turns[0].created
    return answered - turns[0].created


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm in figures: numbers of conversations, and means over them (None without any)."""

    conversations: int
    scored: int
    score: Estimate | None
    calls: Estimate | None = None
    tokens: Estimate | None = None
    own_tokens: Estimate | None = None
    seconds: Estimate | None = None
    money: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """The arms, and governed minus holdout a conversation. A difference is None where an arm has no value.
    `method` says how the intervals of the scores were made; `under_way` and `cut` are those of `Compared`,
    and `scored_without_calls` counts the scored conversations of which no turn is known: they proposed no
    call, or their name is wrong."""

    governed: ArmSummary
    holdout: ArmSummary
    observed: ArmSummary
    score: Estimate | None
    calls: Estimate | None = None
    tokens: Estimate | None = None
    own_tokens: Estimate | None = None
    seconds: Estimate | None = None
    money: Estimate | None = None
    method: str = MEANS
    under_way: int = 0
    cut: int = 0
    scored_without_calls: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sentence."""
        return {**asdict(self), "level": LEVEL, "least": LEAST, "sentence": self.sentence()}

    def sentence(self) -> str:
        """What it means, for a reader who will not look at the figures."""
        return " ".join(part for part in (self._of_scores(), self._of_costs()) if part)

    def more_needed(self) -> int | None:
        """How many more scored conversations, split over the arms as now, would exclude a loss of `MARGIN` if
        there is none; 0 where it is excluded. The width of an interval falls with the root of their number.
        """
        if self.score is None or self.score.low is None or self.score.high is None:
            return None
        if self.score.low > -MARGIN:
            return 0
        now = self.governed.scored + self.holdout.scored
        half = (self.score.high - self.score.low) / 2
        return max(1, ceil(now * ((half / MARGIN) ** 2 - 1)))

    def saved(self) -> dict[str, dict[str, Any]]:
        """By measure, JSON-ready: the means of the arms, `difference` (governed minus holdout, a
        conversation), and `saved` by all governed conversations together."""
        many = self.governed.conversations
        return {
            measure: {
                **{arm: _plain(getattr(getattr(self, arm), measure)) for arm in ARMS},
                "difference": _plain(getattr(self, measure)),
                "saved": _plain(change.times(-many) if (change := getattr(self, measure)) else None),
            }
            for measure in MEASURES
        }

    def _of_scores(self) -> str:
        score = self.score
        if score is None:
            return (
                "There is no comparison of scores yet: it needs scored conversations in both arms, and"
                f" {self.governed.scored:,} governed and {self.holdout.scored:,} of the holdout are scored."
            )
        said = f"Governed conversations scored {_points(score.value)} the holdout"
        if score.low is None or score.high is None:
            return f"{said}; the scores are too few or too alike for an interval."
        interval = f"95% interval {100 * score.low:+.1f} to {100 * score.high:+.1f}"
        return f"{said} ({interval}): {self._verdict(score.low, score.high)}."

    def _verdict(self, low: float, high: float) -> str:
        if high < 0:
            return "harm is shown"
        if low > 0:
            return "governing helped"
        if low > -MARGIN:
            return "no harm is shown, and a loss of one point is excluded"
        more = float(f"{self.more_needed() or 0:.2g}")
        return f"no harm is shown; about {more:,.0f} more would be needed to exclude a loss of one point"

    def _of_costs(self) -> str:
        """Without an interval a difference is the luck of a few conversations, and is not told."""
        if self.calls is None:
            return ""
        if self.calls.low is None and min(self.governed.conversations, self.holdout.conversations) < LEAST:
            return (
                f"What governing saved needs at least {LEAST} conversations in each arm:"
                f" {self.governed.conversations:,} governed and {self.holdout.conversations:,} of the holdout"
                " are over."
            )
        said = [
            text
            for change, form, what in (
                (self.calls, "{:.2f}", "calls"),
                (self.tokens, "{:,.0f}", "tokens"),
                (self.seconds, "{:.2f}", "seconds"),
            )
            if (text := _change(change, form, what))
        ]
        own = self.own_tokens.value if self.own_tokens else 0.0
        beside = f", and {own:,.0f} tokens more for the governor's own requests" if own >= 0.5 else ""
        return f"Beside one held out, a governed conversation took {', '.join(said)}{beside}."


ARMS: Final = tuple(arm.value for arm in Arm)


def effect(conversations: Iterable[Conversation]) -> Effect:
    """The effect of governing. The scores are compared as shares if every one of them is 0 or 1, else as
    means."""
    by_arm: dict[str, list[Conversation]] = {arm: [] for arm in ARMS}
    for conversation in conversations:
        by_arm.setdefault(conversation.arm, []).append(conversation)
    scores = {arm: [each.score for each in found if each.score is not None] for arm, found in by_arm.items()}
    compared = Scores.of(scores)
    values = {
        arm: {name: [v for each in found if (v := each.measure(name)) is not None] for name in MEASURES}
        for arm, found in by_arm.items()
    }
    summaries = {
        arm: ArmSummary(
            conversations=len(by_arm[arm]),
            scored=len(scores[arm]),
            score=compared.estimates[arm],
            **{name: mean(values[arm][name]) for name in MEASURES},
        )
        for arm in ARMS
    }
    differences: dict[str, Any] = {
        name: mean_difference(values[Arm.GOVERNED][name], values[Arm.HOLDOUT][name]) for name in MEASURES
    }
    return Effect(
        governed=summaries[Arm.GOVERNED],
        holdout=summaries[Arm.HOLDOUT],
        observed=summaries[Arm.OBSERVED],
        score=compared.difference,
        method=compared.method,
        **differences,
    )


def effect_of(
    turns: Sequence[TurnRecord],
    scores: Mapping[str, float],
    prices: Prices,
    now: float,
    since: float = -inf,
    until: float = inf,
) -> Effect:
    """The effect of governing on what was recorded of the conversations that began between `since` and
    `until`, as it is known at `now`; `scores` are by conversation."""
    compared = comparable(turns, now, since, until)
    found = effect(
        Conversation.of(talk, scores.get(name), prices) for name, talk in compared.conversations.items()
    )
    return replace(
        found,
        under_way=compared.under_way,
        cut=compared.cut,
        scored_without_calls=len(scores.keys() - {turn.conversation for turn in turns}),
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """The mean score of each arm, and governed minus holdout; None where there are no scores. `method` says
    how the intervals were made."""

    estimates: Mapping[str, Estimate | None]
    difference: Estimate | None
    method: str

    @classmethod
    def of(cls, scores: Mapping[str, Sequence[float]]) -> Scores:
        """From the scores of each arm: as shares if every one of them is 0 or 1, else as means."""
        shares = all(score in (0.0, 1.0) for found in scores.values() for score in found)
        estimate, difference = (share, share_difference) if shares else (_mean_score, _score_difference)
        return cls(
            {arm: estimate(found) for arm, found in scores.items()},
            difference(scores.get(Arm.GOVERNED, ()), scores.get(Arm.HOLDOUT, ())),
            PASS_OR_FAIL if shares else MEANS,
        )


def _mean_score(values: Sequence[float]) -> Estimate | None:
    return _clipped(mean(values), 0.0)


def _score_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    return _clipped(mean_difference(first, second), -1.0)


def _clipped(estimate: Estimate | None, least: float) -> Estimate | None:
    """A score is at most 1, which the t interval does not know."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(estimate.value, max(least, estimate.low), min(1.0, estimate.high))


def _points(difference: float) -> str:
    if round(100 * difference, 1) == 0:
        return "the same as"
    return f"{abs(100 * difference):.1f} points {'lower' if difference < 0 else 'higher'} than"


def _change(change: Estimate | None, form: str, what: str) -> str:
    """ "1.50 calls fewer (95% interval -2.03 to -0.97)"; "" where there is no interval."""
    if change is None:
        return ""
    many = form.format(abs(change.value))
    than = "fewer" if change.value < 0 else "more"
    said = f"{many} {what} {than}" if many.strip("0.") else f"as many {what}"
    if change.low is None or change.high is None:
        return said
    ends = " to ".join(form.replace(":", ":+").format(end) for end in (change.low, change.high))
    return f"{said} (95% interval {ends})"


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
