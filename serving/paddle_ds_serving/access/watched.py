"""A file that may change while the server runs: looked at once a second at most, and only when somebody asks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from paddle_ds.errors import ConfigError
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)
T = TypeVar("T")
#: seconds between two looks
LOOK_S = 1.0

_Stamp = tuple[int, int, int] | None


class Watched(Generic[T]):
    """The parsed content of a file. A new content that is damaged, or a file that is gone, leaves the last good one in force.

    Raises:
        ConfigError: from the constructor, where the first content is no good.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], T], *, name: str = "access", clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._read = read
        self._name = name
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._next_look_s = clock_s() + LOOK_S
        self._value = read(path)

    @property
    def value(self) -> T:
        """The content in force."""
        if self._clock_s() >= self._next_look_s and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._value

    def _refresh(self) -> None:
        self._next_look_s = self._clock_s() + LOOK_S
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._value = self._read(self._path)
        except ConfigError as error:
            _log.error(
                f"{self._name}.reload_failed", extra=fields(file=str(self._path), error=error.message, kept="what was in force")
            )
        else:
            _log.info(f"{self._name}.reloaded", extra=fields(file=str(self._path)))

    def _look(self) -> _Stamp:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
