from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.records import CallRecord
from governor_server.feedback import MAX_BODY_BYTES, MAX_ITEMS, Feedback, FeedbackStore
from governor_server.store import RecordStore
from tests.server import logs
from tests.server.scripted_upstream import Proxied, proxied, scripted


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def told(conversation: str, score: float, source: str = "", at: float = 1_000_000.0) -> Feedback:
    return Feedback(conversation, source, score, at)


def called(call_id: str, conversation: str, arm: str, created: float) -> CallRecord:
    return CallRecord(call_id, conversation, "search", "search({})", 0, {"action": "pass"}, created, arm=arm)


async def post(proxy: Proxied, body: Any) -> tuple[int, Any]:
    """The answer to feedback; bytes go as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with proxy.client.post("/governor/feedback", data=data) as response:
        return response.status, json.loads(await response.read())


async def get(proxy: Proxied, path: str) -> Any:
    async with proxy.client.get(path) as response:
        assert response.status == 200
        return json.loads(await response.read())


# The store


def test_the_last_word_of_a_source_counts_once() -> None:
    """An agent that reports a second time corrects itself; it does not vote twice."""
    store = FeedbackStore(clock=Clock())
    store.put([told("x", 0.0), told("x", 0.0, "judge")])
    store.put([told("x", 1.0)])
    assert store.score("x") == 0.5
    assert store.scores() == {"x": 0.5}
    assert len(store) == 2
    assert store.score("unknown") is None
    assert repr(store) == "<FeedbackStore [2 items, 1 conversations]>"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.floats(0, 1)), max_size=40),
    st.integers(1, 12),
)
def test_the_store_is_bounded_and_says_what_the_last_words_say(
    puts: list[tuple[str, str, float]], bound: int
) -> None:
    """The oldest words go first, and a repeated one is new."""
    store = FeedbackStore(max_items=bound, clock=Clock())
    expected: dict[tuple[str, str], float] = {}
    for conversation, source, score in puts:
        store.put([told(conversation, score, source)])
        expected.pop((conversation, source), None)
        expected[conversation, source] = score
        expected = dict(list(expected.items())[-bound:])
    assert len(store) == len(expected) <= bound
    scores: dict[str, list[float]] = {}
    for (conversation, _), score in expected.items():
        scores.setdefault(conversation, []).append(score)
    assert store.scores() == {
        conversation: pytest.approx(sum(found) / len(found)) for conversation, found in scores.items()
    }


def test_feedback_expires() -> None:
    """As the records do that it belongs to; a word that was renewed stays."""
    clock = Clock()
    store = FeedbackStore(ttl_s=10, clock=clock)
    store.put([told("x", 1.0, at=clock.now), told("y", 1.0, at=clock.now)])
    clock.now += 6
    store.put([told("x", 0.5, at=clock.now)])
    clock.now += 5
    assert store.score("y") is None
    assert store.scores() == {"x": 0.5}
    clock.now += 6
    assert store.score("x") is None
    assert len(store) == 0


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """In one file with the records, which forget nothing either."""
    clock, path = Clock(), str(tmp_path / "records.db")
    records, store = RecordStore(path, clock=clock), FeedbackStore(path, clock=clock)
    for number in range(300):
        records.put(called(str(number), str(number), "governed", clock.now))
        store.put([told(str(number), number / 300), told(str(number), 0.0)])
    store.put([told("7", 1.0), told("7", 0.5, "judge")])
    records.close()
    store.close()
    records, again = RecordStore(path, clock=clock), FeedbackStore(path, clock=clock)
    assert (len(records), len(again)) == (300, 301)
    assert again.score("7") == 0.75
    assert again.scores() == store.scores()
    records.close()
    again.close()


def test_the_file_is_bounded(tmp_path: Path) -> None:
    """A proxy that runs for a year does not fill the disk."""
    clock, path = Clock(), tmp_path / "records.db"
    store = FeedbackStore(str(path), max_items=3, clock=clock)
    store.put([told(str(number), 1.0, at=clock.now + number) for number in range(20)])
    store.close()
    with sqlite3.connect(path) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM outcomes").fetchone()
    connection.close()
    assert rows == 3
    again = FeedbackStore(str(path), max_items=3, clock=clock)
    assert set(again.scores()) == {"17", "18", "19"}
    again.close()


def test_a_broken_disk_costs_only_the_persistence(tmp_path: Path) -> None:
    """It is counted, and the score is there."""
    errors: list[None] = []
    store = FeedbackStore(str(tmp_path), clock=Clock(), on_error=lambda: errors.append(None))
    store.put([told("x", 1.0)])
    store.close()
    assert store.score("x") == 1
    assert len(errors) == 2


# The route


async def test_feedback_is_answered_with_what_is_stored() -> None:
    """Passed is a score of 1; the comment may hold text, and is forgotten."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        assert await post(proxy, {"conversation": "x", "score": 0.25}) == (
            200,
            {"conversation": "x", "source": "", "score": 0.25},
        )
        passed = {"conversation": "x", "passed": True, "source": "tests", "comment": "well done"}
        assert await post(proxy, passed) == (200, {"conversation": "x", "source": "tests", "score": 1.0})
        assert await post(proxy, {"conversation": "y", "passed": False}) == (
            200,
            {"conversation": "y", "source": "", "score": 0.0},
        )
        assert proxy.app.feedback.scores() == {"x": 0.625, "y": 0.0}
    assert not upstream.received


async def test_the_same_feedback_twice_is_one() -> None:
    async with scripted() as upstream, proxied(upstream) as proxy:
        first = await post(proxy, {"conversation": "x", "score": 1})
        assert await post(proxy, {"conversation": "x", "score": 1}) == first
        assert len(proxy.app.feedback) == 1


async def test_a_list_is_taken_whole_or_not_at_all() -> None:
    """A client that corrects one item sends all of them again, and none counts twice."""
    items: list[Any] = [{"conversation": str(number), "score": 1} for number in range(MAX_ITEMS)]
    async with scripted() as upstream, proxied(upstream) as proxy:
        status, body = await post(proxy, [*items[:-1], {"conversation": "bad", "score": 2}])
        assert (status, len(proxy.app.feedback)) == (400, 0)
        status, body = await post(proxy, items)
        assert (status, len(body), len(proxy.app.feedback)) == (200, MAX_ITEMS, MAX_ITEMS)
        assert body[3] == {"conversation": "3", "source": "", "score": 1.0}
        assert (await post(proxy, [*items, items[0]]))[0] == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"conversation": "x", "score": NaN}', "not JSON"),
        (b'{"conversation": "x", "score": 1e999}', ""),
        (b'"x"', "JSON object"),
        ([["x"]], "JSON object"),
        ({"score": 1}, "'conversation' must be"),
        ({"conversation": "", "score": 1}, "'conversation' must be"),
        ({"conversation": 7, "score": 1}, "'conversation' must be"),
        ({"conversation": "x" * 257, "score": 1}, "1 to 256 characters"),
        ({"conversation": "x", "score": 1, "source": "x" * 257}, "'source' must be"),
        ({"conversation": "x", "score": 1, "source": None}, "'source' must be"),
        ({"conversation": "x", "score": 1, "rating\n": 5}, "Unknown field 'rating\\n'"),
        ({"conversation": "x"}, "either 'score' or 'passed'"),
        ({"conversation": "x", "score": 1, "passed": True}, "either 'score' or 'passed'"),
        ({"conversation": "x", "passed": 1}, "true or false"),
        ({"conversation": "x", "score": True}, "from 0 to 1"),
        ({"conversation": "x", "score": "1"}, "from 0 to 1"),
        ({"conversation": "x", "score": None}, "from 0 to 1"),
        ({"conversation": "x", "score": 1.01}, "from 0 to 1"),
        ({"conversation": "x", "score": -0.01}, "from 0 to 1"),
        ({"conversation": "x", "score": 1, "comment": "x" * MAX_BODY_BYTES}, "larger than 65536 bytes"),
    ],
)
async def test_a_bad_body_is_refused_in_one_line(body: Any, says: str) -> None:
    """In the shape that OpenAI's clients read, and nothing is stored."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        status, answer = await post(proxy, body)
        assert status == 400
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"
        assert says in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
        assert len(proxy.app.feedback) == 0


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    """The limit is the one that the error names."""
    bare = len(json.dumps({"conversation": "x", "score": 1, "comment": ""}))
    body = {"conversation": "x", "score": 1, "comment": "x" * (MAX_BODY_BYTES - bare)}
    async with scripted() as upstream, proxied(upstream) as proxy:
        assert (await post(proxy, body))[0] == 200


async def test_a_client_that_leaves_within_its_body_is_no_error() -> None:
    """It is nothing that the operator must read a stack trace about, and half of the feedback is none."""
    messages = iter(
        [
            {"type": "http.request", "body": b'{"conv', "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/governor/feedback",
        "headers": [],
        "query_string": b"",
    }
    async with scripted() as upstream, proxied(upstream) as proxy:
        await proxy.app(scope, receive, send)
        assert len(proxy.app.feedback) == 0


# The join


async def test_decisions_carry_the_score_of_their_conversation() -> None:
    """Whichever came first."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        now = proxy.app.store._clock()
        await post(proxy, {"conversation": "early", "score": 0.25})
        for number, name in enumerate(("early", "late", "never")):
            proxy.app.store.put(called(name, name, "governed", now + number))
        await post(proxy, {"conversation": "late", "passed": True})
        rows = (await get(proxy, "/governor/decisions"))["decisions"]
    assert [(row["call_id"], row["score"]) for row in rows] == [
        ("early", 0.25),
        ("late", 1.0),
        ("never", None),
    ]


async def test_the_effect_compares_the_arms_on_what_was_told() -> None:
    """Conversations, not calls, are what is counted; feedback without calls is in no arm, and said."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        now = proxy.app.proxy.clock()
        for number in range(24):
            arm = "holdout" if number < 12 else "governed"
            began = now - 100.0
            calls = [called(f"{number}.{n}", str(number), arm, began + n) for n in range(2 + number % 2)]
            for turn in logs.turns(calls if arm == "holdout" else calls[:1]):
                proxy.app.turns.put(turn)
        items = [{"conversation": str(number), "passed": number % 2 == 0} for number in range(22)]
        await post(proxy, [*items, {"conversation": "elsewhere", "score": 0.5}])
        found = await get(proxy, "/governor/effect")
    assert (found["holdout"]["conversations"], found["holdout"]["scored"]) == (12, 12)
    assert (found["governed"]["conversations"], found["governed"]["scored"]) == (12, 10)
    assert found["calls"]["value"] == -1.5
    assert found["calls"]["low"] < -1.5 < found["calls"]["high"]
    assert found["score"]["value"] == 0
    assert found["score"]["low"] < 0 < found["score"]["high"]
    assert found["scored_without_calls"] == 1
    assert "no harm is shown" in found["sentence"]
    assert "a governed conversation took 1.50 calls fewer (95% interval" in found["sentence"]


async def test_without_any_feedback_the_effect_says_what_it_needs() -> None:
    """The first thing that an operator sees of it."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        found = await get(proxy, "/governor/effect")
    assert (found["score"], found["governed"]["conversations"]) == (None, 0)
    assert found["sentence"].startswith("There is no comparison of scores yet")
