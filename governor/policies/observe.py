"""The policy that withholds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from governor.policies.policy import Evidence, Judgement


@dataclass(frozen=True, slots=True)
class ObservePolicy:
    """Measures only."""

    name: str = "observe"

    def judge(self, evidence: Evidence) -> Judgement:
        raise NotImplementedError
