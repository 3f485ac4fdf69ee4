"""HTTP servers as child processes: ours and llama-server, on free ports of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from .install import Places
from .models import Models
from .shell import StepFailed, end_family, free_port, last_line
from .worker import peak_rss_bytes
from .worker_settings import LLAMA_DEFAULTS

_READY_S = 300.0
_ANSWER_S = 600.0


class Server:
    """A running server."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def peak_rss_bytes(self) -> int:
        """Of its largest process: the one that holds the model."""
        parent = psutil.Process(self.process.pid)
        return max(peak_rss_bytes(member.pid) for member in (parent, *parent.children(recursive=True)))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST and read the whole answer.

        Raises:
            StepFailed: the status is not 200.
        """
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise StepFailed(f"{self.name}: POST {path}: status {error.code}: {error.read(300)!r}") from error

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Server-sent events of a streamed answer. Leaving early closes the connection.

        Raises:
            StepFailed: the status is not 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_S)
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise StepFailed(f"{self.name}: POST {path}: status {response.status}: {response.read(300)!r}")
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            connection.close()


@contextlib.contextmanager
def ours(places: Places, threads: int, model: Path | None, *options: str) -> Iterator[Server]:
    """``paddle-ds serve`` on a W8A8 checkpoint, or on the embedded model."""
    port = free_port()
    command = [sys.executable, "-m", "paddle_ds", "serve", "--port", str(port), "--grace", "1"]
    command += ["--num-threads", str(threads), *(["--model", str(model)] if model else []), *options]
    with tempfile.TemporaryDirectory(prefix="peers-") as run_dir:
        environ = {"PADDLE_DS_RUNTIME_DIR": run_dir, "PADDLE_DS_LOG_LEVEL": "warning"}
        with _running("ours", command, environ, port, "/health/ready", places.logs) as server:
            yield server


@contextlib.contextmanager
def llama_server(places: Places, models: Models, threads: int, settings: Mapping[str, Any], slots: int) -> Iterator[Server]:
    """``llama-server`` with continuous batching over ``slots``."""
    port = free_port()
    command = [str(places.llama_bin / "llama-server"), *llama_server_arguments(settings, threads, slots)]
    command += ["-m", str(models.gguf), "--host", "127.0.0.1", "--port", str(port)]
    with _running("llama.cpp", command, {"OMP_NUM_THREADS": str(threads)}, port, "/health", places.logs) as server:
        yield server


def llama_server_arguments(settings: Mapping[str, Any], threads: int, slots: int) -> list[str]:
    """The worker's settings in the words of llama-server; 512 tokens of context a slot."""
    chosen = {**LLAMA_DEFAULTS, **settings}
    arguments = ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(512 * slots), "-cb", "--no-webui"]
    arguments += ["-fa", "on" if chosen["flash_attn"] else "off", "-ub", str(chosen["ubatch"])]
    arguments += ["-ctk", chosen["kv_type"], "-ctv", chosen["kv_type"], "--cache-ram", "0"]
    arguments += ["--kv-unified" if chosen["kv_unified"] else "--no-kv-unified"]
    return [*arguments, "--repack" if chosen["repack"] else "--no-repack"]


@contextlib.contextmanager
def _running(name: str, command: list[str], environ: Mapping[str, str], port: int, health: str, logs: Path) -> Iterator[Server]:
    """Start, wait until ``health`` answers 200, and end everything afterwards, whatever happens."""
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"server-{name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            server = Server(name, port, process)
            _wait_ready(server, health, path)
            yield server
        finally:
            end_family(process, grace_s=20)


def _wait_ready(server: Server, health: str, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            raise StepFailed(f"the server of {server.name} ended: {last_line(log)} (log: {log})")
        with contextlib.suppress(OSError), urllib.request.urlopen(server.url + health, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise StepFailed(f"the server of {server.name} is not ready after {_READY_S:.0f} s: {last_line(log)} (log: {log})")
