"""What another bound would allow: what `governor tune` says, for each bound of the slider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governor.policies import POLICIES
from governor_server.dashboard import whatif
from governor_server.dashboard.whatif import BOUNDS, Question, WhatIf, WhatIfFailed, answer, batches
from governor_server.replay import Recorded
from governor_server.settings import GovernanceSettings
from governor_server.tune import Aim, own_parameters, tuned
from tests.server import logs
from tests.server.test_gatekeeper import keeper, many

TRAFFIC = logs.traffic(150)


def question(**fields: Any) -> Question:
    return replace(Question(TRAFFIC, GovernanceSettings(), {}, max_harm=0.02, confidence=0.95), **fields)


def test_it_says_what_tuning_says() -> None:
    """Trying each setting once for all bounds must not change what is certified at any of them."""
    found = answer(question())
    names = [choice["policy"] for choice in found["points"][0]["choices"]]
    level = 0.05 / (len(names) + 1)
    recorded = Recorded.of(TRAFFIC).observed()
    for point in found["points"][::5]:
        for choice in point["choices"]:
            name = choice["policy"]
            own = own_parameters(name, GovernanceSettings())
            expected = tuned(POLICIES[name], recorded, Aim(point["max_harm"], level), own)
            assert (choice["setting"], choice["certified"], choice["verdict"], choice["more"]) == (
                expected.setting,
                expected.certified,
                expected.verdict,
                expected.more,
            )
            assert expected.summary is not None
            assert choice["summary"] == pytest.approx(expected.summary.as_dict())


@pytest.mark.parametrize(
    ("governance", "setting"),
    [
        ({}, "margin=0.9"),
        ({"thresholds": {"margin": 0.8}}, "margin=0.8"),
        ({"policy": "threshold", "parameters": {"margin": 0.5}}, "margin=0.5"),
        ({"policy": "cap", "parameters": {"calls": 3}}, "calls=3"),
        ({"policy": "rules"}, "-"),
        ({"policy": "calibrated"}, "max_harm=0.02"),
    ],
)
def test_the_setting_in_force_is_the_configured_one(governance: dict[str, Any], setting: str) -> None:
    """The rows are settings that were tried: none of them is in force because its policy is."""
    found = answer(question(records=TRAFFIC[:30], governance=GovernanceSettings(**governance)))
    assert found["setting"] == setting


def test_a_looser_bound_never_saves_less() -> None:
    """The slider goes one way, and so does what it allows; at its loose end something is certified."""
    points = answer(question())["points"]
    assert [point["max_harm"] for point in points] == sorted(BOUNDS)
    saved = []
    for point in points:
        best = next((choice for choice in point["choices"] if choice["policy"] == point["best"]), None)
        saved.append(best["summary"]["saved_least"] if best else 0)
    assert saved == sorted(saved)
    assert saved[-1] > 0


async def test_a_gate_is_asked_at_the_thresholds_that_each_bound_certifies(tmp_path: Path) -> None:
    """On the conversations that it did not learn from: at a tight bound nothing, at a loose one more."""
    pytest.importorskip("sklearn")
    records = many(1800)
    learned = keeper(tmp_path / "gates.json", records)
    await learned.renew()
    standings = {"atlas": learned.standings["", "atlas"]}
    points = answer(question(records=records, standings=standings))["points"]
    gates = [choice for point in points for choice in point["choices"] if choice["policy"] == "calibrated"]
    assert len(gates) == len(points)
    assert not gates[0]["certified"]
    saved = [gate["summary"]["saved_least"] for gate in gates if gate["certified"]]
    assert saved and saved == sorted(saved)
    assert all(gate["certified"] for gate in gates[-5:])


async def test_a_process_of_its_own_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the records in parts, and is asked once for all who want to know."""
    monkeypatch.setattr(whatif, "CHUNK", 16)
    asked: list[int] = []
    few = question(records=logs.traffic(20))

    def once() -> Question:
        asked.append(1)
        return few

    whole = WhatIf(once)
    first, second = await whole.answer(), await whole.answer()
    assert first is second and len(asked) == 1
    assert first == answer(few)


async def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, and the next question is a new one."""
    monkeypatch.setattr(whatif, "__name__", "governor_server.no_such_module")
    with pytest.raises(WhatIfFailed, match="no_such_module"):
        await WhatIf(question).answer()


def test_records_are_packed_in_parts() -> None:
    """Requests wait while one is packed."""
    parts = batches(TRAFFIC)
    assert [record for part in parts for record in part] == TRAFFIC
    assert max(map(len, parts)) <= whatif.CHUNK < len(TRAFFIC)
