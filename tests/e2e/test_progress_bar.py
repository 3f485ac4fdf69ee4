"""What a terminal shows while a model is loaded, and what a file gets instead: nothing."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.server import free_port

COMMANDS = {
    "generate": ["generate", "1+1", "--max-tokens", "2"],
    "chat": ["chat"],
    "bench": ["bench", "engine", "--prompt-tokens", "4", "--new-tokens", "2", "--json"],
}
ERASED = "\r\x1b[1A\x1b[2K"


class Terminal:
    """The screen's end of a pseudo-terminal."""

    def __init__(self) -> None:
        self._screen, self.keyboard = pty.openpty()
        self._seen = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> str:
        """Everything that was written to it, once all writers have gone."""
        os.close(self.keyboard)
        self._thread.join()
        os.close(self._screen)
        return self._seen.decode()

    def _read(self) -> None:
        while True:
            try:
                self._seen += os.read(self._screen, 4096)
            except OSError:  # the last writer has gone
                return


@contextmanager
def command(stderr: int, *arguments: str, runtime_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """``paddle-ds ARGUMENTS`` with nothing to read."""
    environ = {**os.environ, "TERM": "xterm", "PADDLE_DS_RUNTIME_DIR": str(runtime_dir)}
    whole = [sys.executable, "-m", "paddle_ds", *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(whole, env=environ, text=True, stderr=stderr, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_shows_how_much_of_the_model_is_loaded(name: str, tmp_path: Path) -> None:
    terminal = Terminal()
    with command(terminal.keyboard, *COMMANDS[name], runtime_dir=tmp_path) as process:
        stdout, _ = process.communicate(timeout=120)
    shown = terminal.close()
    assert process.returncode == 0
    assert "loading the model" in shown
    assert "100%" in shown
    assert ERASED in shown
    assert "loading the model" not in stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_gets_no_bar(name: str, tmp_path: Path) -> None:
    with command(subprocess.PIPE, *COMMANDS[name], runtime_dir=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "\x1b" not in stdout + stderr
    assert "loading the model" not in stdout + stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_shows_it_too_and_log_lines_do_not_run_into_it(
    log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLE_DS_LOG_FORMAT", log_format)
    terminal = Terminal()
    with command(terminal.keyboard, "serve", "--port", str(free_port()), runtime_dir=tmp_path) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("is served at" in line for line in lines), terminal.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    shown = terminal.close()
    if log_format == "json":  # for machines, whatever they read from
        assert "\x1b" not in shown
        return
    assert "loading the model" in shown
    assert ERASED in shown
    assert "model.loaded" in shown
    assert re.findall(r"(?<!\r\x1b\[K)\d\d:\d\d:\d\d (?:info|warning|error) .*", shown) == []
