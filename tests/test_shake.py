"""The command that runs the tests over and over: what it plans, what it reads, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.shake import E2E, UNIT, Result, main, outcome, parser, plan, read, remaining, table

REPORT = """\
<testsuites><testsuite>
<testcase classname="tests.a" name="test_right"/>
<testcase classname="tests.a" name="test_wrong[1]"><failure/></testcase>
<testcase classname="tests.b" name="test_broken"><error/></testcase>
<testcase classname="tests.b" name="test_left_out"><skipped/></testcase>
</testsuite></testsuites>
"""
FLAKY = "def test_right():\n    pass\n\ndef test_wrong():\n    assert 0\n"


def result(seed: int, *failed: str, suite: str = UNIT, busy: bool = False) -> Result:
    return Result(suite, busy, seed, 10, failed, 60.0, 0.5)


def test_each_run_has_a_seed_of_its_own() -> None:
    """The first is the one that was given, so that one run can be repeated alone."""
    runs = plan(parser().parse_args(["--runs", "2", "--busy-runs", "1", "--e2e-runs", "1", "--seed", "7"]))
    assert [(run.suite, run.busy, run.seed) for run in runs] == [
        (UNIT, False, 7),
        (UNIT, False, 8),
        (UNIT, True, 9),
        (E2E, False, 10),
        (E2E, True, 11),
    ]


def test_going_on_does_only_what_is_left() -> None:
    """Of each kind, whatever its seeds were."""
    runs = plan(parser().parse_args(["--runs", "3", "--busy-runs", "2", "--e2e-runs", "0", "--seed", "1"]))
    left = remaining(runs, [result(90), result(91), result(92, busy=True)])
    assert [(run.busy, run.seed) for run in left] == [(False, 3), (True, 5)]


def test_a_report_names_the_tests_that_failed(tmp_path: Path) -> None:
    """Also those that broke before they began; a report that is not there or only half written has none."""
    report = tmp_path / "report.xml"
    assert outcome(report) == (0, [])
    report.write_text(REPORT)
    assert outcome(report) == (4, ["tests.a::test_wrong[1]", "tests.b::test_broken"])
    report.write_text(REPORT[:90])
    assert outcome(report) == (0, [])


def test_the_table_counts_runs_and_gives_the_seeds_of_each_failure() -> None:
    """Which is what repeats them."""
    printed = table([result(1), result(2, "a::b"), result(3, "a::b", busy=True), result(4, suite=E2E)])
    assert "| unit | quiet | 2 | 1 | 1 | 10 | 1.0 | 0.5 |" in printed
    assert "| unit | busy | 1 | 0 | 1 | 10 | 1.0 | 0.5 |" in printed
    assert "| end-to-end | quiet | 1 | 1 | 0 | 10 | 1.0 | 0.5 |" in printed
    assert "| `a::b` | 2 | 2 (quiet), 3 (busy) |" in printed
    assert "No test failed." in table([result(1)])


@pytest.mark.slow
def test_a_test_that_fails_is_found_and_kept(tmp_path: Path) -> None:
    """On quiet cores and on busy ones; and what was done before is not done again."""
    flaky, out = tmp_path / "test_flaky.py", tmp_path / "out"
    flaky.write_text(FLAKY)
    runs = ["--runs", "1", "--busy-runs", "1", "--e2e-runs", "0", "--jobs", "0", "--out", str(out)]
    assert main([*runs, "--only", str(flaky)]) == 1
    done = read(out / "results.jsonl")
    assert [(one.busy, one.tests, len(one.failed)) for one in done] == [(False, 2, 1), (True, 2, 1)]
    assert "test_flaky::test_wrong" in (out / "table.md").read_text()
    assert main([*runs, "--only", str(flaky), "--resume"]) == 1
    assert read(out / "results.jsonl") == done
