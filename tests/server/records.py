"""Records to put into stores, and what else tests of stores need."""

from __future__ import annotations

from governor.calls import ToolCall
from governor.conversation import AnsweredCall, origin
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor_server.store import RecordStore

SECRET = "the capital of Nauru"
ARGUMENTS = f'{{"q":"{SECRET}"}}'


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Errors:
    """Counts what the store reports."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def record(
    call_id: str, conversation: str = "c", created: float = 1_000_000.0, step: int = 0, asked: str = ""
) -> CallRecord:
    """Of a call; `asked` stands for the user's message that it was made for."""
    signature = f"search({ARGUMENTS})"
    probe = ProbeAnswer(SECRET, True, 0.1, 0.2, 0.9, -1.0, 3, 10)
    return CallRecord(
        call_id=call_id,
        conversation=conversation,
        tool="search",
        signature=signature,
        step=step,
        decision={"call_id": call_id, "action": "pass", "arguments": SECRET, "inputs": {"margin": 0.5}},
        created=created,
        entropy_before=0.25,
        probe_before=probe,
        origin=origin(asked, signature),
    )


def answered(call_id: str, asked: str = "", arguments: str = ARGUMENTS) -> AnsweredCall:
    """The call of such a record, as a history has it."""
    return AnsweredCall(ToolCall(call_id, 0, "search", arguments), asked, call_id)


def kept(store: RecordStore, conversation: str, call_id: str) -> CallRecord | None:
    """What a store has of the only call of a conversation with this id."""
    found = [each for each in store.of_conversation(conversation) if each.call_id == call_id]
    assert len(found) <= 1
    return found[0] if found else None
