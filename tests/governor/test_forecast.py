"""The gate's forecast at a threshold of one's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from governor.decision import Reason
from governor.policies import NEED_PROBE, Verdict
from governor.policies.calibrated import CalibratedPolicy
from governor.policies.forecast import ForecastPolicy
from tests.governor.test_calibrated import CALL, CERTAIN, EVIDENCE, GATE


@pytest.mark.parametrize(("threshold", "withheld"), [(0.02, False), (0.03, True)])
def test_it_needs_no_certificate(threshold: float, withheld: bool) -> None:
    """P(useful) = 0.025 here."""
    policy = ForecastPolicy(replace(GATE, certificate=None), threshold)
    assert policy.judge(EVIDENCE) is NEED_PROBE
    verdict = policy.judge(replace(EVIDENCE, probe=CERTAIN))
    assert isinstance(verdict, Verdict)
    assert verdict.withhold is withheld


def test_at_the_certified_threshold_it_is_the_calibrated_policy() -> None:
    """Or the frontier that it draws would be that of another gate."""
    assert GATE.threshold is not None
    for entropy in (0.0, 0.05, 0.1, 0.11, 0.3):
        evidence = replace(EVIDENCE, probe=replace(CERTAIN, max_entropy=entropy))
        one, other = (
            ForecastPolicy(GATE, GATE.threshold).judge(evidence),
            CalibratedPolicy(GATE).judge(evidence),
        )
        assert isinstance(one, Verdict) and isinstance(other, Verdict)
        assert one.withhold == other.withhold


def test_what_the_gate_does_not_know_passes() -> None:
    """Also without a certificate to protect it."""
    unseen = replace(EVIDENCE, call=replace(CALL, name="unseen"), probe=CERTAIN)
    verdict = ForecastPolicy(GATE, 1.0).judge(unseen)
    assert verdict == Verdict(False, Reason.UNCERTIFIED, 3)
