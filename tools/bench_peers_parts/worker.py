"""One engine in a process of its own, asleep until its parent writes a line.

    parent ── {"streams": 16, "prompt_tokens": 32, "new_tokens": 32, "seed": 7, "id_limit": 151000} ──► stdin
    parent ◄── {"prefill_s": 1.9, "step_s": [0.21, …], "peak_rss_bytes": 2790000000} ────────────────── stdout

The first line that a worker writes says what it loaded. The end of stdin ends it, so no worker outlives its parent.
Only the standard library here: this module runs in the peers' environment, too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Task:
    """Prompts that start together, and how far each is continued, greedily and past any end token."""

    streams: int
    prompt_tokens: int
    new_tokens: int
    seed: int
    #: ids of the prompts are below this
    id_limit: int

    def prompts(self) -> list[list[int]]:
        """Token ids of each stream; the same task gives every engine the same ids."""
        chosen = random.Random(self.seed)
        return [[chosen.randrange(self.id_limit) for _ in range(self.prompt_tokens)] for _ in range(self.streams)]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds until every stream had its first token, and of each later step that gave every stream one more."""

    prefill_s: float
    step_s: list[float]


class Engine(Protocol):
    """A loaded model."""

    def describe(self) -> dict[str, Any]:
        """What runs, for the record."""
        ...

    def measure(self, task: Task) -> Timing:
        """Answer the task's prompts side by side."""
        ...


def serve(load: Callable[[dict[str, Any]], Engine]) -> None:
    """Load the engine that the first argument (JSON) describes, then answer tasks until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not for the parent
    started_s = time.perf_counter()
    engine = load(json.loads(sys.argv[1]))
    _send(replies, {"load_s": round(time.perf_counter() - started_s, 2), **engine.describe()})
    for line in sys.stdin:
        timing = engine.measure(Task(**json.loads(line)))
        _send(replies, {**dataclasses.asdict(timing), "peak_rss_bytes": peak_rss_bytes()})


def peak_rss_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has had resident (``VmHWM``)."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def _send(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
