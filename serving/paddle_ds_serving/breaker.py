"""The circuit breaker of an HTTP worker: an engine that fails too often gets no requests for a while.

    closed ──── over 5 % of at least 20 requests within 30 s failed ────► open
      ▲                                                                    │ 5 s
      └── the trial ended well ── half open, one request on trial ◄────────┘
                                         └── it failed ──► open

What counts is what an engine does wrong: an internal error, its death, a device that fails. Refusals (busy, loading, a bad
request) do not. An engine that was started anew, or switched to, begins with a clean record.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable

from paddle_ds.errors import CircuitOpen, PaddleDSError
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

WINDOW_S = 30.0
OPEN_S = 5.0
MIN_REQUESTS = 20
MAX_FAILURE_RATE = 0.05
_REFUSALS = {"engine_unavailable", "server_overloaded"}


def is_failure(error: PaddleDSError) -> bool:
    """Whether an error is the engine's fault."""
    return error.http_status >= 500 and error.code not in _REFUSALS


class Breaker:
    """Any number of threads may use it."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic, on_open: Callable[[], None] = lambda: None) -> None:
        self._clock_s = clock_s
        self._on_open = on_open
        self._lock = threading.Lock()
        self._engine = ""
        #: when each request ended, and whether it failed
        self._ends: collections.deque[tuple[float, bool]] = collections.deque()
        self._open_until_s: float | None = None
        self._on_trial = False

    def admit(self, engine: str) -> None:
        """Let a request to the engine with this boot id through; :meth:`ended` must be called for it.

        Raises:
            CircuitOpen: too many have failed lately.
        """
        with self._lock:
            if engine != self._engine:
                self._engine, self._open_until_s, self._on_trial = engine, None, False
                self._ends.clear()
            if self._open_until_s is None:
                return
            if self._on_trial or self._clock_s() < self._open_until_s:
                raise CircuitOpen(
                    f"more than {MAX_FAILURE_RATE:.0%} of the requests of the last {WINDOW_S:g} s failed; "
                    "none is tried for a moment"
                )
            self._on_trial = True

    def ended(self, engine: str, failed: bool | None) -> None:
        """A request ended well, or failed, or (``None``) was given up by its client and tells nothing."""
        with self._lock:
            if engine != self._engine:
                return
            if self._open_until_s is not None:
                self._judge_trial(failed)
            elif failed is not None:
                self._count(failed)

    def _judge_trial(self, failed: bool | None) -> None:
        """Also of requests that were under way when it opened: they tell as much."""
        self._on_trial = False
        if failed:
            self._open()
        elif failed is False and self._open_until_s is not None and self._clock_s() >= self._open_until_s:
            self._open_until_s = None
            self._ends.clear()
            _log.info("circuit.closed")

    def _count(self, failed: bool) -> None:
        now_s = self._clock_s()
        self._ends.append((now_s, failed))
        while self._ends[0][0] < now_s - WINDOW_S:
            self._ends.popleft()
        num_failed = sum(failed for _, failed in self._ends)
        if failed and len(self._ends) >= MIN_REQUESTS and num_failed > MAX_FAILURE_RATE * len(self._ends):
            _log.error("circuit.opened", extra=fields(failed=num_failed, requests=len(self._ends)))
            self._on_open()
            self._open()

    def _open(self) -> None:
        self._open_until_s = self._clock_s() + OPEN_S
