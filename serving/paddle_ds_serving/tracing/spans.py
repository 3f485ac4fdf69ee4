"""One OpenTelemetry trace a request. No text of prompts or answers is in it.

    POST /v1/chat/completions ├──────────────────────────────────────────┤  server span: until the response is closed
      prompt                  ├──────┤                                      body read, checked, rendered, tokenized
      first token                    ├───────────┤                          in the engine: queue, then prefill
      decode                                     ├────────────────────┤     until the last answer has ended

The parent comes from the client's ``traceparent``. Spans within the first are made when it ends, from times that the request's
record has anyhow. Attributes have the names of the semantic conventions for HTTP servers and for generative AI. The package with
their constants calls the latter incubating, so all are spelled out here.
"""

from __future__ import annotations

import time

from flask import g, request
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from paddle_ds_serving.request_log import QUIET, RequestRecord

#: methods that the conventions list; others could be anything
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/generate": "text_completion"}
_MAX_USER_AGENT_CHARACTERS = 256

Attributes = dict[str, AttributeValue]
Phase = tuple[str, float, float, Attributes]


class Tracing:
    """Makes the spans of requests."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def open(self) -> None:
        """Start the span of the current request."""
        record: RequestRecord = g.record
        if record.route.startswith(QUIET):
            return
        started_ns = time.time_ns() - _ns(record.elapsed_s())
        method = record.method if record.method in _METHODS else "HTTP"
        known = request.url_rule is not None
        span = self._tracer.start_span(
            f"{method} {record.route}" if known else method,
            self._propagator.extract(request.headers),
            SpanKind.SERVER,
            _request_attributes(record, known),
            start_time=started_ns,
        )
        context = span.get_span_context()
        if context.is_valid:
            record.trace_id = f"{context.trace_id:032x}"
        if span.is_recording():
            record.on_close = lambda record: self._end(span, started_ns, record)

    def _end(self, span: Span, started_ns: int, record: RequestRecord) -> None:
        """End the span, with those of the request's phases in it."""
        # a client's mistake, or its leaving, is not an error of the server
        failed = record.status >= 500 or (record.error_http_status or 0) >= 500
        phases = _phases(record)
        parent = set_span_in_context(span)
        for number, (name, from_s, to_s, attributes) in enumerate(phases, 1):
            phase = self._tracer.start_span(name, parent, attributes=attributes, start_time=started_ns + _ns(from_s))
            if failed and number == len(phases) and "abort" in (record.finish_reasons or ""):
                phase.set_status(Status(StatusCode.ERROR, record.error_code))
            phase.end(started_ns + _ns(to_s))
        span.set_attributes(_response_attributes(record))
        if failed:
            span.set_attribute("error.type", record.error_code or str(record.status))
            span.set_status(Status(StatusCode.ERROR, record.error_code))
        span.end(started_ns + _ns(record.elapsed_s()))


def _request_attributes(record: RequestRecord, known: bool) -> Attributes:
    """What is known at the start. A path without a route may say anything, as a query may: neither gets into a trace."""
    attributes: Attributes = {
        "http.request.method": record.method if record.method in _METHODS else "_OTHER",
        "url.scheme": request.scheme,
        "network.protocol.version": str(request.environ.get("SERVER_PROTOCOL", "")).partition("/")[2],
        "paddle_ds.request_id": record.request_id,
    }
    if known:
        attributes |= {"http.route": record.route, "url.path": record.path}
    if request.user_agent.string:
        attributes["user_agent.original"] = request.user_agent.string[:_MAX_USER_AGENT_CHARACTERS]
    return attributes


def _response_attributes(record: RequestRecord) -> Attributes:
    model = record.model
    known: dict[str, AttributeValue | None] = {
        "http.response.status_code": record.status,
        "paddle_ds.error_code": record.error_code,
        "paddle_ds.key_id": record.key_id,
    }
    if model is not None:
        known |= {
            "gen_ai.operation.name": _OPERATIONS.get(record.route),
            "gen_ai.provider.name": "paddle-ds",
            "gen_ai.request.model": model.name,
            "gen_ai.request.stream": bool(record.stream),
            "gen_ai.request.choice.count": record.num_choices,
            "gen_ai.response.model": model.name,
            "gen_ai.response.id": record.response_id,
            "gen_ai.response.finish_reasons": record.finish_reasons.split(",") if record.finish_reasons else None,
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": record.num_output_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
            "paddle_ds.weight_version": model.weight_version or None,
        }
    return {name: value for name, value in known.items() if value is not None}


def _phases(record: RequestRecord) -> list[Phase]:
    """Name, begin and end (seconds after the start) and attributes of each phase that the request has reached."""
    if record.submitted_s is None:
        return []
    phases: list[Phase] = [("prompt", 0.0, record.submitted_s, {})]
    if record.ended_s is None:
        return phases
    # the log has this time, rounded: it may lie a little before the one before it
    first_s = record.ended_s if record.first_token_s is None else max(record.first_token_s, record.submitted_s)
    queued: Attributes = {}
    decoded: Attributes = {}
    if record.usages:
        queued["paddle_ds.queue_s"] = max(usage.queue_s for usage in record.usages)
        decoded["paddle_ds.decode_s"] = max(usage.total_s - usage.first_token_s for usage in record.usages)
    phases.append(("first token", record.submitted_s, first_s, queued))
    if record.first_token_s is not None:
        phases.append(("decode", first_s, record.ended_s, decoded))
    return phases


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
