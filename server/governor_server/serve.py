"""Running the proxy: the socket, the engine or the upstream, the web server, and taking all down again."""

from __future__ import annotations

import errno
import http.client
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from governor_server.app import GovernorApp, create_app
from governor_server.console import Console
from governor_server.engine import Engine
from governor_server.errors import PortInUse, ServerError, UpstreamUnreachable
from governor_server.settings import ServerSettings, Settings

KEEP_ALIVE_S = 30
"""Longer than the 5 s after which common clients drop an idle connection: they never race our closing it."""


def run(settings: Settings, console: Console) -> None:
    """Serve until interrupted. Raises `ServerError` for whatever an operator can put right."""
    _configure_logging(settings.server.log_level)
    # A termination then unwinds the stack as Ctrl-C does, and takes the engine down on its way. Scripts start
    # their background jobs with SIGINT ignored; it must end us before the web server takes it over, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.server))
        if settings.engine.model is None:
            url = checked_upstream(settings)
            _serve(settings, create_app(settings, upstream_url=url), listener, console)
            return
        engine = stack.enter_context(Engine(settings.engine, console.say, console.progress))
        engine.wait_ready()
        app = create_app(settings, upstream_url=engine.url, vocab_size=engine.vocab_size)
        _serve(settings, app, listener, console, engine)


def listen(settings: ServerSettings) -> socket.socket:
    """The bound socket of the proxy; taken first, since the engine that comes next needs minutes to start."""
    where = f"port {settings.port} on {settings.host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ServerError(f"cannot listen on {settings.host}: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{where} is in use by another program: choose another with --port") from None
        raise ServerError(f"cannot listen to {where}: {error}") from None
    return listener


def checked_upstream(settings: Settings) -> str:
    """The upstream's address, when something that speaks HTTP answers there."""
    url = settings.upstream.url
    assert url is not None
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=settings.upstream.connect_timeout_s)
    try:
        connection.request("GET", f"{parts.path}/health")
        connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise UpstreamUnreachable(
            f"nothing answers at {url}: {error} (start that server, or correct --upstream)"
        ) from None
    finally:
        connection.close()
    return url


class Server(uvicorn.Server):
    """uvicorn, telling when it serves and why it stopped."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self.failure: ServerError | None = None
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_started()

    def fail(self, failure: ServerError) -> None:
        """Shut down, because going on makes no sense. May be called from any thread."""
        self.failure = failure
        self.should_exit = True


def _serve(
    settings: Settings,
    app: GovernorApp,
    listener: socket.socket,
    console: Console,
    engine: Engine | None = None,
) -> None:
    server = Server(_configuration(settings, app), lambda: _announce(settings, app, listener, console))
    if engine is not None:
        engine.supervise(server.fail, on_restart=app.metrics.engine_restarts_total.inc)
    # uvicorn shuts down in good order on a signal, then raises it again; it exits if it cannot start.
    with suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise ServerError("the proxy could not start; the lines above say why")
    console.say("stopped")


def _configuration(settings: Settings, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Upstream's own are passed on.
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.server.shutdown_grace_s,
    )


def _announce(settings: Settings, app: GovernorApp, listener: socket.socket, console: Console) -> None:
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    governance = settings.governance
    console.say(
        f"ready: base_url http://{host}:{port}/v1 (mode {governance.mode}, policy {governance.policy})"
    )
    if governance.mode == "observe":
        console.say("it measures and withholds nothing; --mode enforce acts")
    if not settings.tools.read_only:
        console.say(
            "no tool is listed as read-only: only tools that say so themselves (readOnlyHint) are judged"
        )


def _configure_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
