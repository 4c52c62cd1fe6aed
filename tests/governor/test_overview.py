"""The overview: kept up to date it says what a fresh count says, and its comparison is that of `outcomes`."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.conversations import conversations
from governor.outcomes import Conversation, effect
from governor.overview import OTHERS, REDUCTIONS, Course, Overview, Sums, Tally, step_of
from governor.prices import Prices
from governor.records import CallRecord
from tests.server import logs

PRICES = Prices(prompt=1.0, completion=10.0, calls={"look*": 0.5, "*": 0.25})


def governed(conversation: str, step: int, **fields: object) -> CallRecord:
    """A call that passed, in a governed conversation."""
    return logs.call(conversation, step, margin=0.5, useful=True, **{"arm": "governed", **fields})


def withheld(conversation: str, step: int, **fields: object) -> CallRecord:
    decision = {"index": 0, "action": "answer", "proposed": "answer", "reason": "confident_answer"}
    return governed(conversation, step, decision=decision, probe_after=None, **fields)


def figures(overview: Overview) -> dict[str, object]:
    return {
        "total": overview.total.as_dict(),
        "tools": {tool: tally.as_dict() for tool, tally in overview.tools.items()},
        "effect": overview.effect().as_dict(),
        "times": overview.over_time(),
        "talks": {name: talk.records for name, talk in overview.talks.items()},
    }


def close(one: object, other: object) -> bool:
    """Equal, but for the last digits of what was added in another order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-6, abs=1e-9)
    return one == other


def course(lots: Random) -> Iterable[list[CallRecord]]:
    """What a store holds, look after look: calls come, get their results, and are forgotten."""
    kept: dict[str, CallRecord] = {}
    for _ in range(12):
        for _ in range(lots.randrange(6)):
            name, step = f"talk {lots.randrange(5)}", lots.randrange(3)
            made = (governed if lots.random() < 0.7 else withheld)(
                name,
                step,
                arm=lots.choice(("governed", "holdout", "observed")),
                tool=lots.choice(("lookup", "search")),
                created=float(lots.randrange(500)),
                entropy_before=lots.choice((None, 0.5)),
                entropy_after=lots.choice((None, 0.1, 0.9)),
            )
            kept[made.call_id] = made
        for name in lots.sample(sorted(kept), k=min(len(kept), lots.randrange(3))):
            del kept[name]
        yield list(kept.values())


@given(st.integers(0, 10_000))
def test_kept_up_to_date_it_says_what_a_fresh_count_says(seed: int) -> None:
    """However records come, change and go."""
    live = Overview(PRICES)
    for kept in course(Random(seed)):
        live.update(kept)
        fresh = Overview(PRICES)
        fresh.update(kept)
        assert close(figures(live), figures(fresh))
        assert len(live) == len(kept)
    live.update([])
    assert close(figures(live), figures(Overview()))


def test_only_what_changed_is_looked_at() -> None:
    """A look at ten thousand conversations of which one is new must not count them all again."""
    overview = Overview()
    kept = logs.traffic(20)
    assert overview.update(kept) == len(kept)
    assert overview.update(kept) == 0
    assert overview.update([*kept[1:], governed("new", 0)]) == 2


def test_its_comparison_is_that_of_the_outcomes() -> None:
    """The page and `GET /governor/effect` must not differ."""
    records = [
        *(governed(f"g{n}", step) for n in range(9) for step in range(1 + n % 3)),
        *(withheld(f"g{n}", 3) for n in range(9)),
        *(governed(f"h{n}", step, arm="holdout") for n in range(7) for step in range(1 + n % 4)),
    ]
    scores = {**{f"g{n}": float(n % 2) for n in range(9)}, **{f"h{n}": 1.0 for n in range(5)}, "gone": 0.0}
    overview = Overview()
    overview.update(records)
    overview.score(scores)
    talks = conversations(records).values()
    expected = effect(Conversation.of(talk, scores.get(talk[0].conversation)) for talk in talks)
    assert expected.score is not None and expected.calls is not None
    assert close(overview.effect().as_dict(), expected.as_dict())


def test_what_was_saved_turns_the_difference_round() -> None:
    """Fewer calls a conversation are calls saved, in all governed ones, and the ends of the interval change
    places."""
    overview = Overview(PRICES)
    overview.update(
        [
            *(governed(f"g{n}", step) for n in range(20) for step in range(1 + n % 2)),
            *(governed(f"h{n}", step, arm="holdout") for n in range(20) for step in range(3 + n % 2)),
        ]
    )
    calls = overview.saved()["calls"]
    assert calls["difference"]["value"] == pytest.approx(-2.0)
    assert calls["saved"]["value"] == pytest.approx(40.0)
    assert calls["saved"]["low"] == pytest.approx(-20 * calls["difference"]["high"])
    assert calls["saved"]["low"] < calls["saved"]["value"] < calls["saved"]["high"]


def test_a_turn_with_two_calls_is_counted_once() -> None:
    """Both records carry its tokens, and the agent waits for both results together."""
    spent = {"prompt_tokens": 100, "completion_tokens": 10}
    own = {"prompt_tokens": 50, "completion_tokens": 5}
    both = [
        governed("talk", 0, call_id=id, created=10.0, returned=14.0, turn_usage=spent, usage=own, tool=tool)
        for id, tool in (("a", "lookup"), ("b", "search"))
    ]
    found = Course.of(both, PRICES)
    assert (found.calls, found.own_tokens, found.tokens, found.seconds) == (2.0, 55.0, 165.0, 4.0)
    assert found.money == pytest.approx((150 * 1.0 + 15 * 10.0) / 1e6 + 0.5 + 0.25)


def test_a_withheld_call_costs_its_tokens_and_no_call() -> None:
    """Its tool was not asked."""
    spent = {"prompt_tokens": 100, "completion_tokens": 10}
    found = Course.of([withheld("talk", 0, turn_usage=spent)], PRICES)
    assert (found.calls, found.seconds) == (0.0, 0)
    assert found.money == pytest.approx((100 + 100) / 1e6)


def test_what_nobody_counted_is_not_taken_for_nothing() -> None:
    """A stream without usage would look free, and a result that is not back yet would look quick."""
    found = Course.of([governed("talk", 0)], PRICES)
    assert (found.tokens, found.seconds, found.money) == (None, None, None)
    only_calls = Course.of([governed("talk", 0)], Prices(calls={"lookup": 2.0}))
    assert only_calls.money == 2.0
    assert Course.of([governed("talk", 0)], Prices()).money is None


def test_a_column_for_each_stretch_and_no_call_lost() -> None:
    """The columns add up to all calls, whatever the step."""
    lots = Random(3)
    for span in (1, 50, 5_000, 500_000):
        overview = Overview()
        overview.update([governed(f"t{n}", 0, created=1000.0 + lots.random() * span) for n in range(40)])
        times = overview.over_time(most=10)
        assert sum(times["passed"]) == 40
        assert len(times["times"]) <= 11
        assert all(
            later - earlier == times["step"]
            for earlier, later in zip(times["times"], times["times"][1:], strict=False)
        )


def test_the_last_seconds_are_whole_ones() -> None:
    """The second that is not over yet would always look quiet."""
    overview = Overview()
    overview.update(
        [governed("a", 0, created=98.2), governed("b", 0, created=99.9), governed("c", 0, created=100.0)]
    )
    assert overview.lately(100.5, seconds=3) == [0, 1, 1]


def test_tools_beyond_the_most_used_are_one() -> None:
    """A client may make up names without end."""
    overview = Overview()
    overview.update(
        [governed(f"t{n}", 0, tool=f"tool {n:03}") for n in range(60)] + [governed("x", 0, tool="tool 059")]
    )
    found = overview.by_tool()
    assert len(found) == 51
    assert next(iter(found)) == "tool 059"
    assert found[OTHERS].calls == 10


def test_a_reduction_stands_in_its_column() -> None:
    """The edges are between the columns, and the ends take all beyond."""
    tally = Tally.of(
        governed("t", step, entropy_before=before, entropy_after=after)
        for step, (before, after) in enumerate(((0.5, 0.25), (0.0, 9.0), (9.0, 0.0)))
    )
    assert tally.reductions[0] == tally.reductions[-1] == 1
    (place,) = [place for place, many in enumerate(tally.reductions[1:-1], 1) if many]
    assert REDUCTIONS[place - 1] <= 0.25 < REDUCTIONS[place]


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30), st.floats(-1e4, 1e4))
def test_sums_forget_what_is_taken_back(values: list[float], other: float) -> None:
    """And equal values have no spread, whatever rounding leaves."""
    sums = Sums()
    for value in [other, *values]:
        sums.add(value)
    sums.add(other, -1)
    found = sums.sample()
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-6)
    equal = Sums()
    for _ in values:
        equal.add(other)
    alike = equal.sample()
    assert alike is not None and alike.variance == 0


def test_the_step_is_the_shortest_that_fits() -> None:
    """Beyond the longest there are more columns."""
    assert step_of(0, 0, 10) == 1
    assert step_of(0, 100, 10) == 15
    assert step_of(0, 1e9, 10) == 7 * 24 * 3600
