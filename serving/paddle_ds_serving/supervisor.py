"""The supervisor: one process that owns the engines and Gunicorn.

    paddle-ds serve (supervisor)
      ├── engine      python -m paddle_ds.engine.process     restarted by itself, with a growing pause
      ├── engine      a second one while a model is changed; see ``supervision/``
      └── gunicorn    HTTP workers                           restarted, too; an engine's death does not touch them

Children live in sessions of their own, so Ctrl-C reaches the supervisor alone and it stops them in order: first HTTP (streams may
finish), then the engines. If the supervisor is killed the kernel tells the children (see ``paddle_ds.ipc.parent``).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import ConfigError, EngineError, RunDirectoryError, from_info
from paddle_ds.ipc.messages import EngineInfo
from paddle_ds.logs import fields
from paddle_ds.settings import Settings
from paddle_ds_serving.host_metrics import record_restarts
from paddle_ds_serving.supervision import pointer
from paddle_ds_serving.supervision.canary import CanaryConfig
from paddle_ds_serving.supervision.child import Child
from paddle_ds_serving.supervision.control import ControlServer
from paddle_ds_serving.supervision.fleet import Fleet, StartEngine
from paddle_ds_serving.supervision.health import HealthWatch
from paddle_ds_serving.supervision.operations import operations
from paddle_ds_serving.supervision.reloader import Reloader
from paddle_ds_serving.supervision.updater import Updater

_log = logging.getLogger(__name__)

_POLL_S = 0.1
#: after the grace period, for the error events of streams that still run
_LAST_WORDS_S = 2.0
#: for what a stopped child still does after its own grace period
_KILL_AFTER_S = 5.0
#: starts of a child before the server was ever ready; one more means that it never will be
_MAX_FIRST_STARTS = 2


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Where and how to listen."""

    host: str
    port: int
    workers: int
    #: how long streams may go on after a stop was asked for
    grace_s: float

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def start_engine_process(socket_path: Path, config_path: Path) -> subprocess.Popen[bytes]:
    """The engine as a process of its own."""
    command = [sys.executable, "-m", "paddle_ds.engine.process", "--socket", str(socket_path)]
    return subprocess.Popen([*command, "--config", str(config_path)], start_new_session=True, env=_child_environ())


def _child_environ() -> dict[str, str]:
    """Children end with the process of this id, also where it dies before they can ask for that."""
    return {**os.environ, "PADDLE_DS_SUPERVISOR_PID": str(os.getpid())}


class Supervisor:
    """Runs until it is told to stop."""

    def __init__(
        self,
        config: EngineConfig,
        options: ServeOptions,
        settings: Settings,
        on_ready: Callable[[EngineInfo], None],
        on_progress: Callable[[float], None],
        *,
        start_engine: StartEngine = start_engine_process,
        reload: Callable[[], EngineConfig] | None = None,
    ) -> None:
        """``reload`` reads the engine's configuration again, as it was read for ``config``; it is called on SIGHUP."""
        self._options = options
        self._settings = settings
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._stopping = False  # set by a signal; an Event could be caught holding its own lock
        self._reload_asked = False
        self._config = config
        self._reload = reload
        self._start_engine = start_engine
        self._run_dir = Path(settings.runtime_dir) / f"serve-{os.getpid()}"
        self._num_restarts = self._num_restarts_untold = -1
        self.http = Child("http", self._start_http)
        self.fleet: Fleet | None = None

    def run(self) -> int:
        """Start everything and watch over it. Returns the exit status.

        Raises:
            ConfigError: the address cannot be listened on.
            RunDirectoryError: the runtime directory cannot be written to.
            PaddleDSError: the engine could not load the checkpoint the first time.
        """
        check_address(self._options.host, self._options.port)
        remove_leftovers(self._run_dir.parent)
        try:
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{self._run_dir}: cannot be made ({error.strerror or error})") from error
        settings = self._settings
        fleet = self.fleet = Fleet(self._run_dir, self._config, self._start_engine, settings.drain_s)
        canary = CanaryConfig(settings.canary_prompt, settings.canary_expect)
        updater = Updater(fleet, canary, settings.drain_s, self._is_stopping)
        health = HealthWatch(fleet, updater, canary, settings.canary_every_s)
        control = ControlServer(self._run_dir, operations(fleet, updater, health))
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._ask_to_stop)
            signal.signal(signal.SIGHUP, self._ask_to_reload)
            return self._watch(fleet, health, Reloader(updater, self._config, self._reload))
        finally:
            self._stopping = True
            control.close()
            health.close()
            self._stop_http(self._options.grace_s)
            fleet.stop()  # what runs still is told so
            self._stop_http(_KILL_AFTER_S)
            self.http.kill()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _watch(self, fleet: Fleet, health: HealthWatch, reloader: Reloader) -> int:
        announced = False
        while not self._stopping:
            fleet.watch()
            self.http.watch()
            self._count_restarts(fleet)
            if not announced:
                announced = self._follow_start(fleet)
                if announced:
                    health.start()
            health.look()
            if announced and self._reload_asked:
                self._reload_asked = False
                reloader.start()
            time.sleep(_POLL_S)
        return 0

    def _follow_start(self, fleet: Fleet) -> bool:
        """Whether the first engine is ready. Raises where it will never be."""
        engine = fleet.current
        info = engine.client.info
        if engine.client.connected and info is not None:
            self._on_progress(info.progress)
            if info.state == "ready":
                self._on_ready(info)
                return True
            if info.state == "failed" and info.error is not None:
                raise from_info(info.error)
        for child in (self.http, engine.child):
            if child.num_starts > _MAX_FIRST_STARTS:
                what = "HTTP server" if child is self.http else "engine"
                raise EngineError(f"the {what} does not stay up (exit status {child.last_status}); see the log above")
        return False

    def _stop_http(self, grace_s: float) -> None:
        """Ask it to end, and wait for so long."""
        self.http.end(self._options.grace_s + 2 * _KILL_AFTER_S)
        deadline_s = time.monotonic() + grace_s
        while not self.http.ended and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            self.http.watch()

    def _count_restarts(self, fleet: Fleet) -> None:
        """Tell HTTP workers. On a full disk it is tried again all the time, and told in the log once."""
        num_restarts = fleet.num_restarts
        if num_restarts == self._num_restarts:
            return
        try:
            record_restarts(self._run_dir, num_restarts)
        except RunDirectoryError as error:
            if num_restarts != self._num_restarts_untold:
                _log.error("restarts.not_told", extra=fields(reason=error.message))
            self._num_restarts_untold = num_restarts
        else:
            self._num_restarts = num_restarts

    def _is_stopping(self) -> bool:
        return self._stopping

    def _ask_to_stop(self, signum: int, frame: object) -> None:
        if self._stopping:  # asked twice: no more grace
            self.http.kill()
            if self.fleet is not None:
                self.fleet.kill()
        self._stopping = True

    def _ask_to_reload(self, signum: int, frame: object) -> None:
        self._reload_asked = True

    def _start_http(self) -> subprocess.Popen[bytes]:
        options = self._options
        command = [sys.executable, "-m", "gunicorn", "--config", "python:paddle_ds_serving.gunicorn_conf"]
        command += ["--bind", options.url.removeprefix("http://"), "--workers", str(options.workers)]
        command += ["--graceful-timeout", str(math.ceil(options.grace_s + _LAST_WORDS_S))]
        environ = {**_child_environ(), "PADDLE_DS_ENGINE_SOCKET": str(self._run_dir / pointer.FILE_NAME)}
        return subprocess.Popen(command, start_new_session=True, env=environ)


def remove_leftovers(runtime_dir: Path) -> None:
    """Remove what servers left behind that were killed: their sockets, pointers and counters."""
    for path in (*runtime_dir.glob("serve-*"), *runtime_dir.glob("metrics-*")):
        pid = path.name.partition("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def check_address(host: str, port: int) -> None:
    """See that the address can be listened on, before anything is started.

    Raises:
        ConfigError: it cannot, with the reason.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port"
        ) from error
