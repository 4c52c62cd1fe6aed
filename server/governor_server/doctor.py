"""`governor doctor`: say which tiers of the governor a running server can carry, and what to change."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from yarl import URL

from governor.calls import tool_names
from governor.request import Json
from governor_server.console import Console
from governor_server.diagnosis import Diagnosis
from governor_server.errors import SettingsError, UpstreamUnreachable
from governor_server.evidence import Answer, at
from governor_server.examination import SAMPLE, Ask, Examination
from governor_server.settings import Settings
from governor_server.upstream import Upstream, UpstreamError


class NothingToExamine(UpstreamUnreachable):
    """Nothing was examined; that is told apart from an upstream that lacks something."""

    exit_code = 2


def run(arguments: argparse.Namespace) -> int:
    """The command: print the diagnosis, and return its exit code. Raises `ServerError`."""
    overrides: dict[str, Any] = {"upstream": {"read_timeout_s": arguments.timeout}}
    if arguments.upstream is not None:
        overrides["upstream"]["url"] = arguments.upstream
        overrides["engine"] = {"model": None}
    if arguments.api_key is not None:
        overrides["upstream"]["api_key"] = arguments.api_key
    settings = Settings.load(arguments.config, overrides)
    sample = SAMPLE if arguments.tools is None else read_sample(arguments.tools)
    console = Console()
    diagnosis = asyncio.run(examine(settings, arguments.model, sample, console.progress))
    console.say(f"examined {diagnosis.url}")
    text = json.dumps(diagnosis.as_dict(), indent=2) + "\n" if arguments.json else diagnosis.as_text()
    # What the model said need not exist in the terminal's encoding.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    return diagnosis.exit_code


async def examine(
    settings: Settings, model: str | None, sample: Json, progress: Callable[[str], None] = lambda _: None
) -> Diagnosis:
    """Examine the upstream of `settings`. Raises `NothingToExamine` when nothing answers there."""
    url, key = settings.upstream.url, settings.upstream.api_key
    timeout_s = settings.upstream.read_timeout_s
    if url is None:
        raise SettingsError("nothing to examine: give --upstream URL (see governor doctor --help)")
    try:
        URL(url)
    except ValueError as error:
        raise SettingsError(f"--upstream {url}: {error}") from None
    upstream = Upstream(
        url,
        api_key=key.get_secret_value() if key else None,
        connect_timeout_s=settings.upstream.connect_timeout_s,
        read_timeout_s=timeout_s,
    )

    examination = Examination(
        asking(upstream, timeout_s), settings, model=model, sample=sample, nonce=secrets.token_hex(8)
    )
    async with upstream:
        try:
            return Diagnosis(url, await examination.findings(progress))
        except UpstreamError as error:
            raise NothingToExamine(f"{error} (start that server, or correct --upstream)") from None


def asking(upstream: Upstream, timeout_s: float) -> Ask:
    """Requests to `upstream`, each with `timeout_s` for its whole answer."""

    async def ask(method: str, path: str, body: Json | None) -> Answer:
        start = perf_counter()
        headers = [] if body is None else [(b"content-type", b"application/json")]
        data = b"" if body is None else orjson.dumps(body)
        try:
            async with (
                asyncio.timeout(timeout_s),
                upstream.request(method, path.encode(), headers, data) as response,
            ):
                raw = await response.read()
        except TimeoutError:
            raise UpstreamError("timeout", f"{method} {path} took more than {timeout_s:g} s") from None
        return Answer(response.status, raw, perf_counter() - start)

    return ask


def read_sample(path: Path) -> Json:
    """The messages and tools to try: a chat request, or a list of tools alone. Raises `SettingsError`."""
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise SettingsError(f"{path} is no JSON: {error}") from None
    tools = content if isinstance(content, list) else at(content, "tools")
    if not isinstance(tools, list) or not tools or not all(tool_names(tools)):
        raise SettingsError(f"{path} must hold a list of tools, or a chat request with `tools`")
    messages = at(content, "messages")
    if messages is None:
        asked = f"Call the tool {tool_names(tools)[0]}, with arguments of your choice."
        messages = [{"role": "user", "content": asked}]
    return {"messages": messages, "tools": tools}
