"""Spans and metrics of OpenTelemetry, after its conventions for generative AI. Needs the extra `otel`.

One SERVER span for each request, in the client's trace if it sent a `traceparent`; in it a CLIENT span for
whatever upstream is asked, whose context upstream gets; and an event for each decision. The names that begin
with `gen_ai.` are those of the semantic conventions in `tracing.SEMCONV`; what these have no name for begins
with `governor.`.

Everything here fails open: a request goes on without its spans. Export is in the background, and bounded.
"""
