"""SIGHUP: the engine's configuration is read again, and what has changed takes effect by an update."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import PaddleDSError
from paddle_ds.logs import fields
from paddle_ds_serving.supervision.updater import Updater

_log = logging.getLogger(__name__)


class Reloader:
    """Reads the configuration again on a thread of its own; a bad one is told in the log, and the old one stays."""

    def __init__(self, updater: Updater, config: EngineConfig, read: Callable[[], EngineConfig] | None) -> None:
        self._updater = updater
        self._config = config
        self._read = read

    def start(self) -> None:
        """Begin, and do not wait."""
        threading.Thread(target=self.reload, name="reload", daemon=True).start()

    def reload(self) -> None:
        """Read the configuration; where it has changed, bring up an engine with it and switch."""
        if self._read is None:
            _log.info("reload.nothing", extra=fields(because="this server was started without a configuration to read again"))
            return
        try:
            new = self._read()
            if new == self._config:
                _log.info("reload.unchanged")
                return
            same_model = (new.model, new.served_name) == (self._config.model, self._config.served_name)
            done = self._updater.reconfigure(new, keep_model=same_model)
        except PaddleDSError as error:
            _log.error("reload.refused", extra=fields(code=error.code, reason=error.message))
            return
        changed = [name for name, value in dataclasses.asdict(new).items() if value != dataclasses.asdict(self._config)[name]]
        self._config = new
        _log.info("reload.done", extra=fields(changed=",".join(changed), version=done.weight_version, mode=done.mode))
