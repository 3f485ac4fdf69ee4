"""The engines of a server: one that gets the requests, at most one that joins, and those that drain.

    joining ──► current ──► draining ──► gone
       └───────────────────────────────► gone      refused

``watch`` belongs to the supervisor's main thread, which starts and ends the processes; everything else may be called by any.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from paddle_ds.config.engine import EngineConfig
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
        self._config_path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
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
            self._refusal = reason
            self._point()

    def join(self, config: EngineConfig) -> Unit:
        """Let an engine be started that may become the current one."""
        with self._lock:
            assert self._joining is None, "one at a time"
            self._numbers += 1
            self._joining = Unit(self._numbers, self._directory, config, self._start)
            self._point()
            return self._joining

    def drop(self) -> None:
        """The engine that joins is not wanted."""
        with self._lock:
            unit, self._joining = self._joining, None
            if unit is not None:
                unit.child.end(_GRACE_S)
                self._leaving.append(unit)
                self._point()

    def switch(self) -> None:
        """Requests go to the engine that joins from here on; the one they went to drains."""
        with self._lock:
            assert self._joining is not None, "there is none to switch to"
            old, self.current, self._joining = self.current, self._joining, None
            self._past_deaths += old.child.num_deaths
            self._generation += 1
            self._refusal = ""
            self._point()
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
            self._leaving.append(self.current)
            self._past_deaths += self.current.child.num_deaths
            self._numbers += 1
            self.current = Unit(self._numbers, self._directory, self.current.config, self._start)
            self._generation += 1
            self._point()

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

    def _point(self) -> None:
        joining = self._joining.socket if self._joining else None
        pointer.write(self._directory, Pointer(self._generation, self.current.socket, joining, self._refusal))
