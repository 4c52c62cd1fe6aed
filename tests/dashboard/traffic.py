"""Conversations as a governor under load leaves them, and a server with a store full of them."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.transcript import Transcript
from governor_server.app import GovernorApp, create_app
from governor_server.feedback import OUTCOMES, Feedback
from governor_server.settings import Settings
from governor_server.store import records_table
from governor_server.tables import Item, Table
from governor_server.transcripts import TRANSCRIPTS
from governor_server.turns import TURNS
from tests.server.logs import turns

TOOLS = (("search", 0.35), ("lookup", 0.55), ("get_weather", 0.8), ("read_file", 0.6), ("send_email", 1.0))
"""Each with how often its result changes the answer."""


def probe(text: str, margin: float) -> ProbeAnswer:
    """A forced answer that is as certain as `margin` says."""
    doubt = 1 - margin
    return ProbeAnswer(text, True, doubt / 2, doubt, margin, -doubt, 6, 240, 6)


def conversation(number: int, now: float, lots: Random, **fields: Any) -> list[CallRecord]:
    """One to four calls, the last one just before `now`; of every ten conversations one is held out."""
    arm = "holdout" if number % 10 == 0 else "governed"
    name = f"agent-{number:06d}"
    calls = lots.randint(1, 4)
    records = []
    for step in range(calls):
        tool, worth = TOOLS[lots.randrange(len(TOOLS))]
        useful = lots.random() < worth
        effect = "effectful" if tool == "send_email" else "read_only"
        margin = lots.uniform(0.0, 0.905) if useful else lots.uniform(0.6, 1.0)
        proposed = "answer" if margin > 0.9 and effect == "read_only" else "pass"
        explored = arm == "governed" and proposed == "answer" and lots.random() < 0.05
        action = proposed if arm == "governed" and not explored else "pass"
        created = now - 3.0 * (calls - step)
        before = lots.uniform(0.2, 1.4) if useful else lots.uniform(0.05, 0.6)
        after = lots.uniform(0.02, 0.3) if useful else max(0.01, before + lots.gauss(0, 0.15))
        done = action == "pass"
        reason = "confident_answer" if proposed == "answer" else "uncertain_answer"
        given: dict[str, Any] = {
            "call_id": f"{name}.{step}",
            "conversation": name,
            "tool": tool,
            "signature": f'{tool}({{"q":"{number}.{step}"}})',
            "step": step,
            "decision": {
                "call_id": f"{name}.{step}",
                "index": 0,
                "tool": tool,
                "arguments": f'{{"q": "{number}.{step}"}}',
                "action": action,
                "proposed": proposed,
                "reason": "exploration" if explored else reason,
                "tier": 2,
                "policy": "threshold",
                "inputs": {"least_margin": margin, "margin_threshold": 0.9},
                "explanation": f"The call of {tool} was looked at (least margin {margin:.2f} against 0.90).",
            },
            "created": created,
            "entropy_before": before,
            "entropy_after": after if done else None,
            "probe_before": probe("Oslo", margin),
            "probe_after": probe("Rome" if useful else "Oslo", 0.99) if done else None,
            "usage": {"prompt_tokens": 240, "completion_tokens": 6},
            "model": "atlas",
            "schema": "1",
            "effect": effect,
            "arm": arm,
            "explored": explored,
            "signals": {"step": float(step), "segment_entropy": before, "probe_least_margin": margin},
            "outcome": "ok" if done else "",
            "stub": "low_value" if done and not useful and lots.random() < 0.2 else "",
            "turn_usage": {"prompt_tokens": 900 + 250 * step, "completion_tokens": lots.randint(20, 80)},
            "returned": created + lots.uniform(0.4, 2.5) if done else None,
        }
        records.append(CallRecord(**{**given, **fields}))
    return records


def spoken(record: CallRecord, lots: Random) -> Transcript:
    """What was said in the turn of a record, token by token."""
    thought = ["The", " user", " asks", " for", " the", " capital", "."]
    words = ["It", " may", " be", " Oslo", "."]
    call = ['{"name": "', record.tool, '", "arguments": {"q": "', "Norway", '"}}']
    spans = [
        ("template", ["<think>"]),
        ("reasoning", thought),
        ("template", ["</think>"]),
        ("content", words),
        ("template", ["<tool_call>"]),
        ("call", call),
        ("template", ["</tool_call>"]),
    ]
    tokens = [
        [text, 0.0 if kind == "template" else round(abs(lots.gauss(0, 0.9)), 3), kind]
        for kind, texts in spans
        for text in texts
    ]
    said: list[dict[str, str]] = [
        {"role": "system", "content": "You answer questions about countries. <b>Be short.</b>"},
        {"role": "user", "content": "What is the capital of Norway? <script>alert(1)</script>"},
    ]
    if record.step:
        said = [{"role": "tool", "tool_call_id": record.call_id, "content": "Norway: capital Oslo."}]
    reply = {"role": "assistant", "content": "It may be Oslo."}
    return Transcript(
        record.conversation, record.step, record.created, "atlas", (), said, reply, tokens=tokens
    )


def settings(folder: Path, **sections: Any) -> Settings:
    """Of a server that has room for all of it."""
    given: dict[str, Any] = {
        "store": {"path": str(folder / "records.db"), "max_records": 400_000, "keep_conversations": True},
        "governance": {"mode": "enforce"},
        "calibration": {"path": str(folder / "gates.json")},
        "prices": {"prompt_per_million": 0.5, "completion_per_million": 1.5, "per_call": {"search": 0.005}},
    }
    return Settings.load(overrides={**given, **sections}, environ={})


def fill(config: Settings, conversations: int, seed: int = 1, over_s: float = 3600.0) -> None:
    """Put conversations into the store's file, spread over the last hour; the last ones with their texts."""
    lots, now = Random(seed), time.time()
    records: list[CallRecord] = []
    said: list[Transcript] = []
    told: list[Feedback] = []
    for number in range(conversations):
        began = now - over_s * (1 - number / conversations)
        talk = conversation(number, began, lots)
        records += talk
        if number >= conversations - 20:
            said += [spoken(record, lots) for record in talk]
        if number % 3:
            told.append(Feedback(talk[0].conversation, "test", float(lots.random() < 0.9), now))
    with contextlib.closing(sqlite3.connect(config.store.path)) as file:
        _write(file, records_table(config.store.keep_text), records)
        _write(file, TRANSCRIPTS, said)
        _write(file, TURNS, turns(records))
        _write(file, OUTCOMES, told)


def _write(file: sqlite3.Connection, table: Table[Item], items: list[Item]) -> None:
    for statement in table.schema:
        file.execute(statement)
    with file:
        file.executemany(table.upsert, [table.encode(item) for item in items])


@contextlib.contextmanager
def served(config: Settings) -> Iterator[tuple[GovernorApp, str]]:
    """The application on a port of its own, in a thread of its own; upstream is not there."""
    app = create_app(config, upstream_url="http://127.0.0.1:9", registry=CollectorRegistry())
    given = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(given)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield app, f"http://127.0.0.1:{port}"
    finally:
        app.drain()
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def arriving(app: GovernorApp, each_second: int, first: int = 1_000_000) -> Iterator[None]:
    """So many more conversations a second."""
    stop = threading.Event()

    def run() -> None:
        lots, number = Random(2), first
        begin = time.monotonic()
        while not stop.is_set():
            while number - first < each_second * (time.monotonic() - begin):
                talk = conversation(number, time.time(), lots)
                for record in talk:
                    app.store.put(record)
                for turn in turns(talk):
                    app.turns.put(turn)
                number += 1
            stop.wait(0.05)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
