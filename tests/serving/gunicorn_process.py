"""A real Gunicorn with real workers and the real socket; only the engine behind it is scripted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from fake_engine import IpcEngine, Script

ROOT = Path(__file__).parents[2]


class GunicornProcess:
    """Started and ready on return."""

    def __init__(
        self,
        directory: Path,
        tokenizer_dir: Path,
        script: Script,
        *,
        num_workers: int = 1,
        ping_s: float = 15.0,
        more_environ: Mapping[str, str] | None = None,
        scheme: str = "http",
        config: Path = ROOT / "serving" / "gunicorn.conf.py",
    ) -> None:
        directory.mkdir(parents=True)
        # a Unix socket's path has 107 bytes, pytest's directories are long
        self._socket_dir = tempfile.TemporaryDirectory(prefix="pds-")
        socket_path = Path(self._socket_dir.name) / "engine.sock"
        self.engine = IpcEngine(socket_path, tokenizer_dir, script)
        self.port = _free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.runtime_dir = directory / "run"
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_DS_", "PROMETHEUS_"))},
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "serving"))),
            "PADDLE_DS_ENGINE_SOCKET": str(socket_path),
            "PADDLE_DS_RUNTIME_DIR": str(self.runtime_dir),
            "PADDLE_DS_SSE_PING_S": str(ping_s),
            "PADDLE_DS_LOG_FORMAT": "json",
            **(more_environ or {}),
        }
        command = [sys.executable, "-m", "gunicorn", "-c", str(config)]
        command += ["--bind", f"127.0.0.1:{self.port}", "--workers", str(num_workers), "--threads", "16"]
        self._log_path = directory / "log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(command, env=environ, stderr=log, stdout=log)
        self._wait_ready()

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return self._log_path.read_text(encoding="utf-8")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.engine.close()
        self._socket_dir.cleanup()

    def _wait_ready(self) -> None:
        for _ in range(300):
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5, verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        log = self.log
        self.close()
        raise AssertionError(f"Gunicorn did not become ready:\n{log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(check: object, limit_s: float = 10.0) -> bool:
    """Whether ``check()`` becomes true before a generous limit."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if check():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False
