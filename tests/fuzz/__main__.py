"""`make fuzz`: broken requests through a proxy to an upstream that answers with broken bodies and streams.

Each case comes from the seed and its number, so that `--seed S --only N` plays it again. What goes wrong is
printed and written to build/fuzz/, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

from governor_server.console import Console
from tests.fuzz.cases import case
from tests.fuzz.lane import Complaints, Lane, lane

MODES = ("observe",) * 3 + ("enforce",) * 5
OUT = Path("build/fuzz")
BAR = 30


class Fuzz:
    """Plays cases of a seed in both modes until the time is up: those with the `numbers`, or all."""

    def __init__(self, seed: int, seconds: float, console: Console, numbers: Sequence[int] = ()) -> None:
        self.seed = seed
        self.played = 0
        self.findings: list[str] = []
        self._numbers = {mode: iter(numbers or count()) for mode in ("observe", "enforce")}
        self._console = console
        self._start = time.monotonic()
        self._seconds = seconds
        self._complaints = Complaints()

    async def run(self) -> None:
        """All lanes side by side."""
        asyncio.get_running_loop().set_exception_handler(self._stray)
        root = logging.getLogger()
        root.addHandler(self._complaints)
        try:
            async with AsyncExitStack() as stack:
                lanes = [await stack.enter_async_context(lane(mode, self._complaints)) for mode in MODES]
                # The web servers have taken the signals for themselves by now.
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, self._stop)
                await asyncio.gather(*(self._play(one) for one in lanes))
        finally:
            root.removeHandler(self._complaints)
        for said in self._complaints.of.get("", []):
            self._found("of no case", said, {})

    def summary(self) -> str:
        """What was done, in a few lines."""
        spent = time.monotonic() - self._start
        lines = [f"{self.played} cases in {spent:.0f} s, {len(self.findings)} findings (seed {self.seed})"]
        for where, times in sorted(self._complaints.open.items()):
            lines.append(f"  failed open in {where}: {times}")
        return "\n".join(lines)

    def _stop(self) -> None:
        self._seconds = 0.0

    async def _play(self, lane: Lane) -> None:
        mode = lane.proxy.app.settings.governance.mode
        for number in self._numbers[mode]:
            if (left := self._start + self._seconds - time.monotonic()) <= 0:
                return
            played = case(self.seed, number)
            if wrong := await lane.run(played):
                self._found(f"{number} ({mode})", wrong, {"mode": mode, **played.as_dict()})
            self.played += 1
            if self.played % 20 == 0:
                self._progress(left)

    def _progress(self, left: float) -> None:
        share = 1 - left / max(self._seconds, left)
        done = int(BAR * share)
        bar = "#" * done + "-" * (BAR - done)
        self._console.progress(f"[{bar}] {share:4.0%}  {self.played} cases, {len(self.findings)} findings")

    def _found(self, name: str, wrong: str, detail: dict[str, object]) -> None:
        self.findings.append(wrong)
        OUT.mkdir(parents=True, exist_ok=True)
        path = OUT / f"{self.seed}-{len(self.findings)}.json"
        path.write_text(json.dumps({"wrong": wrong, **detail}, indent=1))
        self._console.say(f"case {name}: {wrong[:400]} -> {path}")

    def _stray(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._found("of no case", f"{context.get('message')}: {context.get('exception')!r}", {})


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of the cases (drawn)")
    parser.add_argument("--only", type=int, help="the number of the only case to play")
    given = parser.parse_args()
    console = Console()
    console.say(f"fuzz: seed {given.seed}, {given.seconds:.0f} s")
    logging.getLogger().addHandler(logging.NullHandler())
    numbers = [] if given.only is None else [given.only]
    fuzz = Fuzz(given.seed, given.seconds, console, numbers)
    asyncio.run(fuzz.run())
    console.say(fuzz.summary())
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
