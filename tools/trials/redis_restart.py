"""``kill -9`` of Redis under streams that it counts, and its return."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials.clients import Clients
from trials.server import BACK_S, Server
from trials.surroundings import RedisServer, bearer, entry, lost, metric, write_keys

HELP = "kill -9 of Redis under streams with quotas"
_OVER_QUOTA = "429 rate_limit_exceeded"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds of load with Redis, and as many without")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Redis is away when the server starts, comes, and goes and comes again."""
    free, limited = entry("free", "infer", "metrics", rpm=1_000_000, tpm=1_000_000_000), entry("limited", "infer", rpm=60)
    redis = RedisServer(directory)
    redis.kill()
    environ = {**write_keys(directory / "keys.yaml", free, limited), "PADDLE_DS_REDIS_URL": redis.url}
    noticed_s: list[float] = []
    with Server(directory, options.log, environ={**environ, "PADDLE_DS_RESPONSE_CACHE_S": "60"}) as server:

        def up() -> float:
            return metric(server.url, "redis_up", "free")

        at_start = up()
        with Clients(server.url, options.streams, bearer("free")) as clients, Clients(server.url, 1, bearer("limited")) as over:
            for _ in range(options.times):
                redis.start()
                noticed_s.append(_seconds_until(lambda: up() == 1))
                time.sleep(options.pause)
                redis.kill()
                noticed_s.append(_seconds_until(lambda: up() == 0))
                time.sleep(options.pause)
    return {
        "times": options.times,
        "up_at_start": at_start,
        "noticed_s_max": round(max(noticed_s), 2),
        "outcomes": dict(clients.outcomes),
        "outcomes_limited": dict(over.outcomes),
        "silence_s_max": round(max(clients.silences_s), 2),
        "passed": not lost(clients.outcomes) and not lost(over.outcomes, _OVER_QUOTA) and at_start == 0,
    }


def _seconds_until(done: Callable[[], bool]) -> float:
    started_s = time.monotonic()
    while not done():
        if time.monotonic() > started_s + BACK_S:
            raise SystemExit(f"redis_up is not right after {BACK_S:g} s")
        time.sleep(0.05)
    return time.monotonic() - started_s


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    what = f"Redis killed and back, {result['times']} times, under {options.streams} streams with quotas"
    return [
        f"| {what} | {result['outcomes']}; a key of 60 requests a minute {result['outcomes_limited']}; "
        f"`redis_up` right after at most {result['noticed_s_max']} s; "
        f"longest silence {result['silence_s_max']} s |"
    ]
