"""Gates are made when there is enough to make them of, given up on drift, and attempts stay few."""

from __future__ import annotations

from dataclasses import replace

import pytest

from governor.records import CallRecord
from governor.rules import Budgets, RuleSettings
from governor.standing import Standing
from tests.calibration.traffic import OTHER, traffic

pytest.importorskip("sklearn")
from governor_calibration.fit import learned_from
from governor_calibration.renewal import renew


def renewed(records: list[CallRecord], standing: Standing, now: float, max_harm: float = 0.02) -> Standing:
    """For the model of the traffic."""
    return renew(records, standing, model="small", max_harm=max_harm, now=now)


@pytest.fixture(scope="module")
def telling() -> list[CallRecord]:
    """Enough for a certificate."""
    return traffic(1200, strength=4.0)


@pytest.fixture(scope="module")
def enforcing(telling: list[CallRecord]) -> Standing:
    """After the first attempt."""
    standing = renewed(telling, Standing(), 1200.0)
    assert standing.enforces
    return standing


def test_a_first_attempt_waits_for_enough(telling: list[CallRecord]) -> None:
    """Conversations without a label do not count."""
    assert renewed(traffic(200, strength=4.0), Standing(), 200.0).gate is None
    silent = [replace(call, probe_after=None) for call in telling]
    assert renewed(silent, Standing(), 1200.0).gate is None


def test_the_next_attempt_waits_until_data_have_grown(telling: list[CallRecord], enforcing: Standing) -> None:
    """By half; until then nothing changes, so that it can be asked as often as one likes."""
    assert (enforcing.attempts, enforcing.conversations) == (1, 1200)
    more = [*telling, *traffic(500, strength=4.0, seed=2, arm="holdout", begin=1200.0)]
    assert renewed(more, enforcing, 1700.0) is enforcing
    enough = [*telling, *traffic(700, strength=4.0, seed=2, arm="holdout", begin=1200.0)]
    again = renewed(enough, enforcing, 1900.0)
    assert again.gate is not None
    assert (again.attempts, again.gate.version, again.gate.attempt) == (2, 2, 2)


def test_a_gate_without_certificate_does_not_replace_one_that_enforces(
    telling: list[CallRecord], enforcing: Standing
) -> None:
    """The error budget covers both attempts, so that the first certificate still stands."""
    useless = traffic(3000, strength=0.0, seed=2, begin=-3000.0)
    after = renewed([*telling, *useless], replace(enforcing, since=-3000.0), 1200.0)
    assert after.gate is enforcing.gate
    assert after.conversations == 4200


def test_harm_ends_it_and_the_data_begin_anew(telling: list[CallRecord], enforcing: Standing) -> None:
    """What the holdout shows after the gate was made; then only newer conversations count."""
    flipped = traffic(300, strength=-4.0, seed=2, arm="holdout", begin=1200.0)
    fallen = renewed([*telling, *flipped], enforcing, 1500.0)
    assert not fallen.enforces
    assert "changed the answer" in fallen.lapsed
    assert (fallen.since, fallen.attempts) == (1500.0, 1)
    recovered = renewed(
        [*telling, *flipped, *traffic(1300, strength=-4.0, seed=3, begin=1500.0)], fallen, 2800.0
    )
    assert recovered.enforces
    assert recovered.gate is not None
    assert (recovered.attempts, recovered.gate.version) == (2, 2)


def test_another_demand_ends_it_too(telling: list[CallRecord], enforcing: Standing) -> None:
    """Less harm allowed than was certified. More is no reason."""
    stricter = renewed(telling, enforcing, 1300.0, max_harm=0.001)
    assert not stricter.enforces
    assert renewed(telling, enforcing, 1300.0, max_harm=0.05) is enforcing


def test_other_rules_begin_anew(telling: list[CallRecord], enforcing: Standing) -> None:
    """Nothing that was recorded under the old ones counts, with a gate or without."""
    settings = RuleSettings(Budgets(per_conversation=4))
    after = renew(telling, enforcing, model="small", max_harm=0.02, now=1300.0, settings=settings)
    assert "rules" in after.lapsed
    assert after.since == 1300.0
    bare = renew(
        telling,
        Standing(rules=enforcing.rules),
        model="small",
        max_harm=0.02,
        now=1300.0,
        settings=settings,
    )
    assert (bare.gate, bare.since) == (None, 1300.0)


def test_a_conversation_across_the_border_is_left_out(telling: list[CallRecord]) -> None:
    """Half of one would have another first crossing."""
    late = [replace(call, created=call.created + 1e6) if call.step else call for call in telling]
    assert renewed(late, Standing(since=5e5), 2e6).gate is None


def test_a_standing_survives_a_file(enforcing: Standing) -> None:
    """Also after the gate has gone through JSON."""
    assert Standing.from_dict(enforcing.as_dict()) == enforcing


def test_an_attempt_that_failed_is_counted() -> None:
    """It was a test and spent its share, though nothing came of it."""
    records = [
        call if learned_from(call.conversation) else replace(call, probe_after=OTHER)
        for call in traffic(1200, strength=4.0)
    ]
    standing = renewed(records, Standing(), 1200.0)
    assert (standing.enforces, standing.attempts) == (False, 1)
    untested = renewed(traffic(1200, strength=0.0), Standing(), 1200.0)
    assert untested.gate is not None
    assert untested.attempts == 0
