"""What Gunicorn loads: ``paddle_ds_serving.wsgi:application()``, called in each worker after the fork.

A ZeroMQ context must not cross a fork, so the client is made here and never in the master (``preload_app`` stays off).
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from pathlib import Path

from flask import Flask

from paddle_ds import logs
from paddle_ds import settings as settings_table
from paddle_ds.errors import ConfigError, EngineUnavailable, PaddleDSError
from paddle_ds.ipc.client import EngineClient
from paddle_ds.logs import fields
from paddle_ds_serving.app import create_app
from paddle_ds_serving.service import Service
from paddle_ds_serving.supervision import pointer
from paddle_ds_serving.supervision.switch import EngineSwitch

_log = logging.getLogger(__name__)
_WARM_UP_POLL_S = 0.2


def application() -> Flask:
    """The application over a real engine, whose address is in ``PADDLE_DS_ENGINE_SOCKET``.

    Where that is a pointer, over the engines to which it leads, one after another.

    Raises:
        ConfigError: the variable is not set.
    """
    settings = settings_table.load()
    logs.configure(settings.log_level, settings.log_format)
    if settings.engine_socket is None:
        raise ConfigError("PADDLE_DS_ENGINE_SOCKET is not set; start the server with `paddle-ds serve`")
    address = Path(settings.engine_socket)
    client = EngineSwitch(address.parent) if address.name == pointer.FILE_NAME else EngineClient(address)
    atexit.register(client.close)
    app = create_app(client, settings)
    service: Service = app.extensions["paddle_ds"]
    if isinstance(client, EngineSwitch):
        client.on_joined = service.prepare
    threading.Thread(target=_warm_up, args=(service,), name="warm-up", daemon=True).start()
    return app


def _warm_up(service: Service) -> None:
    """Load the tokenizer as soon as the engine is ready, so that no request waits for it."""
    while True:
        try:
            service.served()
            return
        except EngineUnavailable:
            time.sleep(_WARM_UP_POLL_S)
        except PaddleDSError as error:  # every request and /health will say the same
            _log.error("tokenizer.failed", extra=fields(error=error.message))
            return
