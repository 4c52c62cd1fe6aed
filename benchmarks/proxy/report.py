"""The figures as tables for people, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.proxy.arms import DIRECT, ENFORCING, FLOOR, LITELLM, MEASURING, OBSERVING, OURS, PASSING
from benchmarks.proxy.machine import machine_line
from benchmarks.proxy.recordings import CALL, RESPONSE, STREAM, WORKLOADS
from benchmarks.proxy.summary import CHUNKS

BEGIN: Final = "<!-- bench: written by `make bench` -->"
END: Final = "<!-- bench: end -->"
PICTURE: Final = "proxy.png"
COLOURS: Final = {
    DIRECT: "0.5",
    FLOOR: "0.3",
    PASSING: "tab:cyan",
    MEASURING: "tab:purple",
    OBSERVING: "tab:blue",
    ENFORCING: "tab:green",
    LITELLM: "tab:red",
}
TITLES: Final = {
    RESPONSE.name: "A whole response",
    STREAM.name: f"A stream of {CHUNKS[STREAM.name]} events, {STREAM.measured_chunks} with 20 logprobs",
    CALL.name: "A stream that ends in a call, judged by a probe when enforcing",
}

Summary = Mapping[str, Any]


def tables(summary: Summary) -> Iterator[str]:
    """Lines of Markdown."""
    yield machine_line(summary["run"])
    run = summary["run"]
    yield (
        f"Seed {run['seed']}, {summary['rounds']} rounds of cells of {run['cell_seconds']:g} s. Medians of "
        "the rounds, and in brackets between which values the middle half of them lies."
    )
    yield ""
    yield "| promised | limit | measured | | the bare relay | passing |"
    yield "|---|---|---|---|---|---|"
    for target in summary["targets"]:
        sign = "≥" if target["least"] else "≤"
        met = "met" if target["met"] else "**missed**"
        others = ("" if target[arm] is None else f"{target[arm]:.2f}" for arm in (FLOOR, PASSING))
        measured = f"{sign} {target['limit']:g} | {target['measured']:.2f} | {met}"
        yield f"| {target['name']} | {measured} | {' | '.join(others)} |"
    yield ""
    yield "**Where a request's CPU goes (ms), with one client**"
    yield ""
    yield from _shares(summary)
    for workload in WORKLOADS:
        yield ""
        yield f"**{TITLES[workload.name]}**"
        yield ""
        yield from _workload(summary, workload.name)
    yield ""
    yield "**Resident memory (MB)**"
    yield ""
    yield "| | after the first round | at the end | minutes | growth over the second half |"
    yield "|---|---|---|---|---|"
    for arm, kept in summary["memory"].items():
        first, last = kept["rss_mb"][0], kept["rss_mb"][-1]
        yield f"| {arm} | {first:.1f} | {last:.1f} | {kept['minutes'][-1]:.1f} | {kept['growth_mb']:+.1f} |"


def _shares(summary: Summary) -> Iterator[str]:
    """CPU a request, and in brackets what of it is above a bare relay's."""
    yield "| | " + " | ".join(f"{workload.name} (above the relay)" for workload in WORKLOADS) + " |"
    yield "|---" * (len(WORKLOADS) + 1) + "|"
    least = str(min(summary["run"]["clients"]))
    for arm in (FLOOR, *OURS):
        figures = [summary["arms"][arm][workload.name][least] for workload in WORKLOADS]
        cells = [
            f"{one['cpu_ms_per_request']['median']:.3f} ({one['cpu_ms_above_floor']['median']:.3f})"
            for one in figures
        ]
        yield f"| {arm} | " + " | ".join(cells) + " |"


def _workload(summary: Summary, workload: str) -> Iterator[str]:
    chunk = bool(CHUNKS[workload])
    columns = ["clients", "", "added p50 (ms)", "added p99 (ms)"]
    columns += ["added to the first token, p50 (ms)"] if chunk else []
    columns += ["requests a second", "CPU a request (ms)"]
    columns += ["CPU a chunk (µs)", "above the relay (µs)"] if chunk else []
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for clients in summary["run"]["clients"]:
        for arm, figures in summary["arms"].items():
            own = figures[workload][str(clients)]
            if arm == DIRECT:
                added = [f"({_spread(own['last_p50_ms'], 2)})", f"({_spread(own['last_p99_ms'], 2)})"]
                first, cpu, chunks = "", "", ["", ""]
            else:
                added = [_spread(own["added_p50_ms"], 2), _spread(own["added_p99_ms"], 2)]
                first = _spread(own["added_first_p50_ms"], 2)
                cpu = _spread(own["cpu_ms_per_request"], 3)
                chunks = [
                    _spread(own[key], 1) for key in ("cpu_us_per_chunk", "cpu_us_per_chunk_above_floor")
                ]
            cells = [str(clients), arm, *added]
            cells += [first] if chunk else []
            cells += [f"{own['requests_per_s']['median']:.0f}", cpu]
            cells += chunks if chunk else []
            yield "| " + " | ".join(cells) + " |"


def _spread(value: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def print_table(summary: Summary) -> None:
    """To the terminal."""
    print("\n".join(tables(summary)))


def write_readme(summary: Summary, readme: Path) -> None:
    """Put the tables between the markers of `readme`, and the picture beside it."""
    picture(summary, readme.with_name(PICTURE))
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    lines = "\n".join(tables(summary))
    readme.write_text(
        f"{before}{BEGIN}\n![Added latency, CPU and memory]({PICTURE})\n\n{lines}\n{END}{after}"
    )


def picture(summary: Summary, path: Path) -> None:
    """Added latency, CPU a request, and memory over the run, of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (latency, cpu, memory) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    clients = summary["run"]["clients"]
    proxies = [arm for arm in summary["arms"] if arm != DIRECT]
    for arm in proxies:
        own = [summary["arms"][arm][RESPONSE.name][str(number)] for number in clients]
        for key, style in (("added_p50_ms", "-"), ("added_p99_ms", "--")):
            middle = [one[key]["median"] for one in own]
            latency.plot(clients, middle, style, color=COLOURS[arm], marker="o", label=f"{arm}, {key[6:9]}")
        latency.fill_between(
            clients,
            [max(1e-3, one["added_p50_ms"]["low"]) for one in own],
            [max(1e-3, one["added_p50_ms"]["high"]) for one in own],
            color=COLOURS[arm],
            alpha=0.2,
        )
        kept = summary["memory"][arm]
        memory.plot(kept["minutes"], kept["rss_mb"], color=COLOURS[arm], label=arm)
    names = [workload.name for workload in WORKLOADS]
    width = 0.8 / max(1, len(proxies))
    for place, arm in enumerate(proxies):
        values = [
            summary["arms"][arm][name][str(clients[0])]["cpu_ms_per_request"]["median"] for name in names
        ]
        at = [number + place * width for number in range(len(names))]
        bars = cpu.bar(at, values, width, color=COLOURS[arm], label=arm)
        cpu.bar_label(bars, fmt="%.2f", fontsize=7)
    latency.set(xscale="log", yscale="log", xlabel="clients", ylabel="ms", title="Added to a response")
    latency.set_xticks(clients, [str(number) for number in clients])
    cpu.set(yscale="log", ylabel="ms", title=f"CPU a request, {clients[0]} client")
    cpu.set_xticks([number + 0.4 - width / 2 for number in range(len(names))], names)
    memory.set(ylim=0, xlabel="minutes", ylabel="MB", title="Resident memory")
    for axes in (latency, cpu, memory):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
