"""What a history says about the calls that were made."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolCatalog, ToolEffect
from governor.conversation import (
    answered_calls,
    executed_calls,
    last_question,
    pending_calls,
    step,
    withheld_signatures,
)
from governor.notices import NOTICE_CONFIDENT, NOTICE_REPEATED, NOTICES, is_notice, notice_for
from governor.results import Outcome

CATALOG = ToolCatalog(read_only=("lookup", "search"), effectful=("send",))


def asked(*calls: tuple[str, str], arguments: Any = "{}") -> dict[str, Any]:
    """An assistant message with calls, given as (id, name)."""
    tool_calls = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


def told(id_: str, content: Any, **fields: object) -> dict[str, Any]:
    """A tool message."""
    return {"role": "tool", "tool_call_id": id_, "content": content, **fields}


def user(text: str = "Go on.") -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def outcome(content: Any, **fields: object) -> Outcome:
    """The outcome of one call with this result."""
    [executed] = executed_calls([asked(("a", "lookup")), told("a", content, **fields)], CATALOG)
    return executed.outcome


def test_calls_come_in_order_with_their_results() -> None:
    """Results are found by id, whatever order they were sent back in."""
    messages = [user(), asked(("a", "lookup"), ("b", "send")), told("b", "sent"), told("a", "31 C")]
    first, second = executed_calls(messages, CATALOG)
    assert (first.call.name, first.result, first.effect) == ("lookup", "31 C", ToolEffect.READ_ONLY)
    assert (second.call.name, second.result, second.effect) == ("send", "sent", ToolEffect.EFFECTFUL)
    assert (first.call.index, second.call.index) == (0, 1)
    assert not first.failed


def test_a_reused_id_belongs_to_the_newest_call() -> None:
    """Some engines number the calls of each message from 0."""
    messages = [asked(("0", "lookup")), told("0", "one"), asked(("0", "search")), told("0", "two")]
    assert [executed.result for executed in executed_calls(messages, CATALOG)] == ["one", "two"]


def test_the_calls_with_results_come_in_the_order_in_which_they_were_made() -> None:
    """Each under a name of its own, also where ids are used again; results of no call are left out."""
    messages = [
        user(),
        asked(("a", "lookup"), ("b", "send"), ("c", "lookup")),
        told("b", "sent"),
        told("a", "31 C"),
        told("x", "?"),
        asked(("b", "search")),
    ]
    calls = answered_calls(messages)
    assert [(call.key, call.call.name, call.fresh) for call in calls] == [
        ("a", "lookup", False),
        ("b", "send", False),
    ]
    *_, later = answered_calls([*messages, told("b", "found")])
    assert (later.call.id, later.call.name, later.fresh) == ("b", "search", True)
    assert later.outcome() is Outcome.OK
    assert later.key not in {call.key for call in calls}


ids = st.sampled_from(["", "", "lookup:0", "lookup:0", "a", "b"])


@given(
    st.lists(st.lists(ids, min_size=1, max_size=4), max_size=4),
    st.sampled_from(["kept", "missing", "made up"]),
)
def test_every_result_finds_its_call(turns: list[list[str]], told_by: str) -> None:
    """Ids may be missing, empty, equal within a message, or begin anew in each message: the order in which
    the results come tells the rest."""
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        messages.append(asked(*((id, f"tool{number}.{place}") for place, id in enumerate(turn))))
        for place, id in enumerate(turn):
            result = told(id, f"{number}.{place}")
            if not id and told_by == "missing":
                del result["tool_call_id"]
            elif not id and told_by == "made up":
                result["tool_call_id"] = f"new{number}.{place}"
            messages.append(result)
    executed = executed_calls(messages, CATALOG)
    assert [done.call.name for done in executed] == [f"tool{done.result}" for done in executed]
    calls = answered_calls(messages)
    assert [call.call.name for call in calls] == [done.call.name for done in executed]
    assert len({call.key for call in calls}) == len(calls) == sum(map(len, turns))
    assert [call.fresh for call in calls] == [
        call.call.name.startswith(f"tool{len(turns) - 1}.") for call in calls
    ]


def test_an_origin_is_of_the_question_and_the_call() -> None:
    """What clients change of a history does not change it: the system prompt, old messages, pictures, the way
    in which a text or arguments are written."""
    turn = [asked(("a", "lookup"), arguments='{"x": 1, "y": 2}'), told("a", "31 C")]
    (call,) = answered_calls([user("Hello."), user("Norway?"), *turn])
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    parts = {"role": "user", "content": [{"type": "text", "text": "Norway?"}, picture]}
    respelt = [asked(("a", "lookup"), arguments='{"y":2,"x":1}'), told("a", "cleared"), user("And Peru?")]
    (same,) = answered_calls([{"role": "system", "content": "It is 12:00."}, parts, *respelt])
    others = [
        [user("Peru?"), *turn],
        turn,
        [user("Norway?"), asked(("a", "lookup")), told("a", "31 C")],
        [user("Norway?"), asked(("a", "search"), arguments='{"x": 1, "y": 2}'), told("a", "31 C")],
    ]
    assert same.origin == call.origin
    assert call.asked == last_question([user("Norway?")])
    assert call.origin not in {other.origin for messages in others for other in answered_calls(messages)}


def test_a_call_without_a_result_is_pending() -> None:
    """The client left it out, or has not run it yet."""
    [executed] = executed_calls([asked(("a", "lookup"))], CATALOG)
    assert executed.outcome is Outcome.PENDING


def test_a_result_without_its_call_has_an_unknown_effect() -> None:
    """The client cut the history: something was done, and nobody can say what."""
    catalog = ToolCatalog(read_only=("*",))
    [executed] = executed_calls([told("a", "31 C")], catalog)
    assert executed.effect is ToolEffect.UNKNOWN
    [legacy] = executed_calls([{"role": "function", "name": "lookup", "content": "31 C"}], catalog)
    assert (legacy.effect, legacy.call.name) == (ToolEffect.UNKNOWN, "lookup")


def test_the_users_later_messages_are_counted() -> None:
    """A call made before the user spoke again is told from one made since."""
    messages = [
        user(),
        asked(("a", "lookup")),
        told("a", "x"),
        user(),
        asked(("b", "lookup")),
        told("b", "x"),
    ]
    assert [executed.user_messages_after for executed in executed_calls(messages, CATALOG)] == [1, 0]


def test_a_call_answered_by_a_notice_may_be_asked_again() -> None:
    """Its signature is known."""
    messages = [asked(("a", "lookup"), ("b", "search")), told("a", NOTICE_REPEATED), told("b", "found")]
    assert withheld_signatures(messages) == {ToolCall("a", 0, "lookup", "{}").signature}


def test_a_result_that_reads_like_a_notice_is_a_result() -> None:
    """The client never sees a notice, so that a tool wrote this one: an effect would be forgotten with it."""
    messages = [asked(("a", "lookup")), told("a", NOTICE_REPEATED)]
    assert [executed.call.name for executed in executed_calls(messages, CATALOG)] == ["lookup"]


def test_a_notice_to_no_call_withholds_nothing() -> None:
    """The history may be cut anywhere."""
    assert withheld_signatures([user(), told("a", NOTICE_CONFIDENT)]) == frozenset()


def test_every_notice_is_known_again_with_and_without_whitespace() -> None:
    """A client may strip or pad what it sends back; a result that quotes a notice is a result."""
    for notice in NOTICES:
        assert is_notice(f"{notice}\n")
        assert not is_notice(f"The page says: {notice}")


def test_a_notice_is_true_for_its_reason() -> None:
    """Only a repeated call has its result above."""
    from governor.decision import Reason

    assert notice_for(Reason.CYCLE) == notice_for(Reason.REPEATED_CALL) == NOTICE_REPEATED
    assert notice_for(Reason.CONFIDENT_ANSWER) == NOTICE_CONFIDENT
    assert len({notice_for(reason) for reason in Reason}) == len(NOTICES)


def test_siblings_are_pending() -> None:
    """The other calls of the same message have an effect already, but no result."""
    [sibling] = pending_calls([ToolCall("a", 1, "send", "{}")], CATALOG)
    assert (sibling.effect, sibling.outcome) == (ToolEffect.EFFECTFUL, Outcome.PENDING)


def test_steps_count_messages_with_calls() -> None:
    """Parallel calls are one step, an answer is none."""
    answer = {"role": "assistant", "content": "Hello", "tool_calls": []}
    assert step([user(), answer]) == 0
    assert (
        step([user(), asked(("a", "lookup"), ("b", "lookup")), told("a", "x"), asked(("c", "lookup"))]) == 2
    )


def test_content_parts_are_joined() -> None:
    """Text parts are text; any other part still tells one result from another."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/1.png"}}
    messages = [asked(("a", "lookup")), told("a", [{"type": "text", "text": "one"}, "two", image])]
    [executed] = executed_calls(messages, CATALOG)
    assert executed.result == f'one\n"two"\n{json.dumps(image, sort_keys=True)}'


def test_arguments_may_come_as_an_object() -> None:
    """Some clients send them parsed; the signature is the same."""
    [executed] = executed_calls([asked(("a", "lookup"), arguments={"b": 1, "a": 2})], CATALOG)
    assert str(executed.call.signature) == 'lookup({"a":2,"b":1})'


@pytest.mark.parametrize("content", ["", " \n", "[]", "{}", "null", None, []])
def test_nothing_is_empty(content: Any) -> None:
    """The tool ran and found nothing."""
    assert outcome(content) is Outcome.EMPTY


@pytest.mark.parametrize(
    "content",
    [
        "31 C and sunny",
        "The failure of the bridge is described in 40 pages.",
        "Margin of the error: 3%",
        "512",
        "No errors found",
        "404 metres above the sea",
        '{"error": null, "value": 3}',
        '{"error": "", "status": "ok"}',
        '{"status": 200}',
        '{"error": "none", oops',
        '{"error":' * 1_500,
        '{"temperature": 31}',
        '[{"error": "in a list of rows"}]',
        '{"error": "' + "x" * 20_000 + '"}',
    ],
)
def test_a_result_is_a_result(content: str) -> None:
    """Text about errors, numbers that look like a status, and what does not parse are no failures."""
    assert outcome(content) is Outcome.OK


@pytest.mark.parametrize(
    "content",
    [
        "Error: no such city",
        "ValueError: invalid literal for int()",
        "[ERROR] city is required",
        '"Error: as a JSON string"',
        "Tool error: city is required",
        "Error executing tool lookup: bad field",
        "Traceback (most recent call last):\n  ...",
        "Failed to parse the arguments",
        "Permission denied",
        "HTTP 404",
        '{"error": {"message": "no such field"}}',
        '{"isError": true, "content": []}',
        '{"status": "error"}',
        '{"status_code": 404, "detail": "no"}',
    ],
)
def test_a_failure_says_so_at_its_beginning(content: str) -> None:
    """By its first words or by its top-level JSON fields."""
    assert outcome(content) is Outcome.FAILED


@pytest.mark.parametrize(
    "content",
    [
        "Error: request timed out",
        "requests.exceptions.ConnectTimeout: Timeout after 30 s",
        "Timeout",
        "HTTP 503",
        "Service unavailable",
        "Error: 429 Too Many Requests",
        '{"error": "Internal Server Error"}',
        '{"status": 502}',
        "ConnectionError: connection reset by peer",
    ],
)
def test_a_failure_that_may_pass_is_transient(content: str) -> None:
    """Timeouts, 5xx, 429 and lost connections are worth another try."""
    assert outcome(content) is Outcome.TRANSIENT


@pytest.mark.parametrize("flag", [{"is_error": True}, {"isError": True}, {"status": "error"}])
def test_a_flagged_message_is_a_failure(flag: dict[str, Any]) -> None:
    """Whatever its text."""
    assert outcome("31 C", **flag) is Outcome.FAILED
    assert executed_calls([asked(("a", "lookup")), told("a", "31 C", **flag)], CATALOG)[0].failed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
messages_of_any_shape = st.lists(
    json_values
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "function", "system"])},
        optional={"content": json_values, "tool_calls": json_values, "tool_call_id": json_values},
    )
    | st.builds(lambda entry: {"role": "assistant", "tool_calls": [entry]}, json_values)
    | st.builds(lambda f: {"role": "assistant", "tool_calls": [{"function": f}]}, json_values),
    max_size=6,
)


@given(messages_of_any_shape)
def test_no_history_is_too_odd_to_read(messages: list[Any]) -> None:
    """Upstream judges the request; reading it never fails."""
    for executed in executed_calls(messages, CATALOG):
        assert executed.call.signature.name == executed.call.name
    assert step(messages) <= len(messages)
    assert withheld_signatures(messages) == frozenset()
    assert all(call.origin for call in answered_calls(messages))
