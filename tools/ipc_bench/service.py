"""One arm, started for real: Gunicorn with its HTTP workers, and the scripted engine behind them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from paddle_ds_serving.supervisor import Child

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("zeromq", "dirty-stream", "dirty-exchange")
APPS = {
    "dirty-stream": ("ipc_bench.dirty_apps:StreamApp", "ipc_bench.dirty_apps:OtherStreamApp"),
    "dirty-exchange": ("ipc_bench.dirty_apps:ExchangeApp", "ipc_bench.dirty_apps:OtherExchangeApp"),
}
_POLL_S = 0.1
#: longer than the 30 s after which Gunicorn's client gives a silent stream up
_CALL_S = 90.0


@dataclass(frozen=True)
class Setup:
    """How an arm is started. ``dirty_limit``: at most so many dirty workers load an application (``:N`` in its name)."""

    arm: str
    steps_per_s: float = 25.0
    num_http_workers: int = 2
    num_dirty_workers: int = 1
    num_dirty_threads: int = 1
    dirty_limit: int | None = 1
    dirty_timeout_s: int = 300
    num_versions: int = 1
    load_s: float = 0.0
    load_fails: bool = False
    grace_s: int = 10


class Service:
    """A running arm. ``sockets`` and ``engines`` are ZeroMQ's; the dirty arms' processes belong to Gunicorn."""

    def __init__(self, setup: Setup, run_dir: Path) -> None:
        self.setup = setup
        self.journal = run_dir / "journal"
        self._stop = threading.Event()
        self._port = _free_port()
        sockets = [run_dir / f"engine-{number}.sock" for number in range(setup.num_versions)]
        self._environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, ROOT / "serving", ROOT / "tools")),
            # Gunicorn keeps sockets and a pid file there, and kills whom an old pid file names
            "TMPDIR": str(run_dir),
            "IPC_BENCH_ARM": setup.arm,
            "IPC_BENCH_SOCKETS": ":".join(map(str, sockets)),
            "IPC_BENCH_JOURNAL": str(self.journal),
            "IPC_BENCH_STEPS_PER_S": str(setup.steps_per_s),
            "IPC_BENCH_LOAD_S": str(setup.load_s),
            "IPC_BENCH_LOAD_FAILS": str(int(setup.load_fails)),
        }
        self._log = (run_dir / "log").open("wb")
        self.engines: list[Child] = []
        if setup.arm == "zeromq":
            self.engines = [Child("engine", lambda path=path: self._start_engine(path)) for path in sockets]  # type: ignore[misc]
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self.gunicorn = self._start_gunicorn()
        self._family: dict[int, psutil.Process] = {}

    def call(self, path: str, **call: Any) -> dict[str, Any]:
        """POST to an HTTP worker."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", json.dumps(call).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=_CALL_S) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Until all engines have loaded and a one-frame stream came back in as many processes as there are HTTP workers."""
        num_engines = self.setup.num_dirty_workers if self.setup.arm in APPS else self.setup.num_versions
        deadline_s = time.monotonic() + timeout_s
        pids: set[int] = set()
        while len(pids) < self.setup.num_http_workers or len(self.notes("ready")) < num_engines:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.setup} is not ready:\n{self.log()[-4000:]}")
            with contextlib.suppress(OSError):
                answer = self.call("/run", num_streams=1, num_frames=1)
                if "error" not in answer["streams"][0]:
                    pids.add(answer["pid"])
                    continue
            time.sleep(_POLL_S)

    def arbiter(self) -> psutil.Process:
        """Gunicorn's dirty arbiter."""
        (path,) = self.journal.parent.glob("gunicorn-dirty-*.pid")
        return psutil.Process(int(path.read_text()))

    def dirty_workers(self) -> list[psutil.Process]:
        """The arbiter's children."""
        return self.arbiter().children()

    def http_workers(self) -> list[psutil.Process]:
        """Gunicorn's children but for the arbiter."""
        arbiter = None if self.setup.arm == "zeromq" else self.arbiter()
        return [child for child in psutil.Process(self.gunicorn.pid).children() if child != arbiter]

    def engine_pids(self) -> list[int]:
        """The processes that would hold a model."""
        if self.setup.arm == "zeromq":
            return [engine.pid for engine in self.engines if engine.pid is not None]
        return [worker.pid for worker in self.dirty_workers()]

    def cpu_ns(self) -> dict[str, int]:
        """Processor time of each part so far."""
        middle = [] if self.setup.arm == "zeromq" else [self.arbiter().pid]
        parts = {"engine": self.engine_pids(), "arbiter": middle, "http": [worker.pid for worker in self.http_workers()]}
        return {part: sum(map(_cpu_ns, pids)) for part, pids in parts.items()}

    def notes(self, what: str) -> list[dict[str, Any]]:
        """The journal's lines of one kind."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def log(self) -> str:
        """What all processes wrote."""
        return Path(self._log.name).read_text(errors="replace")

    def remember(self) -> None:
        """Note who belongs to this arm now, so that even orphans are ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.gunicorn.pid).children(recursive=True):
                self._family[process.pid] = process

    def stop(self) -> None:
        """End everything."""
        self.remember()
        if self.gunicorn.poll() is None:
            self.gunicorn.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.gunicorn.wait(timeout=self.setup.grace_s + 5)
            self.gunicorn.kill()
            self.gunicorn.wait()
        self._stop.set()
        self._watcher.join()
        for engine in self.engines:
            engine.stop(5.0)
        for process in self._family.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._family.values()), timeout=5)
        self._log.close()

    def _watch(self) -> None:
        """The supervisor's own loop over the engine."""
        while not self._stop.is_set():
            for engine in self.engines:
                engine.watch()
            self._stop.wait(_POLL_S)

    def _start_engine(self, path: Path) -> subprocess.Popen[bytes]:
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "ipc_bench.zeromq_engine", str(path)]
        return subprocess.Popen(command, env=self._environ, stdout=self._log, stderr=self._log, start_new_session=True)

    def _start_gunicorn(self) -> subprocess.Popen[bytes]:
        setup = self.setup
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--bind",
            f"127.0.0.1:{self._port}",
            "--workers",
            str(setup.num_http_workers),
        ]
        command += ["--worker-class", "gthread", "--threads", "256", "--timeout", "600", "--log-level", "info"]
        command += ["--graceful-timeout", str(setup.grace_s), "--no-control-socket"]
        limit = "" if setup.dirty_limit is None else f":{setup.dirty_limit}"
        for app in APPS.get(setup.arm, ())[: setup.num_versions]:
            command += ["--dirty-app", app + limit]
        if setup.arm in APPS:
            command += ["--dirty-workers", str(setup.num_dirty_workers), "--dirty-threads", str(setup.num_dirty_threads)]
            command += ["--dirty-timeout", str(setup.dirty_timeout_s)]
        command.append("ipc_bench.worker:application")
        return subprocess.Popen(command, env=self._environ, stdout=self._log, stderr=self._log, start_new_session=True)


@contextlib.contextmanager
def serve(setup: Setup, *, wait: bool = True) -> Iterator[Service]:
    """Run an arm until the block ends."""
    with tempfile.TemporaryDirectory(prefix="ipc-") as name:
        service = Service(setup, Path(name))
        try:
            if wait:
                service.wait_ready()
            yield service
        finally:
            service.stop()


def _cpu_ns(pid: int) -> int:
    """A process's CPU clock, as ``clock_getcpuclockid`` makes it: /proc counts in steps of 10 ms."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def error_kind(text: str) -> str:
    """An error without its paths and numbers, to count it by."""
    return re.sub(r"\d+", "N", re.sub(r"/\S+", "PATH", text))
