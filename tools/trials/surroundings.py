"""What the trials of a server's surroundings share: the means of the tests, keys, and figures from ``/metrics``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

sys.path += [str(Path(__file__).parents[2] / "tests" / part) for part in ("", "serving")]
from access_keys import bearer, entry, write_keys
from redis_server import RedisServer
from surroundings import SlowLine, small_disk

__all__ = ["RedisServer", "SlowLine", "bearer", "entry", "lost", "metric", "slow_line", "small_disk", "write_keys"]


@contextmanager
def slow_line(port: int, delay_s: float) -> Iterator[int]:
    """A port that leads to ``port``, so much later in each direction."""
    line = SlowLine(port, delay_s)
    try:
        yield line.port
    finally:
        line.close()


def metric(url: str, name: str, key_id: str | None = None) -> float:
    """The sum of a metric over its labels."""
    headers = None if key_id is None else bearer(key_id)
    text = requests.get(f"{url}/metrics", headers=headers, timeout=30).text
    return sum(float(value) for value in re.findall(rf"^paddle_ds:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def lost(outcomes: Counter[str], *documented: str) -> int:
    """Requests that neither ended well nor with what the documents name."""
    return sum(count for name, count in outcomes.items() if name not in ("ok", *documented))
