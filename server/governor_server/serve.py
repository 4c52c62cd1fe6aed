"""Running the proxy: the socket, the engine or the upstream, the web server, and taking all down again."""

from __future__ import annotations

import errno
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import uvicorn

from governor_server import extras
from governor_server.access import is_loopback
from governor_server.app import GovernorApp, create_app, tracing_kind
from governor_server.console import Console
from governor_server.engine import Engine
from governor_server.errors import PortInUse, ServerError
from governor_server.gatekeeper import CALIBRATED
from governor_server.logs import LoggedConsole, count_dropped, logging_to
from governor_server.protocol import bounded_protocol
from governor_server.settings import ServerSettings, Settings
from governor_server.shared import Shared
from governor_server.workers import Workers, shared_metrics

KEEP_ALIVE_S = 30
"""Longer than the 5 s after which common clients drop an idle connection: they never race our closing it."""

COLLECT_AFTER = (20_000, 20, 50)
"""For `gc.set_threshold`. One response with logprobs is a thousand containers and more, none of them in a
ring: by the default of 700 the collector looks through them for each response, and finds nothing."""


def run(settings: Settings, console: Console) -> None:
    """Serve until interrupted. Raises `ServerError` for whatever an operator can put right."""
    if settings.tracing.endpoint is not None:
        tracing_kind()  # which tells what is missing before the engine was waited for
    allow_files()
    if (redis := settings.store.redis_url) is not None:
        # A mistake there is told now, and not once the engine has taken its minutes.
        Shared(redis.get_secret_value()).close()
    # A termination then unwinds the stack as Ctrl-C does, and takes the engine down on its way. Scripts start
    # their background jobs with SIGINT ignored; it must end us before the web server takes it over, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(logging_to(sys.stderr, settings.server.log_level, settings.server.log_format))
        if settings.server.log_format == "json":
            console = LoggedConsole()
        listener = stack.enter_context(listen(settings.server))
        engine: Engine | None = None
        if settings.engine.model is not None:
            engine = stack.enter_context(Engine(settings.engine, console.say, console.progress))
            engine.wait_ready()
        url = engine.url if engine else settings.upstream.url
        assert url is not None
        vocab_size = engine.vocab_size if engine else None

        def announce(problem: str) -> None:
            for line in greeting(settings, listener.getsockname(), url, problem):
                console.say(line)

        if settings.server.workers > 1:
            metrics = stack.enter_context(shared_metrics())
            workers = Workers(settings, listener, url, vocab_size, console, metrics)
            _serve_by_workers(workers, engine, lambda: announce(""))
        else:
            app = create_app(settings, upstream_url=url, vocab_size=vocab_size)
            serve(settings, app, listener, lambda: announce(app.problem_at_start), engine)
        console.say("stopped")


def allow_files() -> None:
    """As many open files as this user may have: each request needs two, and the usual limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


class Server(uvicorn.Server):
    """uvicorn, telling when it serves and why it stopped.

    A termination comes in three steps: `on_draining` turns readiness red, requests are still taken for
    `drain_delay_s` until whoever distributes them has seen that, and then those that run may end.
    An interruption from the keyboard leaves the first two out, and so does a second termination.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], object],
        on_draining: Callable[[], None] = lambda: None,
        drain_delay_s: float = 0.0,
    ) -> None:
        super().__init__(config)
        self.failure: ServerError | None = None
        self._on_started = on_started
        self._on_draining = on_draining
        self._drain_delay_s = drain_delay_s
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal."""
        if sig != signal.SIGTERM or self._drained_at is not None:
            # Those who look at the dashboard are let go; the end would wait for them.
            self._on_draining()
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self.drain()

    def drain(self) -> None:
        """Begin to end."""
        self._drained_at = time.monotonic() + self._drain_delay_s
        self._on_draining()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; true ends the serving."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settle_heap()
        if self.started and not self.should_exit:
            self._on_started()

    def fail(self, failure: ServerError) -> None:
        """Shut down, because going on makes no sense. May be called from any thread."""
        self.failure = failure
        self.should_exit = True


def settle_heap() -> None:
    """Take what is there by now, modules and settings, out of the collector's sight: it stays anyway, and to
    look through it holds all requests up for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def serve(
    settings: Settings,
    app: GovernorApp,
    listener: socket.socket,
    on_started: Callable[[], object],
    engine: Engine | None = None,
) -> None:
    """Serve in this process until terminated. Raises `ServerError` where it cannot start, and where the
    engine cannot go on."""
    count_dropped(app.metrics.fail_open_total.labels("log").inc)
    server = Server(
        configuration(settings, app),
        on_started=on_started,
        on_draining=app.drain,
        drain_delay_s=settings.server.drain_delay_s,
    )
    if engine is not None:
        engine.supervise(server.fail, on_restart=app.metrics.engine_restarts_total.inc)
    # uvicorn shuts down in good order on a signal, then raises it again; it exits if it cannot start.
    with suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise ServerError("the proxy could not start; the lines above say why")


def _serve_by_workers(workers: Workers, engine: Engine | None, on_started: Callable[[], None]) -> None:
    """Serve in several processes; the engine stays this one's."""
    if engine is not None:
        engine.supervise(workers.fail, on_restart=workers.metrics.engine_restarts_total.inc)
    workers.run(on_started)


def configuration(settings: Settings, app: Any) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=bounded_protocol(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Who is asked for is no matter here, and who asks is the neighbour: see `access.from_here`.
        proxy_headers=False,
        # Upstream's own are passed on.
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.server.shutdown_grace_s,
    )


def greeting(settings: Settings, address: tuple[Any, ...], upstream: str, problem: str = "") -> list[str]:
    """What an operator reads once the proxy serves at `address`; `problem` is why upstream cannot be asked
    yet, "" if it can."""
    host, port = address[:2]
    root = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    governance, tools = settings.governance, settings.tools
    how = f"mode {governance.mode}, policy {governance.policy}"
    if settings.server.workers > 1:
        how += f", {settings.server.workers} workers"
    lines = [
        f"{'waiting for upstream' if problem else 'ready'}: base_url {root}/v1 ({how})",
        f"upstream: {upstream}" + (f" (vLLM with {settings.engine.model})" if settings.engine.model else ""),
        f"dashboard: {root}/dashboard",
    ]
    if tools.read_only:
        effectful = f"; effectful: {', '.join(tools.effectful)}" if tools.effectful else ""
        lines.append(f"read-only tools: {', '.join(tools.read_only)}{effectful}")
    return [*lines, *remarks(settings)]


def remarks(settings: Settings) -> list[str]:
    """What an operator may not have meant."""
    lines = []
    if settings.governance.mode == "observe":
        lines.append("it measures and withholds nothing; --mode enforce acts")
    if not settings.tools.read_only:
        lines.append(
            "no tool is listed as read-only: only tools that say so themselves (readOnlyHint) are judged"
        )
    if settings.governance.policy == CALIBRATED and extras.missing("calibration"):
        lines.append(
            "the calibrated gate cannot learn without scikit-learn, and withholds nothing unless "
            f"calibration.path has a gate: {extras.how_to_install('calibration')}"
        )
    if not settings.auth.admin_keys and not is_loopback(settings.server.host):
        lines.append(
            "the dashboard and /governor/* answer to this machine only (a container's host is another one): "
            "`governor key` makes the operator's key for auth.admin_keys"
        )
    if settings.upstream.api_key and not settings.auth.keys and not is_loopback(settings.server.host):
        lines.append(
            "whoever reaches this port asks with upstream.api_key: with auth.keys only your clients do "
            "(governor key)"
        )
    several = settings.auth.isolation != "none" and len({key.tenant for key in settings.auth.keys}) > 1
    if several and settings.limits.max_concurrent_requests_per_tenant is None:
        lines.append(
            "one tenant may take the places of all: limits.max_concurrent_requests_per_tenant bounds each"
        )
    return lines
