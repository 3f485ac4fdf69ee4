"""A real server on full disks: it starts, answers, stops, and says afterwards what is missing in its log."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import requests

from e2e.server import Server, chat_body, serve
from serving.surroundings import may_mount, small_disk


def engine_pids(server: Server) -> list[int]:
    family = server.family()
    return [process.pid for process in family if process.is_running() and "paddle_ds.engine.process" in words_of(process)]


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def ask(url: str) -> str:
    answer = requests.post(f"{url}/v1/chat/completions", json=chat_body("12+7", temperature=0), timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_server_without_room_for_a_line_starts_answers_and_stops(tmp_path: Path) -> None:
    (tmp_path / "serve.log").symlink_to("/dev/full")
    with serve(tmp_path) as server:
        assert "19" in ask(server.url)
        assert server.stop(signal.SIGTERM) == 0


@pytest.mark.skipif(not may_mount(), reason="a small disk needs the right to mount")
def test_log_and_runtime_directory_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk, serve(disk.path) as server:
        disk.fill()
        assert "19" in ask(server.url)
        killed = server.engine_pid()
        os.kill(killed, signal.SIGKILL)  # its supervisor has no room to count that
        while not (engines := engine_pids(server)) or engines == [killed]:
            time.sleep(0.05)
        server.wait_ready()
        assert "19" in ask(server.url)
        disk.free()
        assert "19" in ask(server.url)
        while "paddle_ds:engine_restarts_total 1.0" not in requests.get(f"{server.url}/metrics", timeout=10).text:
            time.sleep(0.05)  # it is tried again until there is room
        family = server.family()
        assert server.stop(signal.SIGTERM) == 0
        assert psutil.wait_procs(family, timeout=10)[1] == []
        lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
        events = [json.loads(line)["event"] for line in lines if line.endswith("}")]
    assert events.count("logs.lines_lost") >= 2  # of the supervisor and of a worker
    assert events[-1] != "logs.lines_lost"
