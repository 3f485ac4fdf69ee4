"""The engines of a server: one that gets the requests, at most one that joins, and those that drain.

    joining ──► current ──► draining ──► gone
       └───────────────────────────────► gone      refused

``watch`` belongs to the supervisor's main thread, which starts and ends the processes; everything else may be called by any.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import RunDirectoryError
from paddle_ds.ipc.client import EngineClient
from paddle_ds.logs import fields
from paddle_ds_serving.supervision import pointer
from paddle_ds_serving.supervision.child import Child
from paddle_ds_serving.supervision.pointer import Pointer

_log = logging.getLogger(__name__)

#: how long an engine that was switched away from must have been idle: a request that looked at its model a moment before the
#: switch may still be on its way there
SETTLE_S = 3.0
_GRACE_S = 10.0

StartEngine = Callable[[Path, Path], subprocess.Popen[bytes]]


class Unit:
    """One engine: its process, its socket and a connection to it."""

    def __init__(self, number: int, directory: Path, config: EngineConfig, start: StartEngine) -> None:
        self.config = config
        self.number = number
        self.socket = f"engine-{number}.sock"
        self._socket_path = directory / self.socket
        self._config_path = directory / f"engine-{number}.json"
        pointer.put(self._config_path, json.dumps(config.to_dict()).encode())
        self._start_process = start
        self.child = Child("engine", self._start)
        self.client = EngineClient(self._socket_path)
        self._drain_until_s = 0.0
        self._idle_since_s: float | None = None

    @property
    def version(self) -> str:
        """``weight_version`` of its model, once it is known."""
        info = self.client.info
        return info.model.weight_version if info is not None and info.model is not None else ""

    @property
    def ready(self) -> bool:
        info = self.client.info
        return self.client.connected and info is not None and info.state == "ready"

    @property
    def num_requests(self) -> int | None:
        """Requests it has, as it last said."""
        stats = self.client.stats
        return None if stats is None else stats.num_running + stats.num_waiting

    def drain(self, limit_s: float) -> None:
        """From now on it gets no new requests."""
        self._drain_until_s = time.monotonic() + limit_s
        self._idle_since_s = None

    def drained(self) -> bool:
        """It has been idle for long enough, is gone, or its time is over."""
        now = time.monotonic()
        if self.num_requests or self._idle_since_s is None:
            self._idle_since_s = now
        return not self.child.alive or now - self._idle_since_s >= SETTLE_S or now >= self._drain_until_s

    def close(self) -> None:
        """Forget it; its process has ended."""
        self.client.close()
        self._socket_path.unlink(missing_ok=True)
        self._config_path.unlink(missing_ok=True)

    def _start(self) -> subprocess.Popen[bytes]:
        self._socket_path.unlink(missing_ok=True)
        return self._start_process(self._socket_path, self._config_path)


class Fleet:
    """All engines, and the pointer that tells HTTP workers of them."""

    def __init__(self, directory: Path, config: EngineConfig, start: StartEngine, drain_s: float) -> None:
        self._directory = directory
        self._start = start
        self._drain_s = drain_s
        self._lock = threading.RLock()
        self._numbers = 1
        self._generation = 1
        self._past_deaths = 0
        self._refusal = ""
        self._shadow_percent = 0.0
        self.current = Unit(1, directory, config, start)
        self._joining: Unit | None = None
        self._draining: list[Unit] = []
        self._leaving: list[Unit] = []
        self._point()

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def num_restarts(self) -> int:
        """Starts of engines that replaced a dead one."""
        with self._lock:
            return self._past_deaths + self.current.child.num_deaths

    @property
    def refusal(self) -> str:
        """Why no requests are taken; empty: they are."""
        return self._refusal

    @property
    def draining(self) -> list[Unit]:
        with self._lock:
            return list(self._draining)

    def refuse(self, reason: str) -> None:
        """Take no new requests, or (with an empty reason) take them again."""
        with self._lock:
            self._point(refusal=reason)
            self._refusal = reason

    def join(self, config: EngineConfig) -> Unit:
        """Let an engine be started that may become the current one."""
        with self._lock:
            assert self._joining is None, "one at a time"
            unit = self._make(config)
            self._point_to(unit, next_socket=unit.socket)
            self._joining = unit
            return unit

    def shadow(self, percent: float) -> None:
        """Have HTTP workers report how the current engine answers so many of their requests; 0: none any more."""
        with self._lock:
            try:
                self._point(shadow_percent=percent)
            except RunDirectoryError:
                if percent:
                    raise  # that it is over is told with the next change
            self._shadow_percent = percent

    def drop(self) -> None:
        """The engine that joins is not wanted."""
        with self._lock:
            unit, self._joining = self._joining, None
            if unit is not None:
                unit.child.end(_GRACE_S)
                self._leaving.append(unit)
                with contextlib.suppress(RunDirectoryError):  # that it joins no more is told with the next change
                    self._point()

    def switch(self) -> None:
        """Requests go to the engine that joins from here on; the one they went to drains."""
        with self._lock:
            assert self._joining is not None, "there is none to switch to"
            # first: where there is no room for the pointer nothing has changed
            self._point(generation=self._generation + 1, socket=self._joining.socket, next_socket=None, refusal="")
            old, self.current, self._joining = self.current, self._joining, None
            self._past_deaths += old.child.num_deaths
            self._generation += 1
            self._refusal = ""
            old.drain(self._drain_s)
            (self._leaving if old.child.ending else self._draining).append(old)
        _log.info(
            "engine.switched",
            extra=fields(generation=self._generation, model=self.current.config.model, version=self.current.version),
        )

    def stop_current(self) -> None:
        """End the current engine to make room; :meth:`start_current` brings its configuration back."""
        with self._lock:
            self.current.child.end(_GRACE_S)

    def start_current(self) -> None:
        """A new engine with the configuration of the one that was stopped."""
        with self._lock:
            unit = self._make(self.current.config)
            self._point_to(unit, generation=self._generation + 1, socket=unit.socket)
            self._leaving.append(self.current)
            self._past_deaths += self.current.child.num_deaths
            self.current = unit
            self._generation += 1

    def watch(self) -> None:
        """Start, restart, end and forget, as each needs. Main thread only."""
        with self._lock:
            units = [self.current, *([self._joining] if self._joining else ()), *self._leaving]
            for unit in units:
                unit.child.watch()
            for unit in list(self._draining):
                if unit.drained():
                    unit.child.end(_GRACE_S)
                    self._draining.remove(unit)
                    self._leaving.append(unit)
            gone = [unit for unit in self._leaving if unit.child.ended]
            self._leaving = [unit for unit in self._leaving if not unit.child.ended]
        for unit in gone:
            _log.info("engine.left", extra=fields(number=unit.number, version=unit.version))
            unit.close()

    def stop(self) -> None:
        """End all and wait. Main thread only."""
        with self._lock:
            units = [self.current, *([self._joining] if self._joining else ()), *self._draining, *self._leaving]
            for unit in units:
                unit.child.end(_GRACE_S)
        for unit in units:
            unit.child.stop(_GRACE_S)
            unit.close()

    def kill(self) -> None:
        """End all, now."""
        for unit in (self.current, *([self._joining] if self._joining else ()), *self._draining, *self._leaving):
            unit.child.kill()

    def _make(self, config: EngineConfig) -> Unit:
        self._numbers += 1
        return Unit(self._numbers, self._directory, config, self._start)

    def _point_to(self, unit: Unit, **changes: Any) -> None:
        """As ``_point``; a new engine that cannot be told of is none."""
        try:
            self._point(**changes)
        except RunDirectoryError:
            unit.close()
            raise

    def _point(self, **changes: Any) -> None:
        """Tell HTTP workers how things are, or how they are to be.

        Raises:
            RunDirectoryError: they were told nothing.
        """
        joining = self._joining.socket if self._joining else None
        now = Pointer(self._generation, self.current.socket, joining, self._refusal, self._shadow_percent)
        pointer.write(self._directory, msgspec.structs.replace(now, **changes))
