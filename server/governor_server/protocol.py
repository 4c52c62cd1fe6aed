"""HTTP from the client's side: uvicorn's protocol, for clients that may not mean well."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from governor_server.api_errors import ApiError
from governor_server.limits import (
    LimitSettings,
    bad_request,
    headers_too_large,
    not_proxied,
    unknown_coding,
)

OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers by which a client offers to change the protocol."""


def bounded_protocol(limits: LimitSettings) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with bounds on whatever a client may do slowly or without end, and with one reading
    of each request: an offer to change the protocol is ignored, and what follows a body is no header."""

    class Bounded(HttpToolsProtocol):
        _in_head = False
        _unread_bytes = 0
        """Of a head so far, or of what stands around the pieces of a body since the last one."""
        _waiting: TimerHandle | None = None
        """For something from a client that nobody answers meanwhile."""
        _writing: TimerHandle | None = None
        """For a client to take what was sent."""
        _answering: RequestResponseCycle | None = None
        _refusal: ApiError | None = None
        """To be told when the requests before it are answered; whatever comes after it is not read."""

        # From the transport

        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._wait(limits.header_timeout_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._stop_writing()
            if (answering := self._answering) is not None and not answering.response_complete:
                # uvicorn knows of the last request alone, which may stand behind this one.
                answering.disconnected = True
                answering.message_event.set()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            if self._refusal is not None or self.transport.is_closing():
                return
            self._unread_bytes += len(data)
            try:
                self._feed(data)
            except httptools.HttpParserError as error:
                failed = error.__context__
                self._refuse(
                    failed if isinstance(failed, ApiError) else bad_request("The request is no valid HTTP")
                )
                return
            if not self._in_head and not self._in_body:
                self._unread_bytes = 0
            elif self._unread_bytes > limits.max_header_bytes:
                self._refuse(headers_too_large(limits.max_header_bytes))
                return
            if not self._busy:
                self._wait(self._patience_s)

        def _feed(self, data: bytes) -> None:
            """Parse it. Where a client offers to change the protocol the parser stops behind the head, as if
            no body belonged to it: the head is parsed once more, without the offer."""
            while True:
                try:
                    self.parser.feed_data(data)
                except httptools.HttpParserUpgrade as stopped:
                    data = self._head_without_offer() + data[stopped.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                else:
                    return

        def _head_without_offer(self) -> bytes:
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            for name, value in self.headers:
                if name == b"connection":
                    kept = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                    value = b",".join(kept)
                if name not in OFFER:
                    lines.append(name + b": " + value)
            return b"\r\n".join([*lines, b"", b""])

        # From the parser

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            self._unread_bytes = 0
            self._stop_waiting()

        def on_header(self, name: bytes, value: bytes) -> None:
            # What comes behind a body would be taken for a part of the head, which was checked already.
            if self._in_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self.parser.get_method() == b"CONNECT":
                raise not_proxied("CONNECT")
            if self.parser.should_upgrade():
                return
            codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
            if codings not in ([], [b"chunked"]):
                raise unknown_coding()
            self._in_head = False
            self._unread_bytes = 0
            self._stop_waiting()
            if not self.flow.write_paused:
                self._stop_writing()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._unread_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return
            super().on_message_complete()
            if self.cycle.response_complete:
                self.cycle.more_body = False
                self._stop_waiting()

        # From uvicorn

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._answering = cycle

            async def answer(*given: Any) -> None:
                try:
                    await app(*given)
                finally:
                    # uvicorn closes the connection after an answer without an end.
                    self._until_taken()

            super()._start_asgi_task(cycle, answer)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._until_taken()
            if self.transport.is_closing() or self._busy:
                return
            if self._refusal is not None:
                self._tell(self._refusal)
            elif self._in_head or self._in_body:
                self._wait(self._patience_s)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._until_taken()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_writing()
            if not self._busy:
                self._until_taken()

        # Bounds

        @property
        def _busy(self) -> bool:
            """Whether a request is being answered: the application has bounds of its own then."""
            return self._answering is not None and not self._answering.response_complete

        @property
        def _in_body(self) -> bool:
            return self.cycle is not None and self.cycle.more_body

        @property
        def _patience_s(self) -> float:
            """How long to wait for the rest of what has begun, or for anything."""
            if self._in_head:
                return limits.header_timeout_s
            return limits.body_timeout_s if self._in_body else float(self.timeout_keep_alive)

        def _wait(self, seconds: float) -> None:
            """Close the connection unless a request comes in time; what comes meanwhile does not help."""
            if self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self._waited)

        def _waited(self) -> None:
            self._waiting = None
            self._close()

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _until_taken(self) -> None:
            """Cut the connection off unless the client takes what was sent in time. To close it would wait
            for the client."""
            if self._writing is None and self.transport.get_write_buffer_size():
                self._writing = self.loop.call_later(limits.write_timeout_s, self._not_taken)

        def _not_taken(self) -> None:
            self._writing = None
            if self.flow.write_paused or self.transport.get_write_buffer_size():
                self.transport.abort()

        def _stop_writing(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()
                self._until_taken()

        def _refuse(self, error: ApiError) -> None:
            """Read no more of what cannot be read as requests."""
            self._stop_waiting()
            self._refusal = error
            answering = self._answering
            if answering is None or answering.response_complete:
                self._tell(error)
            elif answering is self.cycle and self._in_body:
                # It is this request that cannot be read to its end.
                if not answering.response_started:
                    self._tell(error)
                else:
                    self._close()
            elif self.pipeline and self.pipeline[0][0] is self.cycle and self._in_body:
                self.pipeline.popleft()

        def _tell(self, error: ApiError) -> None:
            if self.transport.is_closing():
                return
            body = error.dumped()
            head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            if any(name == b"origin" for name, _ in self.headers or ()):
                head.append((b"access-control-allow-origin", b"*"))
            lines = [name + b": " + value + b"\r\n" for name, value in [*head, *error.headers]]
            self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
            self._close()

    return Bounded
