"""How much resident memory the record of a call takes in the proxy.

    python -m benchmarks.record_memory

The calls are those of a recorded stream, each with an id of its own, judged by a recorded forced answer,
which also stands for the one after the result: as much as a record holds.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
from dataclasses import replace
from typing import Final

import orjson

from benchmarks.proxy.arms import VOCABULARY
from benchmarks.proxy.cells import marks_from
from benchmarks.proxy.processes import rss_bytes
from benchmarks.proxy.recordings import CALL, DONE, READ_ONLY, events, marked
from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.policies import ThresholdPolicy
from governor.records import CallRecord
from governor_server import answers, sse
from governor_server.store import RecordStore

GOVERNANCE: Final = Governance(
    vocab_size=VOCABULARY,
    mode=Mode.OBSERVE,
    policy=ThresholdPolicy(),
    catalog=ToolCatalog(read_only=tuple(READ_ONLY)),
)
WARM: Final = 500
"""Records before the first look: what a process takes for its first ones, it takes once."""


def made(mark: bytes, created: float) -> CallRecord:
    """The record of one call, whose ids bear `mark`."""
    exchange = Exchange(CALL.request, GOVERNANCE, conversation=(2 * mark).decode(), now=created)
    exchange.admission()
    reader = sse.EventReader()
    for event in events(CALL.answer):
        for read in reader.feed(marked(event, CALL.answer, mark)):
            if read.data is not None and read.data != DONE:
                exchange.receive(answers.chunk(read, answers.parsed(read.data or b"")))
    exchange.finish()
    step = exchange.review()
    assert CALL.probe is not None and isinstance(step, Ask), "the call was to be judged by a probe"
    exchange.probe_answered(orjson.loads(CALL.probe.body))
    (record,) = exchange.new_records()
    return replace(record, probe_after=record.probe_before, entropy_after=0.0, returned=created)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000, help="(default: %(default)s)")
    records = parser.parse_args().records
    store = RecordStore(":memory:", max_records=WARM + records)
    marks = marks_from(1)
    now = time.time()
    for _ in range(WARM):
        store.put(made(next(marks), now))
    gc.collect()
    before = rss_bytes(os.getpid())
    for _ in range(records):
        store.put(made(next(marks), now))
    gc.collect()
    print(
        f"{(rss_bytes(os.getpid()) - before) / records / 1e3:.1f} KB a record, over {records} of them "
        f"({platform.machine()}, Python {platform.python_version()})"
    )


if __name__ == "__main__":
    main()
