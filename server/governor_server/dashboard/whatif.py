"""Another bound on the harm: which settings it would allow, and what they would have saved on recorded
calls.

All bounds of the slider are worked out at once, by what `governor tune` uses, in a process of its own with
a lower priority: a thread would take turns with the requests.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, Final

import orjson

from governor.certificate import Certificate, certify
from governor.conversations import conversations, observed
from governor.crossings import candidates
from governor.policies import CalibratedPolicy
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.standing import Standing
from governor_server import extras, policies
from governor_server.replay import Recorded
from governor_server.settings import GovernanceSettings
from governor_server.tune import CALIBRATED, Aim, ByModel, Trials, Tuned, chosen, own_parameters, recommended

BOUNDS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12,
    0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
)  # fmt: skip
"""Of the slider."""
MOST_CONVERSATIONS: Final = 3000
"""The newest ones that were only observed; more would say the same, later."""
FRESH_S: Final = 60.0
"""So long an answer is given again."""
LONGEST_S: Final = 300.0
CHUNK: Final = 256
"""Records that are packed at once: nothing else runs meanwhile."""


@dataclass(frozen=True, slots=True)
class Question:
    """All that the answer depends on. `max_harm` and `confidence` are the configured ones."""

    records: Sequence[CallRecord]
    governance: GovernanceSettings
    standings: Mapping[str, Standing]
    max_harm: float
    confidence: float


class WhatIfFailed(Exception):
    """There is no answer; the text says why, in a line."""


class WhatIf:
    """Asks the question, once for all who want to know; `question` is called in a thread."""

    def __init__(self, question: Callable[[], Question]) -> None:
        self._question = question
        self._lock = asyncio.Lock()
        self._process: Popen[bytes] | None = None
        self._answer: dict[str, Any] = {}
        self._answered = 0.0

    async def answer(self) -> Mapping[str, Any]:
        """JSON-ready. Takes seconds; for a minute after that, nothing. Raises `WhatIfFailed`."""
        async with self._lock:
            if not self._answer or time.monotonic() - self._answered > FRESH_S:
                self._answer = await asyncio.to_thread(self._worked_out)
                self._answered = time.monotonic()
            return self._answer

    def _worked_out(self) -> dict[str, Any]:
        question = self._question()
        clean = [calls for calls in conversations(question.records).values() if observed(calls)]
        clean.sort(key=lambda calls: calls[0].created, reverse=True)
        kept = [call for calls in islice(clean, MOST_CONVERSATIONS) for call in calls]
        packed = [pickle.dumps(chunk) for chunk in batches(kept)]
        parts = [*packed, pickle.dumps(replace(question, records=()))]
        found = self._in_a_process(b"".join(struct.pack("!Q", len(part)) + part for part in parts))
        parsed: dict[str, Any] = orjson.loads(found)
        return parsed

    def _in_a_process(self, asked: bytes) -> bytes:
        """What a process of its own answers. Raises `WhatIfFailed`."""
        command = [sys.executable, "-P", "-m", __name__]
        # In a session of its own, so that Ctrl-C is for the proxy.
        with Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
            self._process = process
            try:
                found, complaint = process.communicate(asked, LONGEST_S)
            except TimeoutExpired:
                process.kill()
                raise WhatIfFailed(f"it took longer than {LONGEST_S:.0f} seconds") from None
        if process.returncode:
            last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise WhatIfFailed(last or f"the process ended with {process.returncode}")
        return found

    def close(self) -> None:
        """Nobody wants to know any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


def batches(records: Sequence[CallRecord]) -> list[list[CallRecord]]:
    """In parts of at most `CHUNK`."""
    return [list(records[start : start + CHUNK]) for start in range(0, len(records), CHUNK)]


def main() -> None:
    """Reads a question from standard input, as `WhatIf` packs it, and writes the answer."""
    with suppress(OSError):
        os.nice(10)
    parts = []
    while size := sys.stdin.buffer.read(8):
        parts.append(pickle.loads(sys.stdin.buffer.read(struct.unpack("!Q", size)[0])))
    question = replace(parts.pop(), records=[record for part in parts for record in part])
    sys.stdout.buffer.write(orjson.dumps(answer(question)))


def answer(question: Question) -> dict[str, Any]:
    """What each bound would allow, JSON-ready; the policies share the error of the confidence, as in
    `governor tune`."""
    recorded = Recorded.of(question.records).observed()
    kinds = [kind for kind in policies.table().values() if kind.sweep or kind.name == "rules"]
    gates = {model: standing for model, standing in question.standings.items() if standing.gate is not None}
    level = (1 - question.confidence) / (len(kinds) + max(len(gates), 1))
    tries = [Trials(kind, recorded, own_parameters(kind.name, question.governance), level) for kind in kinds]
    points = []
    for bound in BOUNDS:
        aim = Aim(bound, level)
        tried = [chosen(each, aim) for each in tries]
        gate = _calibrated(recorded, gates, aim, question.governance.rules())
        tried += [gate] if gate is not None else []
        best = recommended(tried)
        points.append(
            {
                "max_harm": bound,
                "choices": [_choice(each) for each in tried],
                "best": best.name if best is not None else None,
            }
        )
    return {
        "policy": question.governance.policy,
        "setting": in_force(question),
        "max_harm": question.max_harm,
        "confidence": question.confidence,
        "conversations": len(recorded.conversations),
        "calls": sum(len(calls) for calls, _ in recorded.conversations),
        "labelled": sum(call.label is not None for calls, _ in recorded.conversations for call in calls),
        "points": points,
    }


def in_force(question: Question) -> str:
    """The setting of the configured policy, as the choices write it: theirs is another one."""
    governance = question.governance
    if governance.policy == CALIBRATED:
        return f"max_harm={question.max_harm:g}"
    sweep = policies.kind(governance.policy).sweep
    if sweep is None:
        return "-"
    own = governance.thresholds.model_dump() if governance.policy == "threshold" else {}
    value = {**own, **governance.parameters}.get(sweep.parameter, sweep.default)
    return f"{sweep.parameter}={value:g}"


def _choice(tried: Tuned) -> dict[str, Any]:
    return {
        "policy": tried.name,
        "setting": tried.setting,
        "certified": tried.certified,
        "verdict": tried.verdict,
        "more": tried.more,
        "summary": None if tried.summary is None else asdict(tried.summary),
    }


def _calibrated(
    recorded: Recorded, gates: Mapping[str, Standing], aim: Aim, rules: RuleSettings
) -> Tuned | None:
    """The gates as they are, at the thresholds that this bound would certify on the conversations that they
    did not learn from; None where there is no gate."""
    if not gates or extras.missing("calibration"):
        return None
    from governor_calibration.fit import learned_from

    certified, refusal = {}, "no gate"
    for model, standing in gates.items():
        assert standing.gate is not None
        unseen = [
            candidates(standing.gate, calls)
            for calls, _ in recorded.conversations
            if not learned_from(calls[0].conversation) and any(call.model == model for call in calls)
        ]
        # A first attempt spends half of what it is given.
        found = certify(unseen, max_harm=aim.max_harm, confidence=1 - 2 * aim.level)
        if isinstance(found, Certificate):
            certified[model] = replace(standing.gate, certificate=found)
        else:
            refusal = found.explain()
    if not certified:
        return Tuned(CALIBRATED, "-", {}, None, False, refusal.rstrip("."))
    policy = ByModel({model: CalibratedPolicy(gate, rules) for model, gate in certified.items()})
    summary = recorded.under(policy, aim.level)
    setting = f"max_harm={aim.max_harm:g}"
    return Tuned(CALIBRATED, setting, {}, summary, True, "certified")


if __name__ == "__main__":
    main()
