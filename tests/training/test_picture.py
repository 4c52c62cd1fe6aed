"""The picture shows every token, result and withheld call of a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from governor_training.agent import Call, Run
from governor_training.atlas.picture import bars, draw
from governor_training.environment import Task

TASK = Task("1", ({"role": "user", "content": "What is the capital of India?"},), ())
WITHHELD = {"tool": "lookup", "action": "answer", "reason": "repeated_call", "generation": 0}
PASSED = {"tool": "lookup", "action": "pass", "reason": "uncertain_answer", "generation": 0}
GAINED = {"entropy_before": 0.4, "entropy_after": 0.1, "entropy_reduction": 0.3}


def token(text: str, span: str, entropy: float = 0.0, generation: int = 0) -> dict[str, Any]:
    return {"text": text, "entropy": entropy, "span": span, "generation": generation}


RUN = Run(
    TASK,
    calls=[Call(0, "lookup", "{}", "New Delhi")],
    answer="The capital of India is New Delhi.",
    explanations=[
        {"tokens": [token("India", "reasoning", 0.4)], "decisions": [PASSED], "results": []},
        {
            "tokens": [token(" ", "call"), token("look", "call"), token("The", "content", 0.0, 1)],
            "decisions": [WITHHELD],
            "results": [GAINED],
        },
    ],
)


def test_marks_stand_where_they_happened() -> None:
    """A result follows the turn that called for it, a withheld call the generation that proposed it."""
    assert [(bar.kind, bar.label) for bar in bars(RUN)] == [
        ("reasoning", "India"),
        ("result", "lookup → New Delhi\nsegment 0.40 → 0.10 nats"),
        ("call", "look"),
        ("withheld", "lookup withheld:\nrepeated call"),
        ("content", "The"),
    ]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """A PNG, also where a label has signs that mean something to the drawing library."""
    strange = {**WITHHELD, "reason": "a_$_reason"}
    run = Run(
        TASK,
        explanations=[{"tokens": [token("$x$", "call")], "decisions": [strange], "results": []}],
        answer="$5",
    )
    draw(TASK, {"ungoverned": RUN, "governed": run}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
