"""What `governor report` takes, and what it does. Drawing is imported when it is run."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from governor_server.console import Console
from governor_server.errors import ServerError, SettingsError

if TYPE_CHECKING:
    from governor.standing import Key, Standing
    from governor_server.report.document import Document

EXAMPLES = """\
examples:
  governor report                                        the last seven days of the proxy's own records
  governor report --since 24h --out yesterday.html
  governor report --since 2026-11-01 --until 2026-12-01 --png pictures
  governor report records.db --gates gates.json          records that were copied from elsewhere
  governor report build/eval/summary.json                a run of governor eval

The page is one HTML file: its charts are in it, it asks for nothing from anywhere, and it prints. --png also
writes the charts as pictures. A conversation belongs to the range that it began in, with all of its calls.
SOURCE is a store's file, also while the proxy writes it; records as JSON or JSON Lines; what GET
/governor/decisions answered; or the summary.json of an evaluation.
"""

UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
DEFAULT_RANGE_S = 7 * UNITS_S["d"]


def add(subparsers: Any) -> None:
    """The command."""
    report = subparsers.add_parser(
        "report",
        help="write one page on what the governor did, or on an evaluation, to be sent to somebody",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        nargs="?",
        help="records or an evaluation (store.path of the settings)",
    )
    report.add_argument(
        "--since", metavar="WHEN", type=moment, help="30m, 24h, 7d, 2w ago, or a date like 2026-11-01 (7d)"
    )
    report.add_argument("--until", metavar="WHEN", type=moment, help="the same (now)")
    report.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("governor-report.html"),
        help="(governor-report.html)",
    )
    report.add_argument("--png", metavar="FOLDER", type=Path, help="also write the charts as PNG into it")
    report.add_argument(
        "--gates", metavar="FILE", type=Path, help="the gates (calibration.path, if SOURCE is left out)"
    )
    report.add_argument("--config", metavar="FILE", type=Path, help="YAML file, as for `governor serve`")
    report.set_defaults(run=run, extra="report")


def moment(text: str) -> float:
    """Seconds since the epoch: of so long ago, or of a date in the local time."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if ago:
        return time.time() - float(ago[1]) * UNITS_S[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write 30m, 24h, 7d, 2w or 2026-11-01"
        ) from None


def run(arguments: argparse.Namespace) -> int:
    """Writes the report and says its headline. Raises `ServerError`."""
    console = Console()
    document = _document(arguments, console)
    _write(document, arguments.out, arguments.png)
    console.say(document.headline)
    console.say(f"wrote {arguments.out}" + (f" and the charts in {arguments.png}" if arguments.png else ""))
    return 0


def _document(arguments: argparse.Namespace, console: Console) -> Document:
    from governor_server.report import evaluated

    source: Path | None = arguments.source
    if source is not None and source.suffix == ".json" and source.is_file():
        data = _json(source)
        if evaluated.is_evaluation(data):
            if arguments.since is not None or arguments.until is not None:
                raise SettingsError(f"{source} is an evaluation, which has no --since and no --until")
            try:
                return evaluated.document(data, console.progress)
            except (KeyError, TypeError) as error:
                raise SettingsError(
                    f"{source} is of another version: {error!r} is missing; run governor eval again"
                ) from None
    return _of_records(arguments, console)


def _of_records(arguments: argparse.Namespace, console: Console) -> Document:
    from governor.prices import Prices
    from governor_server.recorded import Log, LogError, outcomes, turns
    from governor_server.report import traffic

    source, gates, prices = arguments.source, arguments.gates, Prices()
    if source is None:
        from governor_server.settings import Settings

        settings = Settings.load(arguments.config)
        source, gates = Path(settings.store.path), gates or Path(settings.calibration.path)
        prices = settings.prices.build()
    console.progress(f"reading {source}")
    records = Log.read(source).records
    now = time.time()
    until = now if arguments.until is None else arguments.until
    since = until - DEFAULT_RANGE_S if arguments.since is None else arguments.since
    if since >= until:
        raise SettingsError("--since is not before --until: nothing lies between them")
    found = traffic.Traffic.of(
        records, turns(source), outcomes(source), prices, now=now, since=since, until=until
    )
    if not found.talks:
        oldest, newest = (
            datetime.fromtimestamp(end(record.created for record in records)).strftime("%Y-%m-%d %H:%M")
            for end in (min, max)
        )
        raise LogError(
            f"no conversation of {source} began in this range; it has calls from {oldest} to {newest}: "
            "give --since and --until"
        )
    return traffic.document(found, _standings(gates, required=arguments.gates is not None), console.progress)


def _standings(path: Path | None, *, required: bool) -> dict[Key, Standing] | None:
    from governor.errors import GovernorError
    from governor.standing import restored

    if path is None or not (required or path.is_file()):
        return None
    try:
        return restored(_json(path))
    except (GovernorError, TypeError) as error:
        raise SettingsError(f"{path} holds no gates: {error}") from None


def _json(path: Path) -> Any:
    """The value in a file, None where it is not one of JSON: it may be JSON Lines."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None


def _write(document: Document, out: Path, png: Path | None) -> None:
    from governor_server.report.document import page

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(document), "utf-8")
        if png is not None:
            png.mkdir(parents=True, exist_ok=True)
            for picture in document.pictures:
                (png / f"{picture.name}.png").write_bytes(picture.png)
    except OSError as error:
        raise ServerError(f"cannot write {error.filename or out}: {error.strerror or error}") from None
