"""What Gunicorn loads: ``paddle_ds_serving.wsgi:application()``, called in each worker after the fork.

A ZeroMQ context must not cross a fork, so the client is made here and never in the master (``preload_app`` stays off).
"""

from __future__ import annotations

import atexit

from flask import Flask

from paddle_ds import logs
from paddle_ds import settings as settings_table
from paddle_ds.errors import ConfigError
from paddle_ds.ipc.client import EngineClient
from paddle_ds_serving.app import create_app


def application() -> Flask:
    """The application over a real engine, whose address is in ``PADDLE_DS_ENGINE_SOCKET``.

    Raises:
        ConfigError: the variable is not set.
    """
    settings = settings_table.load()
    logs.configure(settings.log_level, settings.log_format)
    if settings.engine_socket is None:
        raise ConfigError("PADDLE_DS_ENGINE_SOCKET is not set; start the server with `paddle-ds serve`")
    client = EngineClient(settings.engine_socket)
    atexit.register(client.close)
    return create_app(client, settings)
