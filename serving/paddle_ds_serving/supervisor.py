"""The supervisor: one process that owns the engine and Gunicorn.

    paddle-ds serve (supervisor)
      ├── engine      python -m paddle_ds.engine.process     restarted by itself, with a growing pause
      └── gunicorn    HTTP workers                           the same; an engine's death does not touch it

Children live in sessions of their own, so Ctrl-C reaches the supervisor alone and it stops them in order: first HTTP (streams may
finish), then the engine. If the supervisor is killed the kernel tells the children (see ``paddle_ds.ipc.parent``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import ConfigError, EngineError, from_info
from paddle_ds.ipc.client import EngineClient
from paddle_ds.ipc.messages import EngineInfo
from paddle_ds.logs import fields
from paddle_ds.settings import Settings

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
#: a child that lived this long is forgiven its earlier deaths
_HEALTHY_AFTER_S = 60.0
#: for what a stopped child still does after its own grace period
_KILL_AFTER_S = 5.0
_ENGINE_GRACE_S = 10.0


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


class Child:
    """A process that is started again when it dies, after a pause that doubles each time."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._start_again_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.num_starts = 0
        self.last_status: int | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def watch(self) -> None:
        """Start it if it is not there and its pause is over."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_again_s:
                self._process = self._start()
                self._started_s = now
                self.num_starts += 1
            return
        self.last_status = self._process.poll()
        if self.last_status is None:
            return
        self._process = None
        if now - self._started_s > _HEALTHY_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S
        self._start_again_s = now + self._pause_s
        logger.error(
            "child.died",
            extra=fields(child=self.name, status=self.last_status, restart_in_s=self._pause_s, starts=self.num_starts),
        )
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def stop(self, grace_s: float) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            logger.error("child.killed", extra=fields(child=self.name, after_s=grace_s))
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it and all it started, now."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # each child leads a session of its own
            self._process.wait()


class Supervisor:
    """Runs until it is told to stop."""

    def __init__(
        self,
        config: EngineConfig,
        options: ServeOptions,
        settings: Settings,
        on_ready: Callable[[EngineInfo], None],
        on_progress: Callable[[float], None],
    ) -> None:
        self._config = config
        self._options = options
        self._settings = settings
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._stopping = False  # set by a signal; an Event could be caught holding its own lock
        self._run_dir = Path(settings.runtime_dir) / f"serve-{os.getpid()}"
        self._socket_path = self._run_dir / "engine.sock"
        self.engine = Child("engine", self._start_engine)
        self.http = Child("http", self._start_http)

    def run(self) -> int:
        """Start everything and watch over it. Returns the exit status.

        Raises:
            ConfigError: the address cannot be listened on.
            PaddleDSError: the engine could not load the checkpoint the first time.
        """
        check_address(self._options.host, self._options.port)
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        client = EngineClient(self._socket_path)
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._ask_to_stop)
            return self._watch(client)
        finally:
            self._stop_children()
            client.close()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _watch(self, client: EngineClient) -> int:
        announced = ""
        while not self._stopping:
            self.engine.watch()
            self.http.watch()
            info = client.info
            if client.connected and info is not None and info.boot_id != announced:
                self._on_progress(info.progress)
                if info.state == "ready":
                    announced = info.boot_id
                    self._on_ready(info)
                elif info.state == "failed" and info.error is not None and not announced:
                    raise from_info(info.error)
            if not announced and self.http.num_starts > 2:
                raise EngineError(f"the HTTP server does not stay up (exit status {self.http.last_status}); see the log above")
            if not announced and self.engine.num_starts > 2:
                raise EngineError(f"the engine does not stay up (exit status {self.engine.last_status}); see the log above")
            time.sleep(_POLL_S)
        return 0

    def _ask_to_stop(self, signum: int, frame: object) -> None:
        if self._stopping:  # asked twice: no more grace
            self.http.kill()
            self.engine.kill()
        self._stopping = True

    def _stop_children(self) -> None:
        self.http.stop(self._options.grace_s + _KILL_AFTER_S)
        self.engine.stop(_ENGINE_GRACE_S)

    def _start_engine(self) -> subprocess.Popen[bytes]:
        config_path = self._run_dir / "engine.json"
        config_path.write_text(json.dumps(self._config.to_dict()), encoding="utf-8")
        self._socket_path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "paddle_ds.engine.process", "--socket", str(self._socket_path)]
        return subprocess.Popen([*command, "--config", str(config_path)], start_new_session=True)

    def _start_http(self) -> subprocess.Popen[bytes]:
        options = self._options
        command = [sys.executable, "-m", "gunicorn", "--config", "python:paddle_ds_serving.gunicorn_conf"]
        command += ["--bind", options.url.removeprefix("http://"), "--workers", str(options.workers)]
        command += ["--graceful-timeout", str(int(options.grace_s))]
        environ = {**os.environ, "PADDLE_DS_ENGINE_SOCKET": str(self._socket_path)}
        return subprocess.Popen(command, start_new_session=True, env=environ)


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
