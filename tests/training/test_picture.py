"""The picture shows every token, result and withheld call of a conversation."""

from __future__ import annotations

from pathlib import Path

from governor_training.atlas.agent import Call, Run
from governor_training.atlas.picture import bars, draw
from governor_training.atlas.questions import WORDINGS, ask
from governor_training.atlas.world import load_world

QUESTION = ask(load_world(), "India", "capital", None, WORDINGS[0])
WITHHELD = {"tool": "lookup", "action": "answer", "reason": "repeated_call"}
PASSED = {"tool": "lookup", "action": "pass", "reason": "uncertain_answer"}
RUN = Run(
    QUESTION,
    calls=[Call(0, "lookup", "{}", "New Delhi")],
    answer="The capital of India is New Delhi.",
    explanations=[
        {"tokens": [{"text": "India", "entropy": 0.4, "span": "reasoning"}], "decisions": [PASSED]},
        {"tokens": [{"text": " ", "entropy": 0.0, "span": "call"}], "decisions": [WITHHELD]},
    ],
)


def test_marks_stand_where_they_happened() -> None:
    """A result follows the turn that called for it, a withheld call the turn that proposed it."""
    assert [(bar.kind, bar.label) for bar in bars(RUN)] == [
        ("reasoning", "India"),
        ("result", "lookup → New Delhi"),
        ("call", "␣"),
        ("withheld", "lookup withheld: repeated call"),
    ]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """A PNG, also where a label has signs that mean something to the drawing library."""
    strange = {**WITHHELD, "reason": "a_$_reason"}
    run = Run(QUESTION, explanations=[{"tokens": [], "decisions": [strange]}], answer="$5")
    draw(QUESTION, {"ungoverned": RUN, "governed": run}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
