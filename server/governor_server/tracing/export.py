"""The queue of the spans that are over, which a thread empties to the collector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

MAX_WAITING_SPANS = 2048
"""That are not exported yet; beyond it spans are dropped, and counted."""
MAX_EXPORTED_SPANS = 512
"""In one request to the collector."""


class Bounded(SpanProcessor):
    """Hands spans to `exporter` in batches, from a thread, and drops what comes while too many wait."""

    def __init__(self, exporter: SpanExporter, dropped: Callable[[int], None]) -> None:
        self._ended = 0
        self._dropped = dropped
        self._counted = Counted(exporter, dropped)
        # Room for more than is let in: it would drop without telling.
        self._batches = BatchSpanProcessor(
            self._counted,
            max_queue_size=2 * MAX_WAITING_SPANS,
            max_export_batch_size=MAX_EXPORTED_SPANS,
            schedule_delay_millis=1000,
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        """Of a span that is not sampled nothing is to be sent, nor counted."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._ended - self._counted.handled >= MAX_WAITING_SPANS:
            self._dropped(1)
            return
        self._ended += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """What waits is sent; for 30 seconds at most."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits, now."""
        return self._batches.force_flush(timeout_millis)


class Counted(SpanExporter):
    """An exporter of which is known how many spans it has `handled`, and which were `dropped` by it."""

    def __init__(self, exporter: SpanExporter, dropped: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._dropped = dropped
        self.handled = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """To the collector."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.handled += len(spans)
            if result is not SpanExportResult.SUCCESS:
                self._dropped(len(spans))
        return result

    def shutdown(self) -> None:
        """No more spans come."""
        self._exporter.shutdown()
