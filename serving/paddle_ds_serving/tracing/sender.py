"""Where spans go: OpenTelemetry's batches and exporter, set up by its own variables (``OTEL_…``).

A collector that is slow or away costs spans, never a request: what waits is bounded, and a thread of its own sends it.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from paddle_ds import __version__
from paddle_ds.errors import ConfigError
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)
#: how long the end of a worker waits for the last spans to be sent
_FLUSH_S = 3.0
#: pause between two lines about the same trouble
_REPEAT_S = 60.0
_MAX_KEPT_LINES = 100


class SpanSender:
    """Sends spans from a process that does not fork any more.

    Raises:
        ConfigError: OpenTelemetry refuses a value of one of its variables.
    """

    def __init__(self) -> None:
        _take_lines()
        try:
            self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry refuses its settings (OTEL_… in the environment): {error}") from error
        self._closing = threading.Event()
        self._closed = threading.Event()
        # made now: no thread can be started while the interpreter ends, and nothing else bounds the time of the last export
        threading.Thread(target=self._close_when_told, name="trace-close", daemon=True).start()
        atexit.register(self.close)

    def tracer(self) -> Tracer:
        """Makes the spans that are sent."""
        return self._provider.get_tracer("paddle_ds_serving", __version__)

    def flush(self) -> None:
        """Send what has ended. Waits for the collector."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what has ended, and stop. Waits for the collector, but not long."""
        atexit.unregister(self.close)
        self._closing.set()
        if not self._closed.wait(_FLUSH_S):
            _log.warning("tracing.not_flushed", extra=fields(waited_s=_FLUSH_S))

    def _close_when_told(self) -> None:
        self._closing.wait()
        self._provider.shutdown()
        self._closed.set()


def _resource() -> Resource:
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "paddle-ds"}))
    return resource


class _Lines(logging.Handler):
    """What OpenTelemetry's packages complain about, as lines of our own log: each complaint once a minute at most."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._written_s: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        message = str(record.msg)
        if now_s < self._written_s.get(message, -_REPEAT_S) + _REPEAT_S:
            return
        if len(self._written_s) >= _MAX_KEPT_LINES:
            self._written_s.clear()
        self._written_s[message] = now_s
        _log.warning("tracing.trouble", extra=fields(source=record.name, reason=record.getMessage()))


def _take_lines() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [_Lines()]
    logger.propagate = False
