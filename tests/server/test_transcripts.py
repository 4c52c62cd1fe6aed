"""What was said is kept where the operator asks for it, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from governor.transcript import Transcript
from governor_server.errors import SettingsError
from governor_server.settings import Settings
from governor_server.transcripts import TranscriptStore
from tests.server.scripted_upstream import Answer, proxied, scripted
from tests.wire.generated import Generated, chat

CALLING = Generated(content="Let me look.", calls=[("c1", "lookup", '{"country": "Norway"}')])
UNSURE = Generated(content="Oslo", sure=0.4)
CLOCK = count()


def written(path: Path) -> list[Transcript]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT body FROM transcripts ORDER BY rowid").fetchall()
    connection.close()
    return [Transcript.from_dict(json.loads(body)) for (body,) in rows]


def said(*texts: str) -> list[dict[str, Any]]:
    return [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]


def transcript(turn: int, messages: list[dict[str, Any]], reply: str) -> Transcript:
    return Transcript(
        "talk", turn, float(next(CLOCK)), "m", [], messages, {"role": "assistant", "content": reply}
    )


@pytest.mark.parametrize("keep", [False, True])
async def test_conversations_are_kept_only_where_they_are_asked_for(tmp_path: Path, keep: bool) -> None:
    """Prompts are secrets; off is the default."""
    path = tmp_path / "records.db"
    store = {"path": str(path), **({"keep_conversations": True} if keep else {})}
    answers = [Answer.whole(CALLING), Answer.whole(UNSURE), Answer.whole(Generated(content="Oslo."))]
    body = chat(stream=False)
    async with scripted(*answers) as upstream, proxied(upstream, store=store) as proxy:
        _, _, first = await proxy.chat(body, x_governor_conversation="talk")
        message = json.loads(first)["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": "c1", "content": "Oslo"}
        await proxy.chat({**body, "messages": [*body["messages"], message, result]})
    files = await asyncio.to_thread(lambda: [file.read_bytes() for file in tmp_path.iterdir()])
    assert any(body["messages"][0]["content"].encode() in content for content in files) is keep
    if keep:
        one, two = written(path)
        assert (one.conversation, one.turn, two.conversation, two.turn) == ("talk", 0, "talk", 1)
        assert one.said == body["messages"] and one.tools == body["tools"]
        assert two.said == [result] and two.since == len(body["messages"]) + 1
        assert two.reply["content"] == "Oslo."


def test_a_history_that_is_not_what_it_was_is_written_whole(tmp_path: Path) -> None:
    """A client may drop or rewrite messages: what is pieced together must be what the model saw."""
    store = TranscriptStore(str(tmp_path / "records.db"))
    store.put(transcript(0, said("a"), "b"))
    store.put(transcript(1, said("a", "b", "c"), "d"))
    store.put(transcript(1, said("summary", "d", "e"), "f"))
    store.put(transcript(3, said("a", "b", "c", "d", "e", "f", "g"), "h"))
    store.close()
    again = TranscriptStore(str(tmp_path / "records.db"))
    again.put(transcript(4, said("a", "b", "c", "d", "e", "f", "g", "h", "i"), "j"))
    again.close()
    assert [(one.turn, one.since, len(one.said)) for one in written(tmp_path / "records.db")] == [
        (0, 0, 1),
        (1, 2, 1),
        (1, 0, 3),
        (3, 0, 7),
        (4, 0, 9),
    ]


def test_conversations_in_memory_would_be_kept_for_nobody() -> None:
    """The proxy never reads them: without a file the setting is a mistake."""
    with pytest.raises(SettingsError, match=r"store\.path"):
        Settings.load(None, {"store": {"path": ":memory:", "keep_conversations": True}})
