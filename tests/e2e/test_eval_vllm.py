"""The evaluation against a real vLLM: small, and with every part of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from governor_server.engine import Engine

EVAL = [sys.executable, "-m", "governor_server.cli", "eval"]
POLICIES = ("observe", "rules", "threshold", "calibrated", "cap", "pruning")
TASKS = 40


def test_an_evaluation_holds_together(engine: Engine, tmp_path: Path) -> None:
    """What must be so whatever the model does: effects are never withheld, observing changes nothing, a cap
    of none makes no call, and the figures of the parts agree."""
    size = ["--tasks", str(TASKS), "--seeds", "1", "--learn", "240", "--timed", "20", "--max-harm", "0.1"]
    command = [*EVAL, "--upstream", engine.url, *size, "--policies", *POLICIES, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    points = {f"{one['policy']} {one['setting']}".strip(): one for one in summary["policies"]}

    ungoverned = points["ungoverned"]
    assert ungoverned["tasks"] == TASKS
    assert all(
        one["effectful_withheld"] == 0 < one["effectful"] for one in points.values() if one["withheld"]
    )
    for name in ("observe", "pruning none"):
        assert points[name]["calls"] == ungoverned["calls"]
        assert points[name]["total_tokens"] == ungoverned["total_tokens"]
    assert points["cap calls=0"]["calls"]["value"] < 0.3 * ungoverned["calls"]["value"]
    # Now and then this model reads a result only the second time.
    assert points["rules"]["withheld_needed"] <= 0.1 * points["rules"]["withheld"] > 0
    assert points["threshold margin=0.9"]["avoidable_removed"]["value"] >= 0.7
    assert points["threshold margin=0.9"]["probe_tokens"] > 0

    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == summary["calls"]["read_only"]
    assert sum(row["avoidable"] for row in rows) == summary["calls"]["avoidable"]
    assert summary["free_label"]["agreement"] > 0.5
    areas = {one["signal"]: one["auroc"] for one in summary["signals"]}
    assert areas["probe_least_margin"]["value"] > 0.7

    arms = summary["real_servers"]
    assert set(arms) == {"ungoverned", "threshold", "calibrated"}
    assert arms["ungoverned"]["ratio"]["value"] == 1.0
    assert all(one["effectful_withheld"] == 0 for one in arms.values())
    assert arms["threshold"]["calls"]["value"] < arms["ungoverned"]["calls"]["value"]
    gate = summary["learning"]["gates"]["0.1"]
    if gate["certificate"]:
        assert arms["calibrated"]["calls"]["value"] < arms["ungoverned"]["calls"]["value"]
    for name in ("frontier", "signals", "calibration", "pilot"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
