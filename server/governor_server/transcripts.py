"""What was said in governed conversations: written to the store's file for fine-tuning, and for whoever looks
at one conversation.

A chat request repeats the whole history. Only what is new since the last turn that was written is kept, so
that a conversation of n turns takes n messages and not n squared. A turn whose history is not what it was
(the client shortened it, the governor was started anew) is written whole.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from governor.transcript import Transcript
from governor_server import exact_json
from governor_server.tables import Row, Table, TableFile

MOST_OPEN = 20_000
"""Conversations whose next turn can be written in short."""


class TranscriptStore:
    """The turns of recent conversations in the file `path`, at most `max_turns` of them, none older than
    `ttl_s` seconds. Safe to use from several threads."""

    def __init__(
        self,
        path: str,
        *,
        max_turns: int = 20_000,
        ttl_s: float = 7 * 24 * 3600.0,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._written: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        self._file = TableFile(Path(path), TRANSCRIPTS, max_turns, ttl_s, on_error)
        self._file.start()

    def put(self, transcript: Transcript) -> None:
        """Write a turn."""
        with self._lock:
            short = self._short(transcript)
            self._written[transcript.conversation] = (
                transcript.turn,
                transcript.messages,
                _likeness(transcript.reply),
            )
            self._written.move_to_end(transcript.conversation)
            if len(self._written) > MOST_OPEN:
                self._written.popitem(last=False)
        self._file.write(short)

    def turns(self, conversation: str) -> list[Transcript]:
        """The turns of a conversation that are in the file, oldest first; empty where it cannot be read. It
        waits for the disk."""
        # Keys are lists of name and time; what follows the comma begins with a digit, and ":" comes after 9.
        first = _key(conversation, 0.0).rpartition(",")[0] + ","
        statement = "SELECT body FROM transcripts WHERE name > ? AND name < ? ORDER BY created"
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True)) as file:
                rows = file.execute(statement, (first, f"{first}:")).fetchall()
            return [TRANSCRIPTS.decode(body) for (body,) in rows]
        except (sqlite3.Error, OSError, KeyError, TypeError, ValueError):
            return []

    def close(self) -> None:
        """Write what is queued and let go of the file. Waits a few seconds at most."""
        self._file.close()

    def _short(self, transcript: Transcript) -> Transcript:
        turn, messages, reply = self._written.get(transcript.conversation, (-1, 0, 0))
        if turn != transcript.turn - 1 or len(transcript.said) <= messages:
            return transcript
        same = _likeness(transcript.said[messages - 1]) == reply
        return transcript.following(messages) if same else transcript


def _likeness(message: Mapping[str, Any]) -> int:
    """Equal for the same message as it was sent and as a client sends it back."""
    calls = message.get("tool_calls") or ()
    return hash(
        (message.get("role"), str(message.get("content") or ""), tuple(str(call.get("id")) for call in calls))
    )


def _key(conversation: str, created: float) -> str:
    return orjson.dumps([conversation, created]).decode()


def _encode(transcript: Transcript) -> Row:
    # By time, not by turn: a client that shortens its history comes to the same turn again.
    key = _key(transcript.conversation, transcript.created)
    return key, transcript.created, exact_json.dumps(transcript.as_dict())


TRANSCRIPTS = Table("transcripts", "name", _encode, lambda body: Transcript.from_dict(exact_json.loads(body)))
