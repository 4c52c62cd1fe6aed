"""Long load with faults: what the clients get, what is counted, and what is left when all is over.

The proxy is asked at 80% of what it can take, which is measured first. Meanwhile upstream is killed and
started again, some clients leave before they have their answer, some read slowly, and some frame their
requests in every way there is. Each answer that comes is compared with its recording by hash; afterwards the
proxy must hold no more than before. Where a Redis is installed (`make redis`), the proxy shares its records
through one, which is killed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.proxy.arms import ENFORCING, OBSERVING, Arm, governor, settings
from benchmarks.proxy.cells import marks_from
from benchmarks.proxy.processes import ProcessFailed, Running
from benchmarks.proxy.summary import MB, Memory
from benchmarks.soak.checks import Check, Snapshot, checks, quiet, rows
from benchmarks.soak.faults import REDIS, Dies, Fault, inject, redis
from benchmarks.soak.load import Load
from governor_server.engine import free_port

ROOT: Final = Path(__file__).parents[2]
CAPACITY_CLIENTS: Final = 16
SAMPLES: Final = 60
"""Of the memory."""
EVENT_S: Final = 0.001
"""From event to event of a stream, so that there are always some for a fault to break."""
MAX_RECORDS: Final = 500
"""Few, so that a short run reaches the bound, too."""

EXAMPLES: Final = """\
examples:
  python -m benchmarks.soak                   ten minutes
  python -m benchmarks.soak --seconds 60      a short one
"""


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="of load (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.8, help="of the capacity that is used (default: %(default)s)"
    )
    parser.add_argument(
        "--capacity-seconds", type=float, default=5.0, help="to measure it (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=float, default=30.0, help="seconds from fault to fault (default: %(default)s)"
    )
    parser.add_argument(
        "--down", type=float, default=1.0, help="seconds that each one lasts (default: %(default)s)"
    )
    parser.add_argument(
        "--leaving", type=float, default=0.05, help="share of clients that leave (default: %(default)s)"
    )
    parser.add_argument(
        "--slow", type=float, default=0.05, help="share that read slowly (default: %(default)s)"
    )
    parser.add_argument(
        "--odd",
        type=float,
        default=0.05,
        help="share in every framing that a client may send (default: %(default)s)",
    )
    parser.add_argument("--mode", choices=("enforce", "observe"), default="enforce", help="of the governor")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="(default: build/soak)")
    parsed = parser.parse_args(given)
    if parsed.every <= parsed.down:
        parser.error("--every must be longer than --down")
    return parsed


@dataclass(frozen=True, slots=True)
class Scene:
    """What runs: the proxy, and what may be broken behind it."""

    proxy: Running
    store: Path
    faults: Sequence[Fault]


@contextlib.contextmanager
def scene(mode: str, at: Path) -> Iterator[Scene]:
    """The proxy on one core, everything else on another. A further server that the proxy depends on belongs
    among the faults."""
    allowed = sorted(os.sched_getaffinity(0))
    core, other = allowed[-1], allowed[max(-2, -len(allowed))]
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {other})
        port = free_port("127.0.0.1", 0)
        command = [sys.executable, "-m", "benchmarks.proxy.upstream", "--port", str(port)]
        command += ["--step", str(EVENT_S)]
        upstream = Dies("the upstream", command, port, at / "upstream.log", other)
        stack.callback(upstream.close)
        upstream.wait_ready()
        store = at / "governor.db"
        configuration = settings(ENFORCING if mode == "enforce" else OBSERVING, store)
        configuration["store"]["max_records"] = MAX_RECORDS
        faults: list[Dies] = [upstream]
        if (shared := redis(at, other)) is not None:
            stack.callback(shared.close)
            shared.wait_ready()
            configuration["store"]["redis_url"] = f"redis://127.0.0.1:{shared.port}"
            faults.append(shared)
        else:
            print("no Redis is installed: the records are not shared (make redis)", flush=True)
        proxy = stack.enter_context(governor("governor", configuration, port, at, core))
        yield Scene(proxy, store, faults)


async def soak(on: Scene, arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm up, measure the capacity, soak, and wait until it is quiet; JSON-ready."""
    arm = Arm("governor", on.proxy.port, on.proxy)
    marks = marks_from(arguments.seed << 32)
    warm = Load(arm, marks, arguments.seed, leaving=0.0, slow=0.0)
    capacity = await warm.capacity(CAPACITY_CLIENTS, arguments.capacity_seconds)
    warm.close()
    before = await asyncio.to_thread(quiet, on.proxy)
    load = Load(arm, marks, arguments.seed, leaving=arguments.leaving, slow=arguments.slow, odd=arguments.odd)
    rate = arguments.share * capacity
    print(f"capacity {capacity:.0f} requests a second; {arguments.seconds:g} s at {rate:.0f}", flush=True)
    memory = Memory([], [])
    sampling = asyncio.create_task(sampled(memory, on.proxy, arguments.seconds / SAMPLES))
    try:
        await asyncio.gather(
            load.run(rate, arguments.seconds),
            inject(on.faults, arguments.seconds, arguments.every, arguments.down),
        )
    finally:
        sampling.cancel()
    load.close()
    after = await asyncio.to_thread(quiet, on.proxy, before)
    return {
        "capacity_per_s": capacity,
        "rate_per_s": rate,
        "seconds": arguments.seconds,
        "mode": arguments.mode,
        "seed": arguments.seed,
        "faults": {fault.name: fault.times for fault in on.faults},
        "before": before,
        "after": after,
        "load": load,
        "memory": memory,
    }


async def sampled(memory: Memory, program: Running, every_s: float) -> None:
    """Adds a sample from time to time, until cancelled."""
    start = time.monotonic()
    while True:
        memory.minutes.append((time.monotonic() - start) / 60)
        memory.rss_mb.append(program.rss_bytes() / MB)
        await asyncio.sleep(every_s)


def judged(found: dict[str, Any], stored: int) -> list[Check]:
    """The checks of what `soak` found, with so many records `stored`."""
    load: Load = found["load"]
    before: Snapshot = found["before"]
    after: Snapshot = found["after"]
    memory: Memory = found["memory"]
    struck = dict(found["faults"])
    unshared = struck.pop(REDIS, 0)
    return list(
        checks(
            load,
            before,
            after,
            memory,
            struck=sum(struck.values()),
            unshared=unshared,
            max_records=MAX_RECORDS,
            stored=stored,
        )
    )


def main(given: Sequence[str] | None = None) -> int:
    arguments = arguments_of(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="governor-soak-") as folder:
        at = Path(folder)
        try:
            with scene(arguments.mode, at) as on:
                found = uvloop.run(soak(on, arguments))
        except ProcessFailed as error:
            print(f"soak: {error}", file=sys.stderr)
            return 1
        finally:
            for log in at.glob("*.log"):
                (arguments.out / log.name).write_bytes(log.read_bytes())
        verdicts = judged(found, rows(on.store))
    load: Load = found["load"]
    summary = {
        **found,
        "load": load.as_dict(),
        "wrong": load.wrong,
        "memory": {**asdict(found["memory"]), "growth_mb": found["memory"].growth_mb},
        "before": found["before"].as_dict(),
        "after": found["after"].as_dict(),
        "checks": [asdict(check) for check in verdicts],
    }
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(", ".join(f"{number} {name}" for name, number in load.as_dict().items()))
    for check in verdicts:
        print(check)
    for wrong in load.wrong:
        print(f"       {wrong}")
    return 0 if all(check.holds for check in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
