"""HTTP from the client's side: uvicorn's protocol, for clients that may not mean well."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from governor_server.api_errors import ApiError
from governor_server.limits import LimitSettings, headers_too_large


def bounded_protocol(limits: LimitSettings) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with bounds on what comes before a request is complete enough to be handed on.

    The parser keeps what it has of a head in memory for as long as it takes, and a connection on which
    nothing is ever said stays open.
    """

    class Bounded(HttpToolsProtocol):
        _in_head = False
        _head_bytes = 0
        _head_timer: TimerHandle | None = None

        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._head_timer = self.loop.call_later(limits.header_timeout_s, self._head_timed_out)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            went_on = self._in_head
            super().data_received(data)
            if not self._in_head:
                return
            # Of the piece in which a head begins, an earlier request's body may be the greater part.
            self._head_bytes += len(data) if went_on else 0
            if self._head_bytes > limits.max_header_bytes:
                self._refuse(headers_too_large(limits.max_header_bytes))
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.header_timeout_s, self._head_timed_out)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_timer()
            super().on_headers_complete()

        def _head_timed_out(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse(self, error: ApiError) -> None:
            if self.transport.is_closing():
                return
            body = error.dumped()
            head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            lines = [name + b": " + value + b"\r\n" for name, value in [*head, *error.headers]]
            status = STATUS_LINE[error.status]
            self.transport.write(b"".join([status, *lines, b"\r\n", body]))
            self.transport.close()

    return Bounded
