"""``paddle-ds serve``, which the command line finds through the entry point ``paddle_ds.commands``."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from typing import Any

import click

from paddle_ds import logs
from paddle_ds import settings as settings_table
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.progress_bar import LoadingBar
from paddle_ds.ipc.messages import EngineInfo
from paddle_ds.logs import fields
from paddle_ds_serving import preflight
from paddle_ds_serving.supervisor import ServeOptions, Supervisor

_log = logging.getLogger(__name__)


@click.command()
@engine_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="HTTP worker processes.")
@click.option(
    "--grace", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds that streams may go on after a stop."
)
def serve(host: str, port: int, workers: int, grace: float, **engine: Any) -> None:
    """Serve a model over HTTP with an OpenAI-compatible API.

    Starts the engine and Gunicorn, restarts what dies, and ends both on Ctrl-C.
    """
    settings = settings_table.load()
    logs.configure(settings.log_level, settings.log_format)
    preflight.check(settings)
    options = ServeOptions(host, port, workers, grace)
    with LoadingBar(sys.stderr.isatty() and settings.log_format == "text") as bar:

        def ready(info: EngineInfo) -> None:
            bar.close()
            _announce(info, options)

        def read() -> EngineConfig:
            return engine_config(settings, **engine)

        status = Supervisor(read(), options, settings, ready, bar, reload=read).run()
    sys.exit(status)


def _announce(info: EngineInfo, options: ServeOptions) -> None:
    name = info.model.name if info.model else "?"
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "12+7"}}]}}'
    try:
        click.echo(f"\n{name} is served at {options.url}\n")
        click.echo(f"  curl {options.url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}\n")
        sys.stdout.flush()
    except OSError as error:  # a full disk, or nobody reads: no reason not to serve
        _log.warning("announcement.lost", extra=fields(url=options.url, error=str(error)))
        # what Python still holds would fail again at the end, and change the exit status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
