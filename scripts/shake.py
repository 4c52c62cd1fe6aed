"""Run the tests over and over, in another order each time, on quiet cores and on busy ones."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNIT, E2E = "unit", "end-to-end"
PROGRESS_S = 30.0
"""Between two lines about a run that goes on, where the output is no terminal."""
SPIN = """\
import os, sys, time
parent, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == parent and time.monotonic() < until:
    sum(range(100_000))
"""
"""Keeps one core busy as long as the parent runs, and no longer than so many seconds."""
EXAMPLES = """\
examples:
  make shake                                    10 runs quiet, 10 busy, and the end-to-end tests 3 times each
  make shake ARGS="--runs 2 --busy-runs 0 --e2e-runs 0"       two runs, a few minutes
  make shake ARGS="--only tests/server --busy-runs 20"        one part of the tests, where a failure was seen
  make shake ARGS="--seed 77 --runs 1 --busy-runs 0 --e2e-runs 0"    the order of one run again
  make shake ARGS="--resume"                    go on where the last one was stopped

Each run is of the tests of `make unit` (with --slow, of `make slow` too), in an order of its own, which its
seed repeats. "Busy" means that as many processes as the machine has cores do nothing but compute meanwhile.
What "quiet" means is up to you: the load before each run stands in the table.

After each run build/shake/ has: table.md, the table that is printed in the end; results.jsonl, one line a
run; and of each run its output (.log) and a report (.xml). A run that hangs is killed and counts as failed.
Whenever you stop it, what was finished counts. The exit code is 0 if no test failed.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one suite."""

    suite: str
    busy: bool
    seed: int

    @property
    def name(self) -> str:
        return f"{self.suite}-{'busy' if self.busy else 'quiet'}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a run. `load` is the number of processes that wanted a core in the minute before it."""

    suite: str
    busy: bool
    seed: int
    tests: int
    failed: Sequence[str]
    seconds: float
    load: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    if results.exists() and not options.resume:
        results.rename(out / f"results-{int(results.stat().st_mtime)}.jsonl")
    done = read(results)
    planned = remaining(plan(options), done)
    print(f"shake: {len(planned)} runs, the first with seed {options.seed}; {out}/table.md grows with each")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, run in enumerate(planned, 1):
            print(f"shake: run {number} of {len(planned)}: {run.suite}, {state(run.busy)}, seed {run.seed}")
            result = carried_out(run, options)
            done.append(result)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            (out / "table.md").write_text(table(done), "utf-8")
            print(f"shake: {result.tests} tests, {len(result.failed)} failed, {result.seconds:.0f} s")
            for test in result.failed:
                print(f"shake:   failed: {test} (see {out / run.name}.log)")
    except KeyboardInterrupt:
        print("shake: stopped; `--resume` goes on")
    print(table(done))
    return 1 if not done or any(result.failed for result in done) else 0


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(
        prog="make shake",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = described.add_argument
    add("--runs", type=int, default=10, metavar="N", help="on cores as they are (10)")
    add("--busy-runs", type=int, default=10, metavar="N", help="on cores that are kept busy (10)")
    add(
        "--e2e-runs",
        type=int,
        default=3,
        metavar="N",
        help="of the end-to-end tests, each way (3)",
    )
    add(
        "--seed", type=int, default=random.randrange(1, 1_000_000), metavar="N",
        help="of the first run; each further one has the next (by chance)",
    )  # fmt: skip
    add("--only", nargs="+", default=["tests"], metavar="PATH", help="files or folders, instead of all tests")
    add("--slow", action="store_true", help="the slow tests too")
    add(
        "--jobs",
        default="auto",
        metavar="N",
        help="processes that share a run (auto: as many as cores)",
    )
    add("--limit", type=float, default=60.0, metavar="MINUTES", help="after which a run is killed (60)")
    add("--resume", action="store_true", help="do what is left of the runs of the last time")
    add("--out", type=Path, default=ROOT / "build" / "shake", metavar="FOLDER", help="(build/shake)")
    return described


def plan(options: argparse.Namespace) -> list[Run]:
    """Quiet runs first."""
    kinds = [
        *[(UNIT, False)] * options.runs,
        *[(UNIT, True)] * options.busy_runs,
        *[(E2E, False)] * options.e2e_runs,
        *[(E2E, True)] * options.e2e_runs,
    ]
    return [Run(suite, busy, options.seed + place) for place, (suite, busy) in enumerate(kinds)]


def remaining(planned: Iterable[Run], done: Iterable[Result]) -> list[Run]:
    """The planned runs without as many of each kind as are done."""
    have: dict[tuple[str, bool], int] = defaultdict(int)
    for result in done:
        have[result.suite, result.busy] += 1
    left = []
    for run in planned:
        have[run.suite, run.busy] -= 1
        if have[run.suite, run.busy] < 0:
            left.append(run)
    return left


def carried_out(run: Run, options: argparse.Namespace) -> Result:
    """Runs the tests, and says how it goes on."""
    report, log = (options.out / f"{run.name}.{kind}" for kind in ("xml", "log"))
    report.unlink(missing_ok=True)
    load, began = os.getloadavg()[0], time.monotonic()
    with kept_busy(run.busy, 60 * options.limit), log.open("wb") as output:
        process = subprocess.Popen(
            command(run, options, report),
            cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            follow(process, log, began + 60 * options.limit)
        finally:
            end(process)
    seconds = time.monotonic() - began
    tests, failed = outcome(report)
    if process.returncode != 0 and not failed:
        failed = [f"the run itself (exit code {process.returncode})"]
    return Result(run.suite, run.busy, run.seed, tests, failed, round(seconds, 1), round(load, 2))


def command(run: Run, options: argparse.Namespace, report: Path) -> list[str]:
    """Of pytest."""
    always = ["-p", "no:cacheprovider", f"--randomly-seed={run.seed}", f"--junit-xml={report}"]
    if run.suite == E2E:
        which = ["tests/e2e"]
    else:
        which = [*options.only, "--ignore=tests/e2e", *([] if options.slow else ["-m", "not slow"])]
        which += ["-n", options.jobs, "--maxprocesses", "8", "--dist", "loadfile"]
    return [sys.executable, "-m", "pytest", *which, *always]


@contextmanager
def kept_busy(busy: bool, seconds: float) -> Iterator[None]:
    """As many processes as there are cores do nothing but compute."""
    spinning = [sys.executable, "-c", SPIN, str(os.getpid()), str(seconds)]
    processes = [subprocess.Popen(spinning) for _ in range(os.cpu_count() or 1 if busy else 0)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def follow(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    """Returns when the process has ended, or has taken too long."""
    terminal, told = sys.stdout.isatty(), time.monotonic()
    while process.poll() is None and (now := time.monotonic()) < deadline:
        if terminal or now - told >= PROGRESS_S:
            told = now
            percent = re.findall(rb"\[ *(\d+)%\]", log.read_bytes()) or [b"0"]
            print(f"shake:   {percent[-1].decode()}%", end="\r" if terminal else "\n", flush=True)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(report: Path) -> tuple[int, list[str]]:
    """How many tests were run, and the names of those that failed."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return 0, []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return len(cases), [f"{case.get('classname')}::{case.get('name')}" for case in failed]


def read(results: Path) -> list[Result]:
    """What was done before."""
    found: list[Result] = []
    for line in results.read_text("utf-8").splitlines() if results.exists() else []:
        # The last one is half there if the machine stopped while it was written.
        with suppress(ValueError):
            found.append(Result(**json.loads(line)))
    return found


def state(busy: bool) -> str:
    return f"{os.cpu_count()} busy cores" if busy else "quiet"


def table(results: Sequence[Result]) -> str:
    """In Markdown: the runs of each kind, then each test that failed, with its seeds."""
    rows = ["| tests | cores | runs | passed | failed | tests a run | minutes a run | load before |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    kinds = sorted({(result.suite != UNIT, result.suite, result.busy) for result in results})
    for _, suite, busy in kinds:
        same = [result for result in results if (result.suite, result.busy) == (suite, busy)]
        passed = sum(not result.failed for result in same)
        minutes, load = (
            statistics.median(values)
            for values in ([one.seconds / 60 for one in same], [one.load for one in same])
        )
        tests = max(result.tests for result in same)
        rows.append(
            f"| {suite} | {'busy' if busy else 'quiet'} | {len(same)} | {passed} | {len(same) - passed} | "
            f"{tests} | {minutes:.1f} | {load:.1f} |"
        )
    seeds: dict[str, list[str]] = defaultdict(list)
    for result in results:
        for test in result.failed:
            seeds[test].append(f"{result.seed} ({'busy' if result.busy else 'quiet'})")
    rows += ["", "| failed | times | seeds |", "|---|---|---|"] if seeds else ["", "No test failed."]
    rows += [f"| `{test}` | {len(found)} | {', '.join(found)} |" for test, found in sorted(seeds.items())]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    # In a log, too, each line is there when it is said.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
