"""A logged conversation: what was said, which calls were made or withheld, and how it ended.

A row of a log is a JSON object. Only `messages` is required, and for anything that learns, `score`:

    {"messages": [...], "tools": [...], "score": 1.0, "id": "...", "group": "...", "calls": [...]}

`messages` and `tools` are OpenAI's; in parquet both, and `calls`, may be text that holds their JSON, since
their shapes differ from row to row. `calls` holds what the governor measured (`LoggedCall`); without it the
calls are read from the messages, and their entropies are computed by whoever trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any

from governor.calls import CallSignature, ToolCatalog, ToolEffect, canonical_arguments
from governor.labels import Label
from governor.notices import is_notice
from governor.records import CallRecord
from governor.rewards import CallTurn
from governor_training.environment import Message
from governor_training.errors import UsageError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
EFFECTS: Mapping[str, bool | None] = {ToolEffect.READ_ONLY: True, ToolEffect.EFFECTFUL: False}
"""Whether a tool of that effect only reads; of the others nobody knows."""


class RowError(UsageError):
    """A row that cannot be used; the text says where it stands and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One call that the model proposed. `turn` is the number of its message among the model's own, from 0;
    entropies, gain and label as in the governor's records. `read_only` None: nobody said what the tool does.
    `withheld`: the agent never got it. `margin` is the least lead of the first token over the second in
    the forced answer in its place, in [0, 1], and `answer_before` the text of that, "" where texts are not
    kept; the fingerprints of the answers before and after it always are.
    """

    id: str
    tool: str
    turn: int
    arguments: str = ""
    read_only: bool | None = None
    withheld: bool = False
    reason: str = ""
    before: float | None = None
    after: float | None = None
    gain: float | None = None
    changed: bool | None = None
    label: Label | None = None
    margin: float | None = None
    answer_before: str = ""
    fingerprint_before: str = ""
    fingerprint_after: str = ""

    @classmethod
    def of_record(cls, record: CallRecord, turn: int) -> LoggedCall:
        """What the governor wrote down."""
        before, after = record.probe_before, record.probe_after
        return cls(
            record.call_id,
            record.tool,
            turn,
            str(record.decision.get("arguments") or ""),
            EFFECTS.get(record.effect),
            record.decision.get("action") != "pass",
            str(record.decision.get("reason") or ""),
            record.entropy_before,
            record.entropy_after,
            record.gain,
            record.answer_changed,
            record.label,
            before.least_margin if before else None,
            before.text if before else "",
            before.fingerprint if before else "",
            after.fingerprint if after else "",
        )

    @property
    def measured(self) -> CallTurn:
        """For the rewards."""
        return CallTurn(self.before, self.after, self.gain, self.changed)

    @property
    def signature(self) -> CallSignature:
        return CallSignature(self.tool, canonical_arguments(self.arguments))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A conversation. `score` is in [0, 1], None where nobody told it; `group` is equal for rollouts of the
    same question. The first `given` messages of the model are context: they were not generated here, or are
    another row's. `proposals` are the messages that the model had generated where calls were withheld, by
    turn. `forgetful`: the model did not see its own earlier reasoning. `kind` says how the row came about,
    and `where` where it stands.
    """

    id: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = field(default_factory=list)
    score: float | None = None
    group: str = ""
    calls: Sequence[LoggedCall] = field(default_factory=list)
    proposals: Mapping[int, Message] = field(default_factory=dict)
    given: int = 0
    forgetful: bool = False
    kind: str = "logged"
    where: str = field(default="", compare=False)

    @property
    def turns(self) -> int:
        """How many messages of the model there are."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def executed(self) -> list[LoggedCall]:
        """The read-only calls that were made: those that the rewards are about."""
        return [call for call in self.calls if call.read_only and not call.withheld]

    def as_row(self) -> dict[str, Any]:
        """JSON-ready."""
        row: dict[str, Any] = {
            "id": self.id,
            "group": self.group,
            "messages": list(self.messages),
            "tools": list(self.tools),
            "score": self.score,
            "calls": [call.as_dict() for call in self.calls],
        }
        if self.proposals:
            row["proposals"] = [{"turn": t, "message": m} for t, m in sorted(self.proposals.items())]
        for name in ("given", "forgetful"):
            if getattr(self, name):
                row[name] = getattr(self, name)
        if self.kind != "logged":
            row["kind"] = self.kind
        return row

    @classmethod
    def from_row(cls, row: object, where: str) -> Trajectory:
        """From a row of a log. Raises `RowError` for anything that is no conversation."""
        return _Row(row, where).trajectory()


class _Row:
    """Reads one row, and says what is wrong with it."""

    def __init__(self, row: object, where: str) -> None:
        self.where = where
        if isinstance(row, str):
            raise self.error("the line is no JSON")
        if not isinstance(row, Mapping):
            raise self.error(f"a row is a JSON object with messages, not {_kind(row)}")
        self.row = row

    def error(self, what: str) -> RowError:
        return RowError(f"{self.where}: {what}")

    def trajectory(self) -> Trajectory:
        messages = self._messages()
        tools = self._list("tools")
        calls = self._calls(messages)
        return Trajectory(
            id=str(self.row.get("id") or self.where),
            messages=messages,
            tools=tools,
            score=self._score(),
            group=str(self.row.get("group") or question_key(messages)),
            calls=calls,
            proposals=self._proposals(),
            given=self._given(messages),
            forgetful=self.row.get("forgetful") is True,
            kind=str(self.row.get("kind") or "logged"),
            where=self.where,
        )

    def _list(self, name: str) -> list[Any]:
        """A list, or the text of one."""
        value = self.row.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.error(f"{name} is text, but no JSON") from None
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"{name} must be a list, not {_kind(value)}")
        return value

    def _messages(self) -> list[Message]:
        messages = self._list("messages")
        if not messages:
            raise self.error("messages is missing: a log without texts cannot be trained on")
        asked: set[str] = set()
        for place, message in enumerate(messages):
            self._check_message(message, place, asked)
        if not any(message["role"] == "assistant" for message in messages):
            raise self.error("there is no message of the assistant to learn from")
        return [_plain(message) for message in messages]

    def _check_message(self, message: object, place: int, asked: set[str]) -> None:
        where = f"messages[{place}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise self.error(f"{where} is no message: it needs a role, one of {', '.join(sorted(ROLES))}")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise self.error(f"{where}: content must be text; images and other parts cannot be trained on")
        if message["role"] == "tool" and message.get("tool_call_id") not in asked:
            raise self.error(f"{where} is the result of no call before it (tool_call_id)")
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise self.error(f"{where}: a tool call needs a function with a name")
            asked.add(call.get("id"))

    def _score(self) -> float | None:
        score = self.row.get("score")
        if score is None:
            return None
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise self.error(f"score must be a number from 0 to 1, or null: {score!r}")
        return float(score)

    def _given(self, messages: Sequence[Message]) -> int:
        given = self.row.get("given") or 0
        turns = sum(message["role"] == "assistant" for message in messages)
        if not isinstance(given, int) or not 0 <= given < turns:
            raise self.error(f"given must be a number below that of the assistant's messages: {given!r}")
        return given

    def _calls(self, messages: Sequence[Message]) -> list[LoggedCall]:
        if self.row.get("calls") is None:
            return list(calls_of(messages))
        names = {entry.name for entry in fields(LoggedCall)}
        found = []
        for place, call in enumerate(self._list("calls")):
            try:
                known = {key: value for key, value in call.items() if key in names}
                if known.get("label") is not None:
                    known["label"] = Label(known["label"])
                found.append(LoggedCall(**known))
            except (TypeError, ValueError, AttributeError) as error:
                raise self.error(f"calls[{place}] is no call: {error}") from None
        return found

    def _proposals(self) -> dict[int, Message]:
        try:
            return {one["turn"]: _plain(one["message"]) for one in self._list("proposals")}
        except (KeyError, TypeError, AttributeError):
            raise self.error("proposals must be a list of objects with turn and message") from None


def calls_of(messages: Sequence[Message]) -> Iterator[LoggedCall]:
    """The calls of a conversation that nothing was measured of, in order. One that was answered by a notice
    of the governor was withheld."""
    results = {m.get("tool_call_id"): m.get("content") or "" for m in messages if m["role"] == "tool"}
    turn = -1
    for message in messages:
        turn += message["role"] == "assistant"
        for call in message.get("tool_calls") or ():
            result = results.get(call.get("id"))
            noticed = result is not None and is_notice(result)
            arguments = call["function"].get("arguments") or ""
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            yield LoggedCall(
                str(call.get("id")), call["function"]["name"], turn, arguments=text, withheld=noticed
            )


def question_key(messages: Sequence[Message]) -> str:
    """Equal for conversations that began with the same messages."""
    beginning = []
    for message in messages:
        if message["role"] == "assistant":
            break
        beginning.append((message["role"], message.get("content")))
    return sha256(json.dumps(beginning).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def with_effects(trajectory: Trajectory, catalog: ToolCatalog) -> Trajectory:
    """The trajectory with what `catalog`, or the tools' own descriptions, say of its calls where the log does
    not."""
    told = catalog.with_tools(trajectory.tools)
    calls = [
        call if call.read_only is not None else replace(call, read_only=EFFECTS.get(told.effect(call.tool)))
        for call in trajectory.calls
    ]
    return replace(trajectory, calls=calls)


def _plain(message: Mapping[str, Any]) -> Message:
    """Without null fields: parquet writes every field that any row has."""
    return {key: value for key, value in message.items() if value is not None}


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
