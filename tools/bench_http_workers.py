"""Which Gunicorn worker class bears many open streams: threads (gthread) or greenlets (gevent)?

``gthread`` is what `paddle-ds serve` runs; ``gthread-5ms`` is the same with Python's default switch interval.

    load process ── N connections ──► Gunicorn, 2 workers ── real IPC ──► paced engine (no model)
    long prompts ── one a second ───────────┘  (with --long-prompts: do other streams notice?)

The engine sends every stream one token a tick, so the HTTP workers are the only thing that works. The two classes take turns,
round by round, since a shared machine drifts; figures are medians over the rounds. Run it alone:

    python tools/bench_http_workers.py --streams 1000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "serving"), str(ROOT / "tests" / "serving")]

ARMS = ("gthread", "gthread-5ms", "gevent")


def gevent_application() -> Any:
    """The application with ZeroMQ's cooperative sockets: the plain ones would stop every greenlet of the worker."""
    import zmq.green

    from paddle_ds.ipc import client

    client.zmq = zmq.green  # type: ignore[attr-defined]
    from paddle_ds_serving.wsgi import application

    return application()


def default_interval_application() -> Any:
    """The application with the switch interval that Python comes with."""
    sys.setswitchinterval(0.005)
    from paddle_ds_serving.wsgi import application

    return application()


def long_prompts(port: int, num_chars: int) -> None:
    """Tokenize a long text once a second, over and over."""
    body = json.dumps({"prompt": "Let me think. " * (num_chars // 14)}).encode()
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/tokenize", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                response.read()
        except OSError:  # the round is over
            return
        time.sleep(1.0)


def engine_process(socket_path: str, model_dir: str, tick_s: float, num_tokens: int) -> None:
    """One token for every stream at each tick, and ``num_tokens`` in all."""
    from fake_engine import ready_info

    from paddle_ds.ipc.messages import Abort, Delta, Finished, Step, Usage
    from paddle_ds.ipc.server import EngineServer, WorkerGone
    from paddle_ds.text import Tokenizer

    token = Tokenizer.from_dir(Path(model_dir)).encode(" world", add_special_tokens=False)
    server = EngineServer(Path(socket_path), ready_info(Path(model_dir), max_context_tokens=4096))
    streams: dict[tuple[bytes, str], int] = {}
    next_tick_s = time.monotonic() + tick_s
    while True:
        while (message := server.receive(max(0.0, next_tick_s - time.monotonic()))) is not None:
            if isinstance(message, WorkerGone) or isinstance(message.message, Abort):
                continue  # no client leaves early here
            streams[message.client, message.message.request_id] = 0
        next_tick_s = max(next_tick_s + tick_s, time.monotonic())
        steps: dict[bytes, Step] = {}
        for (client, request_id), sent in list(streams.items()):
            step = steps.setdefault(client, Step(deltas=[], finished=[]))
            step.deltas.append(Delta(request_id, token))
            streams[client, request_id] = sent + 1
            if sent + 1 == num_tokens:
                del streams[client, request_id]
                step.finished.append(Finished(request_id, "length", Usage(8, num_tokens)))
        for client, step in steps.items():
            server.send(client, step)


class Load:
    """Opens the streams at a steady rate and reads them all in one thread, looking for three byte strings only."""

    def __init__(self, port: int, num_streams: int, per_second: float) -> None:
        self._port = port
        self._num_streams = num_streams
        self._gap_s = 1.0 / per_second
        self.first_s: list[float] = []
        self.gaps_s: list[float] = []
        self.num_events = 0
        self.num_done = 0
        self.num_failed = 0

    def run(self, limit_s: float) -> None:
        """Until every stream has ended, or the limit."""
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 4000})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        request = f"{head}\r\nConnection: close\r\n\r\n{body}".encode()
        selector = selectors.DefaultSelector()
        opened, start_s = 0, time.monotonic()
        while self.num_done + self.num_failed < self._num_streams and time.monotonic() - start_s < limit_s:
            if opened < self._num_streams and time.monotonic() >= start_s + opened * self._gap_s:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
                connection.sendall(request)
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ, [time.monotonic(), b"", None])
                opened += 1
                continue
            for key, _ in selector.select(timeout=0.001 if opened < self._num_streams else 0.5):
                self._read(selector, key)
        self.num_failed += self._num_streams - self.num_done - self.num_failed

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        state: list[Any] = key.data
        try:
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
        except OSError:
            data = b""
        if not data:
            self.num_failed += b"[DONE]" not in state[1]
            self.num_done += b"[DONE]" in state[1]
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            return
        self.num_events += data.count(b'"reasoning_content":')
        if b'"reasoning_content":' in data:
            now_s = time.monotonic()
            if state[2] is None:
                self.first_s.append(now_s - state[0])
            else:
                self.gaps_s.append(now_s - state[2])
            state[2] = now_s
        state[1] = (state[1] + data)[-64:]


def cpu_s(processes: list[psutil.Process]) -> float:
    """User and system time so far."""
    times = [process.cpu_times() for process in processes]
    return sum(time_.user + time_.system for time_ in times)


def start_gunicorn(arm: str, port: int, socket_path: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    """Gunicorn as it is configured here, with the worker class of ``arm``."""
    command = [sys.executable, "-m", "gunicorn", "--config", "python:paddle_ds_serving.gunicorn_conf", "--workers", "2"]
    command += ["--bind", f"127.0.0.1:{port}", "--worker-class", arm.split("-")[0]]
    if arm == "gthread-5ms":
        command += ["bench_http_workers:default_interval_application()"]
    if arm == "gevent":
        command += ["bench_http_workers:gevent_application()"]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "serving"), str(ROOT / "tools")]),
        "PADDLE_DS_ENGINE_SOCKET": str(socket_path),
        "PADDLE_DS_RUNTIME_DIR": str(run_dir),
        "PADDLE_DS_LOG_LEVEL": "warning",
    }
    return subprocess.Popen(command, env=environ)


def wait_ready(port: int) -> None:
    """Both workers have their tokenizer."""
    ready = 0
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as response:
                ready += response.status == 200
        except OSError:
            time.sleep(0.1)
        if ready == 20:
            return
    raise RuntimeError("the server did not become ready")


def one_round(arm: str, options: argparse.Namespace, model_dir: Path) -> dict[str, float]:
    """Start everything, run the load, and measure the workers."""
    with tempfile.TemporaryDirectory(prefix="pds-") as name:
        socket_path, port = Path(name) / "engine.sock", free_port()
        arguments = (str(socket_path), str(model_dir), 1.0 / options.rate, options.tokens)
        engine = multiprocessing.get_context("spawn").Process(target=engine_process, args=arguments, daemon=True)
        engine.start()
        disturber = multiprocessing.get_context("spawn").Process(
            target=long_prompts, args=(port, options.long_prompts), daemon=True
        )
        server = start_gunicorn(arm, port, socket_path, Path(name))
        try:
            wait_ready(port)
            processes = psutil.Process(server.pid).children()  # the workers
            if options.long_prompts:
                disturber.start()
            idle_bytes, before_s = sum(process.memory_info().rss for process in processes), cpu_s(processes)
            load = Load(port, options.streams, options.arrivals)
            peak = sample(lambda: sum(process.memory_info().rss for process in processes))
            load.run(options.limit)
            peak_bytes = peak()
            spent_s = cpu_s(processes) - before_s
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
            for process in (engine, disturber):
                if process.pid is not None:
                    process.kill()
                    process.join()
    first, gaps = sorted(load.first_s), sorted(load.gaps_s)
    return {
        "cpu_us_per_token": 1e6 * spent_s / (options.tokens * max(load.num_done, 1)),
        "tokens_per_event": options.tokens * load.num_done / max(load.num_events, 1),
        "memory_kib_per_stream": (peak_bytes - idle_bytes) / 1024 / options.streams,
        "ttft_p50_ms": 1e3 * quantile(first, 0.5),
        "ttft_p99_ms": 1e3 * quantile(first, 0.99),
        "gap_p99_ms": 1e3 * quantile(gaps, 0.99),
        "gap_max_ms": 1e3 * quantile(gaps, 1.0),
        "failures": float(load.num_failed),
    }


def quantile(ordered: list[float], share: float) -> float:
    """The value below which ``share`` of an ascending list lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


def sample(value: Callable[[], int]) -> Callable[[], int]:
    """Record the highest ``value`` in the background until the result is called."""
    highest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            highest[0] = max(highest[0], value())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def end() -> int:
        stop.set()
        thread.join()
        return max(highest[0], value())

    return end


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run the rounds and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=4.0, help="tokens a second of each stream")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of each stream")
    parser.add_argument("--arrivals", type=float, default=300.0, help="new streams a second")
    parser.add_argument("--long-prompts", type=int, default=0, metavar="CHARS", help="length of the disturbing prompts")
    parser.add_argument("--tokenizer", type=Path, default=None, help="directory of a tokenizer (default: a tiny one)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a stream counts as failed")
    options = parser.parse_args()
    from tiny_tokenizer import write_tokenizer

    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
    with tempfile.TemporaryDirectory() as name:
        model_dir = options.tokenizer or write_tokenizer(Path(name))
        for number in range(options.rounds):
            for arm in options.arms if number % 2 == 0 else options.arms[::-1]:
                results[arm].append(one_round(arm, options, model_dir))
                print(arm, {key: round(value, 2) for key, value in results[arm][-1].items()}, flush=True)
    print(f"\n{'median of ' + str(options.rounds):24}" + "".join(f"{arm:>12}" for arm in options.arms))
    for key in results[options.arms[0]][0]:
        medians = [statistics.median(round_[key] for round_ in results[arm]) for arm in options.arms]
        print(f"{key:24}" + "".join(f"{value:12.1f}" for value in medians))


if __name__ == "__main__":
    main()
