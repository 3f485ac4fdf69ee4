"""Where cached answers are kept: in this worker, bounded in bytes, or in Redis, bounded in time."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import redis

from paddle_ds.logs import fields
from paddle_ds_serving.access.limits import RETRY_S
from paddle_ds_serving.access.redis_store import PREFIX

_log = logging.getLogger(__name__)

#: of all answers that a worker keeps, and of one answer
MAX_BYTES = 64 * 2**20
MAX_ANSWER_BYTES = 2**20


class AnswerStore(Protocol):
    """Bytes by key. What is lost is computed again, so nothing here raises."""

    def get(self, key: str) -> bytes | None:
        """What was put, if it is still there."""

    def put(self, key: str, value: bytes) -> None:
        """Keep it for the time that the store was made with."""


class LocalAnswers:
    """The answers of one worker; those that were not asked for the longest go first."""

    def __init__(self, keep_s: float, *, max_bytes: int = MAX_BYTES, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[str, tuple[float, bytes]] = collections.OrderedDict()
        self._num_bytes = 0

    def get(self, key: str) -> bytes | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if found[0] <= self._clock_s():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return found[1]

    def put(self, key: str, value: bytes) -> None:
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = (self._clock_s() + self._keep_s, value)
            self._num_bytes += _cost(key, value)
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        _, value = self._entries.pop(key)
        self._num_bytes -= _cost(key, value)


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + 200  # what Python takes for an entry beside its bytes


class RedisAnswers:
    """The answers of all servers. While Redis is down nothing is cached; it is tried again once a second."""

    def __init__(self, client: redis.Redis, keep_s: float, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._keep_ms = max(int(keep_s * 1000), 1)
        self._clock_s = clock_s
        self._retry_at_s = -1.0

    def get(self, key: str) -> bytes | None:
        if self._clock_s() < self._retry_at_s:
            return None
        try:
            value = self._client.get(f"{PREFIX}answer:{key}")
        except (redis.RedisError, OSError) as error:
            self._failed(error)
            return None
        return value if isinstance(value, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        if self._clock_s() < self._retry_at_s:
            return
        try:
            self._client.set(f"{PREFIX}answer:{key}", value, px=self._keep_ms)
        except (redis.RedisError, OSError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._retry_at_s = self._clock_s() + RETRY_S
        _log.warning("response_cache.store_down", extra=fields(error=f"{type(error).__name__}: {error}"))
