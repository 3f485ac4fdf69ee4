"""100 ms more each way: between clients and server, and between server and Redis."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import requests

from trials.clients import Clients
from trials.server import Server
from trials.surroundings import RedisServer, bearer, entry, lost, metric, slow_line, write_keys

HELP = "a slow network between clients and server, and between server and Redis"
_RPM = 60


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds, each way")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Streams over the slow line, and a key that uses its quota up."""
    free, limited = entry("free", "infer", "metrics", rpm=1_000_000, tpm=1_000_000_000), entry("limited", "infer", rpm=_RPM)
    redis = RedisServer(directory)
    with slow_line(redis.port, options.delay) as redis_port:
        environ = write_keys(directory / "keys.yaml", free, limited)
        environ["PADDLE_DS_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
        with Server(directory, options.log, environ=environ) as server:
            port = int(server.url.rpartition(":")[2])
            with slow_line(port, options.delay) as slow_port:
                url = f"http://127.0.0.1:{slow_port}"
                with Clients(url, options.streams, bearer("free")) as clients:
                    passed, allowed = _use_up(server.url, options.seconds)
                up = metric(url, "redis_up", "free")
    redis.kill()
    return {
        "outcomes": dict(clients.outcomes),
        "silence_s_max": round(max(clients.silences_s), 2),
        "let_in": passed,
        "quota_allows": round(allowed, 1),
        "redis_up": up,
        "passed": not lost(clients.outcomes) and allowed - 3 <= passed <= allowed + 1 and up == 1,
    }


def _use_up(url: str, seconds: float) -> tuple[int, float]:
    """Requests that were let in of as many as can be asked one after another, and how many the quota allows."""
    started_s, passed = time.monotonic(), 0
    with requests.Session() as session:
        while (ran_s := time.monotonic() - started_s) < seconds or passed < _RPM:
            passed += session.get(f"{url}/v1/models", headers=bearer("limited"), timeout=30).status_code == 200
    return passed, _RPM + ran_s * _RPM / 60


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    what = f"{options.delay * 1000:g} ms each way, to clients and to Redis, {options.streams} streams"
    quota = f"{result['let_in']} requests of a limited key let in, its quota allows {result['quota_allows']}"
    return [f"| {what} | {result['outcomes']}; longest silence {result['silence_s_max']} s; {quota} |"]
