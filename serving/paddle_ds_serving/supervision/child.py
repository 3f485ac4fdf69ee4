"""A child process of the supervisor."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable

from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
#: a child that lived this long is forgiven its earlier deaths
_HEALTHY_AFTER_S = 60.0


class Child:
    """A process that is started again when it dies, after a pause that doubles each time.

    ``watch`` and what starts and stops belong to the main thread: the kernel ends a child with the *thread* that started it.
    """

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._start_again_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.num_starts = 0
        self.last_status: int | None = None
        #: deaths that nobody asked for
        self.num_deaths = 0
        self._kill_at_s: float | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process else None

    @property
    def alive(self) -> bool:
        process = self._process  # another thread may be asking
        return process is not None and process.poll() is None

    @property
    def ending(self) -> bool:
        """It was asked to end."""
        return self._kill_at_s is not None

    @property
    def ended(self) -> bool:
        """It was asked to end, and has."""
        return self._kill_at_s is not None and self._process is None

    def watch(self) -> None:
        """Start it if it is not there and its pause is over; kill it where it was asked to end and does not."""
        now = time.monotonic()
        if self._kill_at_s is not None:
            self._watch_end(now, self._kill_at_s)
            return
        if self._process is None:
            if now >= self._start_again_s:
                self._try_to_start(now)
            return
        self.last_status = self._process.poll()
        if self.last_status is None:
            return
        self._process = None
        self.num_deaths += 1
        if now - self._started_s > _HEALTHY_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S
        self._pause(now, "child.died", status=self.last_status)

    def _try_to_start(self, now_s: float) -> None:
        """Where there is no room for another process, later."""
        self.num_starts += 1
        self._started_s = now_s
        try:
            self._process = self._start()
        except OSError as error:
            self._pause(now_s, "child.not_started", reason=str(error))

    def _pause(self, now_s: float, event: str, **why: object) -> None:
        self._start_again_s = now_s + self._pause_s
        logger.error(event, extra=fields(child=self.name, **why, restart_in_s=self._pause_s, starts=self.num_starts))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def stop(self, grace_s: float) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            logger.error("child.killed", extra=fields(child=self.name, after_s=grace_s))
            self.kill()
        self._process = None

    def end(self, grace_s: float) -> None:
        """Ask it to end and do not wait: ``watch`` sees to it, and does not start it again."""
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + grace_s
            if self._process is not None:
                self._process.terminate()

    def _watch_end(self, now_s: float, kill_at_s: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None and now_s >= kill_at_s:
            logger.error("child.killed", extra=fields(child=self.name))
            self.kill()
        if self._process.poll() is not None:
            self.last_status = self._process.returncode
            self._process = None

    def kill(self) -> None:
        """End it and all it started, now."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # each child leads a session of its own
            self._process.wait()
