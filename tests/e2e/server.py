"""A real server for tests: ``paddle-ds serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

START_S = 120.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Handle of a running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/health``."""
        response = requests.get(f"{self.url}/health", timeout=10)
        return response.status_code, response.json()

    def wait_ready(self, timeout_s: float = START_S) -> dict[str, Any]:
        """Until ``/health`` answers 200."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                status, body = self.health()
                if status == 200:
                    return body
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log.read_text()}")

    def wait_idle(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Until nothing runs or waits and no KV block is in use; gives the last load figures."""
        deadline = time.monotonic() + timeout_s
        load: dict[str, Any] = {}
        while time.monotonic() < deadline:
            load = self.health()[1].get("load", {})  # a worker that has just started has no figures yet
            blocks = load.get("kv_cache_blocks")
            if blocks and load["running"] == load["waiting"] == 0 and blocks["free"] == blocks["total"]:
                return load
            time.sleep(0.2)
        raise AssertionError(f"still busy after {timeout_s} s: {load}")

    def engine_pid(self) -> int:
        """The engine's process, found among the supervisor's children."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if "paddle_ds.engine.process" in child.cmdline():
                    return child.pid
        raise AssertionError("no engine process")

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything it started."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self, signum: int = signal.SIGINT) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=60)


@contextmanager
def serve(tmp_path: Path, *arguments: str, wait: bool = True) -> Iterator[Server]:
    """Run ``paddle-ds serve`` with ``arguments`` until the block ends."""
    port = free_port()
    log = tmp_path / "serve.log"
    environ = {**os.environ, "PADDLE_DS_RUNTIME_DIR": str(tmp_path / "run"), "PADDLE_DS_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "paddle_ds", "serve", "--port", str(port), "--grace", "5", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    server = Server(process, port, log)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def chat_body(text: str, **more: Any) -> dict[str, Any]:
    """A chat request of one user turn."""
    return {"messages": [{"role": "user", "content": text}], **more}


def events(response: requests.Response) -> Iterator[dict[str, Any] | str]:
    """The data of each SSE frame: JSON, or ``[DONE]``."""
    for line in response.iter_lines():
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").decode()
            yield data if data == "[DONE]" else json.loads(data)
