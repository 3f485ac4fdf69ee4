"""A full runtime directory, a clock that jumps, a slow line: what goes on, and what is refused with a reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from access_keys import bearer, entry, write_keys
from fake_engine import Gate, say
from gunicorn_process import ROOT, GunicornProcess, eventually
from redis_server import PROGRAM, RedisServer
from surroundings import Clock, SlowLine, may_mount, small_disk

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import InternalError, RunDirectoryError
from paddle_ds_serving import metric_files
from paddle_ds_serving.host_metrics import record_restarts
from paddle_ds_serving.supervision import control
from paddle_ds_serving.supervision.child import Child
from paddle_ds_serving.supervision.fleet import Fleet
from paddle_ds_serving.supervision.pointer import Pointer, PointerFile

needs_small_disk = pytest.mark.skipif(not may_mount(), reason="a small disk needs the right to mount")
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def chat(server: GunicornProcess) -> int:
    return httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30).status_code


def count_much(server: GunicornProcess) -> None:
    """Many different counters: over a page of them."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/v1/models", "/v1/completions", "/tokenize", "/nothing", "/version", "/admin/status", "/openapi.json"):
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
                client.request(method, path)


def refused_patches(server: GunicornProcess) -> float:
    """How often PATCH was counted."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'method="PATCH"' in line and "http_requests_total{" in line)


def worker(server: GunicornProcess) -> int:
    (child,) = psutil.Process(server.process.pid).children()
    return child.pid


# A full disk under the runtime directory


@needs_small_disk
def test_workers_count_and_answer_on_a_full_disk(start_gunicorn, tmp_path: Path):
    with small_disk(tmp_path / "run", 2 << 20) as disk:
        server = start_gunicorn(more_environ={"PADDLE_DS_RUNTIME_DIR": str(disk.path)})
        first = worker(server)
        disk.fill()
        count_much(server)
        assert (chat(server), worker(server)) == (200, first)
        assert refused_patches(server) == 7
        kinds = {path.name.rpartition("_")[0] for path in disk.path.glob("metrics-*/*.db")}
        assert kinds <= set(metric_files.KINDS)  # room is taken for all there are

        os.kill(first, signal.SIGKILL)  # the next one finds no room, and counts for itself
        assert eventually(lambda: '"event": "metrics.alone"' in server.log)
        server._wait_ready()
        count_much(server)
        count_much(server)
        assert (chat(server), refused_patches(server)) == (200, 14)


def wait_for_ever(socket_path: Path, config_path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Fleet, Path]]:
    with small_disk(tmp_path / "run", 1 << 16) as disk:
        made = Fleet(disk.path, EngineConfig(model="first"), wait_for_ever, drain_s=60.0)
        yield made, disk
        made.stop()


@needs_small_disk
def test_on_a_full_disk_engines_stay_as_they_are(fleet):
    made, disk = fleet
    first, config = made.current, EngineConfig(model="second")
    disk.fill()
    for change in (lambda: made.join(config), lambda: made.refuse("for a while"), made.start_current):
        with pytest.raises(RunDirectoryError, match="No space left on device"):
            change()
    assert (made.current, made.refusal, made.generation) == (first, "", 1)
    assert PointerFile(disk.path).read() == Pointer(1, first.socket)
    with pytest.raises(RunDirectoryError):
        record_restarts(disk.path, 1)

    disk.free()
    joined = made.join(config)
    disk.fill()
    with pytest.raises(RunDirectoryError):
        made.switch()
    assert (made.current, made.draining) == (first, [])
    made.drop()  # tells nobody, and works
    disk.free()
    made.join(config)  # nothing is left of the first attempt
    made.switch()
    assert (made.current.config, made.draining, joined.child.ending) == (config, [first], True)
    assert PointerFile(disk.path).read() == Pointer(2, made.current.socket)


def test_a_supervisor_says_what_its_disk_refused(tmp_path: Path):
    def full(question: object) -> None:
        raise OSError(28, "No space left on device")

    server = control.ControlServer(tmp_path, {"load": full})
    with pytest.raises(InternalError, match="No space left on device"):
        control.ask(tmp_path / control.FILE_NAME, "load")
    server.close()


def test_a_child_that_cannot_be_started_is_tried_again(monkeypatch):
    starts: list[bool] = []

    def start() -> subprocess.Popen[bytes]:
        starts.append(True)
        if len(starts) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return wait_for_ever(Path(), Path())

    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    child, tries = Child("engine", start), []
    for _ in range(20):
        child.watch()
        tries.append(len(starts))
        now_s += 0.2
    monkeypatch.undo()
    assert tries == [1, 1, 1, *[2] * 5, *[3] * 12]  # after 0.5 s and 1 s
    assert child.alive
    child.kill()


# A clock that jumps


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


def with_clock(clock: Clock, **environ: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join((str(clock.directory), str(ROOT), str(ROOT / "serving"))), **environ}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("ahead_s", [86400.0, -3600.0], ids=["a day ahead", "an hour back"])
def test_a_clock_that_jumps_cuts_no_stream_not_even_while_the_server_stops(start_gunicorn, clock, ahead_s):
    gate = threading.Event()
    server = start_gunicorn(say("Let</think>2", Gate(gate), "Hello"), more_environ=with_clock(clock))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=30) as response:
        lines = response.iter_lines()
        created_s = float(next(lines).partition('"created":')[2].partition(",")[0])
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not listens(server.port))  # the grace period has begun
        clock.jump(ahead_s)
        time.sleep(0.5)  # Gunicorn's master looks ten times a second
        gate.set()
        rest = [line for line in lines if line]
    assert abs(created_s - time.time()) < 3600
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(timeout=20) == 0


def test_quotas_and_cached_answers_know_nothing_of_the_time_of_day(make_server, tmp_path, monkeypatch):
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", rpm=2), entry("free", "infer"))
    server = make_server(environ={**environ, "PADDLE_DS_RESPONSE_CACHE_S": "60"})
    real_s = time.time

    def found() -> tuple[int, str]:
        answer = server.post("/v1/chat/completions", {**CHAT, "temperature": 0}, headers=bearer("free"))
        return server.get("/v1/models", headers=bearer("limited")).status_code, answer.headers["x-cache"]

    assert [found() for _ in range(3)] == [(200, "miss"), (200, "hit"), (429, "hit")]
    for ahead_s in (3600, -3600, 86400):
        monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: real_s() + ahead_s)
        assert found() == (429, "hit")


# A slow line


@pytest.fixture
def slow() -> Iterator[object]:
    lines: list[SlowLine] = []

    def make(port: int) -> int:
        lines.append(SlowLine(port, 0.1))
        return lines[-1].port

    yield make
    for line in lines:
        line.close()


def test_a_stream_arrives_whole_over_a_slow_line(start_gunicorn, slow):
    server = start_gunicorn()
    url = f"http://127.0.0.1:{slow(server.port)}/v1/chat/completions"
    started_s = time.monotonic()
    lines = [line for line in httpx.post(url, json={**CHAT, "stream": True}, timeout=30).text.splitlines() if line]
    assert time.monotonic() - started_s >= 0.2  # there and back
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello world"
    assert lines[-1] == "data: [DONE]"


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_quotas_are_right_over_a_slow_line_to_redis(make_server, slow, tmp_path):
    redis = RedisServer(tmp_path)
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", "metrics", rpm=2))
    environ["PADDLE_DS_REDIS_URL"] = f"redis://127.0.0.1:{slow(redis.port)}/0"
    one, two = make_server(environ=environ), make_server(environ=environ)
    statuses = [server.get("/v1/models", headers=bearer("limited")).status_code for server in (one, two, one, two)]
    assert statuses == [200, 200, 429, 429]
    assert "paddle_ds:redis_up 1.0" in one.get("/metrics", headers=bearer("limited")).text
    redis.kill()
