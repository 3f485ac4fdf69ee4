"""The application factory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask

from paddle_ds import settings as settings_table
from paddle_ds.settings import Settings
from paddle_ds_serving import http_errors, request_log
from paddle_ds_serving.access.install import install as install_access
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.host_metrics import HostCollector
from paddle_ds_serving.routes import ALL
from paddle_ds_serving.service import Service
from paddle_ds_serving.tracing.install import install as install_tracing

#: longest request body: room for a prompt of a million tokens, written as ids or as text
MAX_BODY_BYTES = 16 * 2**20


def create_app(
    engine: EngineClient,
    settings: Settings | None = None,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    make_id: Callable[[], str] | None = None,
    unix_s: Callable[[], int] | None = None,
) -> Flask:
    """Build the application over a connected engine client.

    Args:
        engine: where requests go; the application never closes it.
        settings: by default read from the environment.
        max_body_bytes: longer bodies are answered 413.
        make_id: random part of response ids.
        unix_s: the clock behind ``created``.
    """
    app = Flask("paddle_ds_serving", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.url_map.merge_slashes = False  # it answers with a redirection to the host that the client names
    own: dict[str, Any] = {"make_id": make_id, "unix_s": unix_s}
    service = Service(
        engine,
        settings_table.load() if settings is None else settings,
        **{name: value for name, value in own.items() if value is not None},
    )
    app.extensions["paddle_ds"] = service
    run_dir = None if service.settings.engine_socket is None else Path(service.settings.engine_socket).parent
    service.metrics.collect_also(HostCollector(engine, run_dir))
    request_log.install(app, service.metrics)
    install_tracing(app, service.settings)
    http_errors.install(app)
    install_access(app, service)
    for blueprint in ALL:
        app.register_blueprint(blueprint)
    return app
