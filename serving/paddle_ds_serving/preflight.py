"""What can be seen to be wrong before anything is started.

HTTP workers read the same settings later, each for itself. A damaged file of keys would be found there, too, after the model was
loaded, in a log, by workers that do not stay up.
"""

from __future__ import annotations

from pathlib import Path

from paddle_ds.settings import Settings
from paddle_ds_serving.access.guard import Guard
from paddle_ds_serving.access.redis_store import connect
from paddle_ds_serving.access.watched import Watched
from paddle_ds_serving.content_filter import rules
from paddle_ds_serving.tracing import install as tracing


def check(settings: Settings) -> None:
    """Read every file that a setting names, as an HTTP worker will.

    Raises:
        ConfigError: what is wrong, and where.
    """
    Guard(settings)
    if settings.content_filter_file is not None:
        Watched(Path(settings.content_filter_file), rules.read, name="content_filter")
    if settings.redis_url is not None:
        connect(settings.redis_url).close()
    tracing.check(settings)
