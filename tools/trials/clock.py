"""Jumps of the time of day under streams, and while the server stops. It needs libfaketime (Debian: the package faketime)."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import requests

from trials.clients import Clients
from trials.server import Server
from trials.surroundings import bearer, entry, lost, metric, write_keys

HELP = "jumps of the clock under streams; needs libfaketime"
_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")
#: libfaketime 0.9.10 also moves the absolute monotonic time that Python's sleep waits for, which is none of the server's doing
_SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
_JUMPS_S = (3600, -3600, 86400, 0)
_SECRET = "s" * 40
_RPM = 10
#: of the token from now on: one that an hour ahead has outlived
_TOKEN_S = 1800


class Clock:
    """The time of day of processes with :attr:`environ`; their monotonic clocks are left alone."""

    def __init__(self, directory: Path) -> None:
        found = [str(path) for pattern in _LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))]
        if not found:
            raise SystemExit("libfaketime is not installed; Debian and Ubuntu: apt-get install faketime")
        self._path = directory / "clock"
        self.jump(0)
        self.environ = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "PYTHONPATH": str(directory / "python"),
        }
        (directory / "python").mkdir()
        (directory / "python" / "sitecustomize.py").write_text(_SLEEP)

    def jump(self, ahead_s: int) -> None:
        """Set it to so many seconds from the real time."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(f"{ahead_s:+d}s\n")
        partial.replace(self._path)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--times", type=int, default=3, help="how often each jump is made")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load after each jump")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Jumps while the server serves; then one day ahead while it stops."""
    clock, secret = Clock(directory), directory / "jwt.key"
    secret.write_text(_SECRET)
    log = directory / "log"
    free, limited = entry("free", "infer", "metrics", rpm=1_000_000, tpm=1_000_000_000), entry("limited", "infer", rpm=_RPM)
    environ = write_keys(directory / "keys.yaml", free, limited)
    environ |= {"PADDLE_DS_JWT_KEY_FILE": str(secret), "PADDLE_DS_JWT_AUDIENCE": "us", "PADDLE_DS_CANARY_EVERY_S": "2"}
    with Server(directory, log, environ={**environ, **clock.environ}) as server:
        with Clients(server.url, options.streams, bearer("free")) as clients:
            let_in, allowed, tokens = _jump(server, clock, options)
        status = server.ask("status")
        restarts = metric(server.url, "engine_restarts_total", "free")
        with ThreadPoolExecutor(options.streams) as pool:
            streams = [pool.submit(_long_stream, server.url) for _ in range(options.streams)]
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            clock.jump(86400)
            running = sum(not stream.done() for stream in streams)
            stopping = Counter(stream.result() for stream in streams)
        exit_status = server.process.wait(timeout=120)
    seen_s = _hours_in(log)
    return {
        "jumps": options.times * len(_JUMPS_S),
        "outcomes": dict(clients.outcomes),
        "silence_s_max": round(max(clients.silences_s), 2),
        "hours_in_log": seen_s,
        "let_in": let_in,
        "quota_allows": round(allowed, 1),
        "token_statuses": tokens,
        "canary_failures": status["canary"]["failures_in_a_row"],
        "engine_restarts": restarts,
        "streams_at_its_last_jump": running,
        "outcomes_while_it_stopped": dict(stopping),
        "exit_status": exit_status,
        "passed": not lost(clients.outcomes)
        and not lost(stopping)
        and running == options.streams
        and (restarts, status["canary"]["failures_in_a_row"], exit_status) == (0.0, 0, 0)
        and let_in <= allowed + 1
        and tokens == {"+3600": [401], "-3600": [200], "+86400": [401], "+0": [200]}
        and {-1, 0, 1, 24} <= set(seen_s),
    }


def _jump(server: Server, clock: Clock, options: argparse.Namespace) -> tuple[int, float, dict[str, list[int]]]:
    """Requests of a limited key that were let in, how many its quota allows, and what a token got after each jump."""
    claims = {"sub": "someone", "aud": "us", "exp": int(time.time()) + _TOKEN_S, "scope": "infer"}
    token = {"authorization": f"Bearer {jwt.encode(claims, _SECRET)}"}
    started_s, let_in = time.monotonic(), 0
    tokens: dict[str, set[int]] = {}

    def ask(headers: dict[str, str]) -> int:
        return requests.get(f"{server.url}/v1/models", headers=headers, timeout=30).status_code

    for _ in range(options.times):
        for ahead_s in _JUMPS_S:
            clock.jump(ahead_s)
            tokens.setdefault(f"{ahead_s:+d}", set()).add(ask(token))
            let_in += sum(ask(bearer("limited")) == 200 for _ in range(_RPM))
            time.sleep(options.seconds)
    allowed = _RPM + (time.monotonic() - started_s) * _RPM / 60
    return let_in, allowed, {name: sorted(found) for name, found in tokens.items()}


def _long_stream(url: str) -> str:
    """Some seconds of tokens, and whether they came whole."""
    body = {"messages": [{"role": "user", "content": "1+1"}], "stream": True, "ignore_eos": True, "max_tokens": 900}
    try:
        with requests.post(f"{url}/v1/chat/completions", json=body, headers=bearer("free"), stream=True, timeout=60) as response:
            lines = [line for line in response.iter_lines() if line]
    except requests.RequestException as error:
        return type(error).__name__
    if not lines or lines[-1] != b"data: [DONE]":
        return "ended early"
    event = json.loads(lines[-2].removeprefix(b"data: "))
    return f"event {event['error']['code']}" if "error" in event else "ok"


def _hours_in(log: Path) -> list[int]:
    """How far the times in the log are from the real one, in whole hours."""
    now_s = time.time()
    times = [json.loads(line)["time"] for line in log.read_text().splitlines() if line.startswith("{")]
    return sorted({round((at_s - now_s) / 3600) for at_s in times})


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    return [
        f"| {result['jumps']} jumps of the clock (an hour ahead and back, a day ahead) under {options.streams} streams | "
        f"{result['outcomes']}; {result['let_in']} requests of a limited key let in, its quota allows {result['quota_allows']}; "
        f"{result['engine_restarts']:g} restarts |",
        f"| a day ahead while the server stops | {result['outcomes_while_it_stopped']}, exit status {result['exit_status']} |",
    ]
