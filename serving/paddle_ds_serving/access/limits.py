"""Token buckets, and where they are kept so that all workers of a server share them.

A bucket holds a minute's quota and fills evenly. It is kept as one number, the time at which it will be full again,
so that an idle bucket needs no work and no row::

    full_s - now_s     0 ────────────── 60 ────────────── 120
                       full            empty              deepest debt

To take costs seconds of filling. Nothing is taken below empty, but a settlement may lead there: an answer can be longer than
what was reserved for it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

#: a full bucket is the quota of so many seconds
WINDOW_S = 60.0
#: as far below empty as a bucket goes. One that seems to be further is of a time before its clock was set back: it is full again
DEEPEST_S = 2 * WINDOW_S
#: for the last bits of a sum
EPSILON_S = 1e-6
#: seconds until a store that failed is tried again
RETRY_S = 1.0
#: a bucket of no key; names of others have a ``#``
_PROBE = "probe"
_BUSY_S = 2.0


class StoreDown(Exception):
    """The store cannot answer now."""


class Store(Protocol):
    """Buckets by name."""

    def take(self, name: str, cost_s: float) -> float:
        """Take ``cost_s`` (at most :data:`WINDOW_S`) if the bucket holds it. Returns 0, or the seconds until it will."""

    def charge(self, name: str, cost_s: float) -> None:
        """Take ``cost_s`` in any case; a negative one is given back."""


class SqliteStore:
    """Buckets in a file that all processes on this machine may share (or, without a path, in this process alone).

    SQLite's locks end with the process that holds them, so a killed worker leaves nothing behind. Durability is not wanted:
    the file lives as long as the server. The clock is the machine's monotonic one: it does not jump, and all processes share it.

    Raises:
        StoreDown: from every method, where the file cannot be used.
    """

    def __init__(self, path: Path | None, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def take(self, name: str, cost_s: float) -> float:
        return self._change(name, cost_s, WINDOW_S + EPSILON_S)

    def charge(self, name: str, cost_s: float) -> None:
        self._change(name, cost_s, None)

    def _change(self, name: str, cost_s: float, limit_s: float | None) -> float:
        with self._lock:
            try:
                connection = self._connection or self._open()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    wait_s = self._update(connection, name, cost_s, limit_s)
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
                return wait_s
            except sqlite3.Error as error:
                self._close()
                raise StoreDown(str(error)) from error

    def _update(self, connection: sqlite3.Connection, name: str, cost_s: float, limit_s: float | None) -> float:
        now_s = self._clock_s()
        row = connection.execute("SELECT full_s FROM bucket WHERE name = ?", (name,)).fetchone()
        used_s = max(row[0] - now_s, 0.0) if row else 0.0
        if used_s > DEEPEST_S + EPSILON_S:
            used_s = 0.0
        if limit_s is not None and used_s + cost_s > limit_s:
            return float(used_s + cost_s - WINDOW_S)
        if row is None:  # a moment to forget the buckets that are full
            connection.execute("DELETE FROM bucket WHERE full_s <= ?", (now_s,))
        full_s = now_s + min(max(used_s + cost_s, 0.0), DEEPEST_S)
        connection.execute("REPLACE INTO bucket VALUES (?, ?)", (name, full_s))
        return 0.0

    def _open(self) -> sqlite3.Connection:
        target = ":memory:" if self._path is None else str(self._path)
        connection = sqlite3.connect(target, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            if self._path is not None:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS bucket (name TEXT PRIMARY KEY, full_s REAL) WITHOUT ROWID")
            connection.execute("CREATE INDEX IF NOT EXISTS by_time ON bucket (full_s)")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def close(self) -> None:
        """Let go of the file. The store can be used again afterwards."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class FallbackStore:
    """A store, and another for the time in which the first cannot answer. The first is tried again once a second.

    Buckets are not copied between the two: a key has a full bucket in the second when it is first needed.
    """

    def __init__(
        self,
        name: str,
        first: Store,
        second: Store,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._first = first
        self._second = second
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._up = True
        self._retry_at_s = 0.0

    def take(self, name: str, cost_s: float) -> float:
        if self._may_try():
            try:
                wait_s = self._first.take(name, cost_s)
            except StoreDown as error:
                self._went_down(error)
            else:
                self._came_up()
                return wait_s
        return self._second.take(name, cost_s)

    def charge(self, name: str, cost_s: float) -> None:
        if not self._charge_first(name, cost_s):
            self._second.charge(name, cost_s)

    def look(self) -> bool:
        """Whether the first store takes what is written to it: tried out, since nobody may have asked it for a long time."""
        return self._charge_first(_PROBE, EPSILON_S)

    def _charge_first(self, name: str, cost_s: float) -> bool:
        if not self._may_try():
            return False
        try:
            self._first.charge(name, cost_s)
        except StoreDown as error:
            self._went_down(error)
            return False
        self._came_up()
        return True

    def _may_try(self) -> bool:
        """While the store is down only one thread a second waits for it."""
        with self._lock:
            if self._up:
                return True
            now_s = self._clock_s()
            if now_s < self._retry_at_s:
                return False
            self._retry_at_s = now_s + RETRY_S
            return True

    def _went_down(self, error: StoreDown) -> None:
        with self._lock:
            was_up, self._up = self._up, False
            self._retry_at_s = self._clock_s() + RETRY_S
        if was_up:
            _log.warning(
                "limits.store_down", extra=fields(store=self._name, error=str(error), instead="limits of this server alone")
            )

    def _came_up(self) -> None:
        if self._up:
            return
        with self._lock:
            was_up, self._up = self._up, True
        if not was_up:
            _log.info("limits.store_back", extra=fields(store=self._name))
