"""A server to be harmed: ``paddle-ds serve`` with the embedded model, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests

from paddle_ds_serving.supervision import control

#: longest that anything may take to come back
BACK_S = 60.0


class Server:
    """``paddle-ds serve`` in a directory of its own, ready on return.

    Args:
        directory: gets the runtime directory.
        log: gets what the server writes.
        arguments: more arguments of ``paddle-ds serve``.
        environ: environment variables beside this process's own.
    """

    def __init__(
        self, directory: Path, log: Path, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self._environ = dict(environ or {})
        self.run_dir = directory / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log.open("ab")
        self._command = [sys.executable, "-m", "paddle_ds", "serve", "--port", str(port), "--num-threads", "1", *arguments]
        self.start()

    def start(self) -> None:
        own = {"PADDLE_DS_RUNTIME_DIR": str(self.run_dir), "PADDLE_DS_LOG_FORMAT": "json"}
        environ = {**os.environ, **own, **self._environ}
        self.process = subprocess.Popen(self._command, env=environ, stdout=self._log, stderr=self._log, start_new_session=True)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until it answers."""
        started_s = time.monotonic()
        while time.monotonic() < started_s + BACK_S:
            try:
                if requests.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise SystemExit(f"the server is not back after {BACK_S:g} s; its log is {self._log.name}")

    def wait_replaced(self, what: str, before: list[int]) -> None:
        """Until as many processes are there as before, and the first is another one."""
        deadline_s = time.monotonic() + BACK_S
        while before[0] in (now := self.pids(what)) or len(now) < len(before):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the {what} was not replaced within {BACK_S:g} s")
            time.sleep(0.02)

    def ask(self, op: str, **arguments: Any) -> Any:
        return control.ask(control.find(self.run_dir, self.process.pid), op, timeout_s=300, **arguments)

    def pids(self, what: str) -> list[int]:
        if what == "supervisor":
            return [self.process.pid]
        children = psutil.Process(self.process.pid).children(recursive=True)
        word = "gunicorn" if what == "worker" else "engine.process"
        found = []
        for child in children:
            with contextlib.suppress(psutil.Error):  # it has just ended
                if word in " ".join(child.cmdline()) and (what == "engine" or not child.children()):
                    found.append(child.pid)
        return found

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=120)
