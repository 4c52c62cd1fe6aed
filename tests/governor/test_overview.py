"""The overview: kept up to date it says what a fresh count says."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.overview import OTHERS, REDUCTIONS, Overview, Tally, step_of
from governor.records import CallRecord
from tests.server import logs


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
    live = Overview()
    for kept in course(Random(seed)):
        live.update(kept)
        fresh = Overview()
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


def test_the_step_is_the_shortest_that_fits() -> None:
    """Beyond the longest there are more columns."""
    assert step_of(0, 0, 10) == 1
    assert step_of(0, 100, 10) == 15
    assert step_of(0, 1e9, 10) == 7 * 24 * 3600
