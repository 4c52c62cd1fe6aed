"""Which results the model gets to see in a request, and the probes that find it out.

A result is weighed twice. When it comes, against the answer before it: a fresh result that changed nothing
becomes a stub before anything is generated from it. And once more when the answer has settled: what was read
while the model only guessed moved it from one guess to another, which says nothing of its worth. As soon as a
result makes an open answer certain, one more probe leaves out the long results before it; if the answer stays
the same and as certain without them, they have done what they could.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from governor.governance import Governance
from governor.judge import Judge
from governor.labels import Label, label
from governor.ledger import Ledger
from governor.probe import ProbeAnswer
from governor.pruning import Pruning, StubReason, estimated_tokens, prune
from governor.request import Json

Messages = Sequence[Any]


class Admission:
    """The admission of one request's results; `pruning` is what the model gets to see by now."""

    def __init__(self, body: Json, governance: Governance, judge: Judge, ledger: Ledger) -> None:
        self._messages: Messages = body["messages"]
        self._settings = governance.pruning
        self._judge, self._ledger = judge, ledger
        self._low_value = frozenset(
            known.key for known in ledger.known if known.record.label is Label.LOW_VALUE
        )
        self._answer: ProbeAnswer | None = None
        self._without: Pruning | None = None
        self.pruning = Pruning(self._messages)

    def begin(self) -> Messages | None:
        """The messages to probe first; None: there is nothing to find out."""
        if self._settings.policy == "none":
            return None
        self._see(self._prune(frozenset()))
        if self._settings.policy != "low_value":
            return None
        return self.pruning.messages if self._weighs_fresh() or self._may_settle() else None

    def answered(self, answer: ProbeAnswer | None) -> Messages | None:
        """Takes in the forced answer with the fresh results in place, None if the probe failed; returns the
        messages to probe without the results that may have done what they could, or None."""
        self._answer = answer
        low_value = frozenset(
            known.key
            for known in self._ledger.unlabelled()
            if label(known.record.probe_before, answer) is Label.LOW_VALUE
        )
        self._see(self._prune(low_value))
        if answer and answer.is_sure and self._was_open():
            self._without = self._leaving_out(low_value)
        return self._without.messages if self._without else None

    def left_out(self, answer: ProbeAnswer | None) -> None:
        """Takes in the forced answer without them, None if the probe failed."""
        if self._without and label(answer, self._answer) is Label.LOW_VALUE:
            self._see(self._without)

    def _see(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self._judge.missing = pruning.missing

    def _prune(self, low_value: AbstractSet[str]) -> Pruning:
        return prune(
            self._messages,
            self._judge.catalog,
            self._settings,
            stubs={
                known.key: StubReason(known.record.stub) for known in self._ledger.known if known.record.stub
            },
            low_value=self._low_value | low_value,
        )

    def _weighs_fresh(self) -> bool:
        """Whether a fresh result is long enough to be worth a probe, and has one before it to compare
        with."""
        sizes = {done.call.id: estimated_tokens(done.result) for done in self._judge.executed}
        return any(
            sizes.get(known.key, 0) >= self._settings.min_tokens
            and known.key not in self.pruning.stubs
            and self._judge.governs(known.record.tool)
            for known in self._ledger.unlabelled()
        )

    def _may_settle(self) -> bool:
        """Whether there is something to leave out if an open answer settles now."""
        return self._was_open() and self._leaving_out(frozenset()) is not None

    def _was_open(self) -> bool:
        before = [known.record.probe_before for known in self._ledger.unlabelled()]
        return any(not probe.is_sure for probe in before if probe)

    def _leaving_out(self, low_value: frozenset[str]) -> Pruning | None:
        """The request without all older results of calls that are known; None where that does not pay."""
        older = frozenset(known.key for known in self._ledger.known) - self._ledger.fresh
        pruning = self._prune(older | low_value)
        return pruning if pruning.new > self.pruning.new else None
