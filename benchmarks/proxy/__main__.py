"""How much the proxy adds to a request: latency, CPU and memory, with the same upstream and clients.

Rounds of short cells, the arms of each round one after the other in a random order: direct, a bare relay, the
governor passing requests on, measuring, observing and enforcing, and LiteLLM's proxy. The proxies run on one
core, the upstream and the clients on another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import uvloop
from tqdm import tqdm

from benchmarks.proxy.arms import (
    DIRECT,
    FLOOR,
    LITELLM,
    LITELLM_KEY,
    OURS,
    PASSING,
    Arm,
    governor,
    litellm,
    relay,
    settings,
)
from benchmarks.proxy.cells import Cell, marks_from, measure
from benchmarks.proxy.machine import described
from benchmarks.proxy.processes import ProcessFailed, running
from benchmarks.proxy.recordings import WORKLOADS, Workload
from benchmarks.proxy.report import print_table, write_readme
from benchmarks.proxy.summary import MB, Memory, Results
from governor_server.engine import free_port

ROOT: Final = Path(__file__).parents[2]
CLIENTS: Final = ROOT / ".venv" / "clients" / "bin" / "python"

EXAMPLES: Final = """\
examples:
  python -m benchmarks.proxy                      ten minutes, all arms; writes benchmarks/README.md too
  python -m benchmarks.proxy --quick              does it still work? half a minute, no README
  python -m benchmarks.proxy --litellm PYTHON     with the LiteLLM of another environment
"""


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proxy",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="rounds begin for so long (default: %(default)s)"
    )
    parser.add_argument("--cell-seconds", type=float, default=1.0, help="of one cell (default: %(default)s)")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 4, 16, 64], help="at the same time (default: 1 4 16 64)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms (default: %(default)s)")
    parser.add_argument(
        "--cores",
        type=int,
        nargs=2,
        help="the proxies' and the clients' (default: the last two that are allowed)",
    )
    parser.add_argument(
        "--litellm",
        type=Path,
        default=CLIENTS,
        metavar="PYTHON",
        help="of an environment with litellm[proxy]; left out where there is none (default: .venv/clients)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="(default: build/bench)")
    parser.add_argument(
        "--readme",
        type=Path,
        default=ROOT / "benchmarks" / "README.md",
        help="(default: benchmarks/README.md)",
    )
    parser.add_argument("--quick", action="store_true", help="one round of short cells, README untouched")
    parsed = parser.parse_args(given)
    if parsed.quick:
        parsed.minutes, parsed.cell_seconds, parsed.clients = 0.0, min(parsed.cell_seconds, 0.2), [1, 4]
    allowed = sorted(os.sched_getaffinity(0))
    parsed.cores = parsed.cores or [allowed[-1], allowed[-2] if len(allowed) > 1 else allowed[-1]]
    return parsed


@contextlib.contextmanager
def started(arguments: argparse.Namespace, at: Path) -> Iterator[list[Arm]]:
    """All arms, ready."""
    proxies, clients = arguments.cores
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {clients})
        port = free_port("127.0.0.1", 0)
        command = [sys.executable, "-m", "benchmarks.proxy.upstream", "--port", str(port)]
        stack.enter_context(running("the upstream", command, port, at / "upstream.log", core=clients))
        arms = [Arm(DIRECT, port)]
        program = stack.enter_context(relay(port, at, proxies))
        arms.append(Arm(FLOOR, program.port, program))
        for name in OURS:
            configuration = settings(name, at / f"{name}.db")
            program = stack.enter_context(governor(name, configuration, port, at, proxies))
            headers = {"x-governor": "off"} if name == PASSING else {}
            arms.append(Arm(name, program.port, program, headers=headers))
        if (arguments.litellm.parent / "litellm").exists():
            program = stack.enter_context(litellm(arguments.litellm, port, at, proxies))
            arms.append(Arm(LITELLM, program.port, program, LITELLM_KEY))
        elif not arguments.quick:
            print(
                f"no litellm beside {arguments.litellm}: that arm is left out (make clients)", file=sys.stderr
            )
        yield arms


async def rounds(arms: Sequence[Arm], arguments: argparse.Namespace) -> Results:
    """Measure until the time is up."""
    order = random.Random(arguments.seed)
    marks = marks_from(arguments.seed << 32)
    results = Results()
    memory: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms if arm.program}
    cells = [(workload, clients) for workload in WORKLOADS for clients in arguments.clients]
    start = time.monotonic()
    with tqdm(total=len(cells) * len(arms), unit="cell", disable=None) as bar:
        while not results.rounds or time.monotonic() - start < 60 * arguments.minutes:
            bar.reset()
            bar.set_description(
                f"round {len(results.rounds) + 1}, minute {(time.monotonic() - start) / 60:.1f}"
            )
            round: list[Cell] = []
            for workload, clients in cells:
                for arm in order.sample(list(arms), len(arms)):
                    round.append(await _cell(arm, workload, clients, arguments.cell_seconds, marks))
                    bar.update()
            results.rounds.append(round)
            for arm in arms:
                if arm.program:
                    minute = (time.monotonic() - start) / 60
                    memory[arm.name].append((minute, arm.program.rss_bytes() / MB))
    results.memory = {
        name: Memory([minute for minute, _ in kept], [rss for _, rss in kept])
        for name, kept in memory.items()
    }
    return results


async def _cell(arm: Arm, workload: Workload, clients: int, seconds: float, marks: Iterator[bytes]) -> Cell:
    if arm.program and arm.program.process.poll() is not None:
        raise ProcessFailed(f"{arm.name} ended with {arm.program.process.returncode}: see {arm.program.log}")
    return await measure(arm, workload, clients, seconds, marks)


def main(given: Sequence[str] | None = None) -> int:
    arguments = arguments_of(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="governor-bench-") as folder:
        try:
            with started(arguments, Path(folder)) as arms:
                results = uvloop.run(rounds(arms, arguments))
        except ProcessFailed as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    summary = {"run": described(arguments), "rounds": len(results.rounds), **results.as_dict()}
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print_table(summary)
    if not arguments.quick:
        write_readme(summary, arguments.readme)
    if not results.faithful():
        print("bench: some clients did not get what they must get", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
