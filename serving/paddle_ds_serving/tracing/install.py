"""Puts tracing into an application, where it is asked for. OpenTelemetry's packages are imported only then."""

from __future__ import annotations

import os

from flask import Flask

from paddle_ds.errors import ConfigError
from paddle_ds.settings import Settings

#: OpenTelemetry's own variables that may ask for what is not here, with the one value that is
_ONLY = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}
#: under which an application keeps its sender of spans
EXTENSION = "paddle_ds_tracing"


def check(settings: Settings) -> None:
    """See that traces can be made, where they are asked for.

    Raises:
        ConfigError: a package is missing, or OpenTelemetry's own variables ask for another exporter than there is.
    """
    if not settings.tracing:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"PADDLE_DS_TRACING is on, and a package for it is missing ({error}): python -m pip install 'paddle-ds[tracing]'"
        ) from error
    for name, value in _ONLY.items():
        if os.environ.get(name, value) not in (value, ""):
            raise ConfigError(f"environment: {name}={os.environ[name]!r} is not supported; traces are sent with {value!r} only")


def install(app: Flask, settings: Settings) -> None:
    """Trace every request but those of probes and scrapers. Must come right after the request log, and after any fork.

    Raises:
        ConfigError: see :func:`check`; or OpenTelemetry refuses a value of one of its variables.
    """
    if not settings.tracing:
        return
    check(settings)
    from paddle_ds_serving.tracing.sender import SpanSender
    from paddle_ds_serving.tracing.spans import Tracing

    sender = app.extensions[EXTENSION] = SpanSender()
    app.before_request(Tracing(sender.tracer()).open)
