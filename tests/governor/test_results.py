"""How the results of tools are read: by a table, on a corpus, and whatever comes."""

from __future__ import annotations

import json
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.failures.__main__ import failures, outcome
from benchmarks.failures.corpus import COLLECTIONS, PARTS, Entry, held_out_families, read
from governor import result_table as table
from governor.results import Outcome, comparable, compiled, is_cleared, outcome_of

KINDS = frozenset(outcome.value for outcome in Outcome) - {Outcome.PENDING.value}


@pytest.mark.parametrize("part", COLLECTIONS[0])
def test_failures_of_the_corpus_are_told_from_results(part: str) -> None:
    """A change of the table that loses some, or takes results for some, is seen."""
    score = failures(read(part))
    assert score.real >= 150
    assert score.recall >= 0.95
    assert score.precision >= 0.98


@pytest.mark.parametrize(
    "text",
    [
        "ECONNRESET",
        "connect ECONNREFUSED 127.0.0.1:80",
        "getaddrinfo ENOTFOUND example.org",
        '{"code": "ETIMEDOUT"}',
        "dial tcp: lookup db: no such host",
        'Get "https://example.org/": context deadline exceeded',
        "SQLSTATE[42S02]: Base table or view not found",
        "Status: 503",
        "The operation was aborted",
        "OOMKilled",
        "Tool execution failed: no key",
        '{"success": "false", "reason": "no key"}',
    ],
)
def test_an_error_in_the_words_of_a_library_is_a_failure(text: str) -> None:
    """Or the retry would be a repeat."""
    assert outcome_of({"content": text}, text) in (Outcome.FAILED, Outcome.TRANSIENT)


@pytest.mark.parametrize(
    "text",
    [
        "ECONNREFUSED\n    A connect() on a stream socket found no one listening.",
        "ECONNRESET means that the peer closed the connection.",
        "The operation was aborted in 1943, before the river was crossed.",
        '{"code": "NO", "name": "Norway"}',
        '{"success": "true", "name": "Norway"}',
        "Status: 404 rooms are free",
    ],
)
def test_a_text_about_errors_is_a_result(text: str) -> None:
    """Only an error's own wording tells of one."""
    assert outcome_of({"content": text}, text) is Outcome.OK


@pytest.mark.parametrize("kind", ["empty", "unfinished"])
def test_what_found_nothing_and_what_goes_on_is_known(kind: str) -> None:
    """Neither makes the same call a repeat."""
    entries = [entry for part in PARTS for entry in read(part) if entry.outcome == kind]
    assert sum(outcome(entry) == kind for entry in entries) >= 0.95 * len(entries) > 0


@pytest.mark.parametrize("parts", COLLECTIONS)
def test_the_split_of_the_corpus_follows_its_rule(parts: tuple[str, str]) -> None:
    """Nobody moved an entry to where it flatters the table."""
    development, held_out = map(read, parts)
    families = held_out_families([*development, *held_out])
    assert {entry.family for entry in held_out} == families
    assert not families & {entry.family for entry in development}


def test_each_kind_of_outcome_is_in_the_corpus_and_each_result_once() -> None:
    """Else the figures would count one several times."""
    everything: list[Entry] = [entry for part in PARTS for entry in read(part)]
    assert {entry.outcome for entry in everything} == KINDS
    assert len({json.dumps(entry.message) for entry in everything}) == len(everything)


def patterns() -> Iterator[str]:
    """Every regular expression of the table."""
    for rows in (table.FAILURES, table.EMPTY, table.UNFINISHED):
        yield from (row.pattern for row in rows)
    yield from (*table.TRANSIENT, *table.PERMANENT, *table.QUOTES, *table.CLEARED)
    yield from (*table.EXIT_LINES, *table.QUIET, *table.NOISE)


def unbounded_within(tree: Any, inside: bool = False) -> bool:
    """Whether something repeats without bound within what repeats without bound."""
    for operation, argument in tree:
        repeats = operation in (sre.MAX_REPEAT, sre.MIN_REPEAT) and argument[1] is sre.MAXREPEAT
        if repeats and inside:
            return True
        if any(unbounded_within(below, inside or repeats) for below in subpatterns(argument)):
            return True
    return False


def subpatterns(argument: Any) -> Iterable[Any]:
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from subpatterns(each)


@pytest.mark.parametrize("pattern", list(patterns()))
def test_no_expression_of_the_table_repeats_a_repetition(pattern: str) -> None:
    """Such a one can take time that doubles with each further character."""
    assert not unbounded_within(parser.parse(pattern, re.IGNORECASE | re.VERBOSE))


def test_the_check_above_finds_a_repetition_of_a_repetition() -> None:
    assert unbounded_within(parser.parse(r"(?:\w+\ ?)*:", re.VERBOSE))


def tool(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "a", "content": content, **fields}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: json.dumps(text),
        lambda text: json.dumps([{"type": "text", "text": text}]),
        lambda text: json.dumps({"content": [{"type": "text", "text": text}], "isError": False}),
        lambda text: json.dumps({"jsonrpc": "2.0", "result": {"content": [{"type": "text", "text": text}]}}),
    ],
)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("503 Service Unavailable", Outcome.TRANSIENT),
        ('{"success": false, "message": "no such city"}', Outcome.FAILED),
        ("The request timed out", Outcome.TRANSIENT),
        ("ENOENT: no such file or directory, open 'x'", Outcome.FAILED),
        ("<html><head><title>502 Bad Gateway</title></head></html>", Outcome.TRANSIENT),
        ("31 C and sunny", Outcome.OK),
        ("[]", Outcome.EMPTY),
        ('{"job": 7, "status": "queued"}', Outcome.UNFINISHED),
    ],
)  # fmt: skip
def test_a_result_is_the_same_in_every_wrapping(wrap: Any, text: str, expected: Outcome) -> None:
    """Clients hand on what MCP servers send in several ways."""
    assert outcome_of(tool(wrap(text)), wrap(text)) is expected


@pytest.mark.parametrize("flag", [{"is_error": True}, {"isError": True}, {"status": "error"}])
@pytest.mark.parametrize("place", ["message", "part", "text"])
def test_a_flag_counts_wherever_it_stands(flag: dict[str, Any], place: str) -> None:
    """On the message, on a part of it, and in an MCP result that is its text; whatever is said beside it."""
    part = {"type": "text", "text": "31 C"}
    messages = {
        "message": tool("31 C", **flag),
        "part": tool([part | flag]),
        "text": tool(json.dumps({"content": [part], **flag})),
    }
    message = messages[place]
    text = message["content"] if isinstance(message["content"], str) else "31 C"
    assert outcome_of(message, text) is Outcome.FAILED


@pytest.mark.parametrize("code", [0, 1, 2, 127])
@pytest.mark.parametrize("wrote", ["", "ValueError: shown by `grep`", "ok"])
def test_the_exit_code_settles_it(code: int, wrote: str) -> None:
    """What a command that worked wrote is a result, also where it reads like a failure, and the other way
    round."""
    told = (
        json.dumps({"stdout": wrote, "stderr": "", "exit_code": code}),
        f"Exit code: {code}\nWall time: 0.1 seconds\nOutput:\n{wrote}",
        f"<returncode>{code}</returncode>\n<output>\n{wrote}</output>",
    )
    expected = Outcome.FAILED if code else (Outcome.OK if wrote else Outcome.EMPTY)
    assert {outcome_of(tool(text), text) for text in told} == {expected}


@given(st.text("abc .\n", min_size=1500, max_size=1600), st.sampled_from(["Error: x", "404 Not Found", "[]"]))
def test_the_middle_of_a_long_text_says_nothing(text: str, words: str) -> None:
    """A page that mentions a failure is a result."""
    middle = f"So it begins.{text[:800]}\n{words}\n{text[800:]}\nSo it ends."
    assert outcome_of(tool(middle), middle) is Outcome.OK


@pytest.mark.parametrize(
    "text",
    [
        "2026-05-01 10:00:04 ERROR upstream answered 503 Service Unavailable",
        "src/client.py:41: the connection was closed",
        "- the request timed out",
        "1. Permission denied",
        "Title: Connection refused",
        "Email: ada@example.org",
        "console.error('not found')",
        "Default: null",
    ],
)
def test_what_quotes_a_failure_is_a_result(text: str) -> None:
    """A line of a log, of a search through files, of a list, of a program."""
    assert outcome_of(tool(text), text) is Outcome.OK


def test_an_operators_patterns_count_at_the_beginning() -> None:
    """The table knows English only."""
    extra = compiled(["fehler:", "E-[0-9]+ "])
    for text in ("Fehler: Stadt unbekannt", "E-17 no"):
        assert outcome_of(tool(text), text) is Outcome.OK
        assert outcome_of(tool(text), text, extra) is Outcome.FAILED
    late = "Die Seite sagt: Fehler: x"
    assert outcome_of(tool(late), late, extra) is Outcome.OK
    with pytest.raises(re.error):
        compiled(["("])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["error", "errors", "status", "content", "type", "text", "isError", "detail"])
        | st.text(max_size=5),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@given(json_values | st.text(), st.booleans())
def test_no_result_is_too_odd_to_read(value: Any, as_text: bool) -> None:
    """Neither as a text nor as a message; and a wrapped list of parts may hold anything."""
    text = value if isinstance(value, str) else json.dumps(value)
    assert outcome_of(tool(text if as_text else value), text) in set(Outcome) - {Outcome.PENDING}
    assert isinstance(comparable(text), str)
    assert is_cleared(text) in (True, False)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 3_000, '"' * 9_000, "9" * 16_000, "Error" * 9_000, "\x00", "\ud800"]
)
def test_hostile_texts_are_read(text: str) -> None:
    """Deep, long, unfinished, or no Unicode."""
    assert outcome_of(tool(text), text) in set(Outcome)
    assert isinstance(comparable(text), str)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"results": [1], "response_time": 0.6}', '{"response_time": 0.9, "results": [1]}', True),
        ('{"results": [1], "response_time": 0.6}', '{"results": [2], "response_time": 0.6}', False),
        ("Wall time: 0.1 seconds\nOutput:\na", "Wall time: 3 seconds\nOutput:\na", True),
        ("12:00", "12:01", False),
        ('{"time": "12:00"}', '{"time": "12:01"}', False),
    ],
)  # fmt: skip
def test_how_long_it_took_makes_no_other_answer(one: str, other: str, same: bool) -> None:
    """Else every search engine would change its answers by itself."""
    assert (comparable(one) == comparable(other)) is same
