"""Looks after the current engine: a canary now and then, a restart when it fails, and the way back from a bad update."""

from __future__ import annotations

import logging
import threading
import time

from paddle_ds.errors import PaddleDSError
from paddle_ds.logs import fields
from paddle_ds_serving.supervision.canary import Canary, CanaryConfig
from paddle_ds_serving.supervision.fleet import Fleet, Unit
from paddle_ds_serving.supervision.updater import Updater

_log = logging.getLogger(__name__)

#: canaries in a row that fail before the engine is started again
MAX_CANARY_FAILURES = 3
#: requests in a row that fail, or deaths of the engine, before an update is taken back
MAX_FAILURES_AFTER_UPDATE = 5
#: how long an update is watched for that
WATCH_UPDATE_S = 600.0


class HealthWatch:
    """``look`` is called all the time on the main thread; canaries and the way back have a thread of their own.

    Attributes:
        num_failures: canaries that failed, one after another, until now.
        last_error: why the last one failed; empty when it did not.
        rolled_back_because: why the last update was taken back; empty where none was.
    """

    def __init__(self, fleet: Fleet, updater: Updater, config: CanaryConfig, every_s: float) -> None:
        self.num_failures = 0
        self.last_error = ""
        self.rolled_back_because = ""
        self._fleet = fleet
        self._updater = updater
        self._config = config
        self._every_s = every_s
        self._canary: Canary | None = None
        self._canary_of = ""
        self._restart: Unit | None = None
        self._going_back = False
        self._closing = threading.Event()

    def start(self) -> None:
        """Begin with the canaries."""
        threading.Thread(target=self._run, name="canary", daemon=True).start()

    def close(self) -> None:
        """No more of them."""
        self._closing.set()

    def look(self) -> None:
        """Restart an engine whose canaries fail; go back from an update that does not work. Main thread only."""
        unit, self._restart = self._restart, None
        if unit is not None and unit is self._fleet.current and not unit.child.ending:
            unit.child.kill()  # its next start has the pause of a death
        reason = self._bad_update()
        if reason and not self._going_back:
            self._going_back = True
            threading.Thread(target=self._go_back, args=(reason,), name="rollback", daemon=True).start()
        elif not self._going_back and not self._updater.running:
            self._try_again()

    def _try_again(self) -> None:
        """Restart an engine that could not load what an earlier one served: the memory or the file may be there next time."""
        unit = self._fleet.current
        info = unit.client.info
        if info is None or info.state != "failed" or info.pid != unit.child.pid or unit.child.ending:
            return
        _log.error("engine.failed", extra=fields(reason=info.error.message if info.error else "no reason given"))
        unit.child.kill()  # its next start has the pause of a death

    def check(self) -> None:
        """One canary on the current engine; the third failure in a row asks for its restart."""
        unit = self._fleet.current
        loads = self._updater.running and self._updater.comparison is None
        if loads or not unit.ready:
            return  # loading, or gone and about to be started: there are others to see to that
        try:
            self._canary_for(unit).sing(unit.client)
        except PaddleDSError as error:
            if not unit.ready:
                return
            self.num_failures += 1
            self.last_error = error.message
            _log.error("canary.failed", extra=fields(failures=self.num_failures, reason=error.message))
            if self.num_failures >= MAX_CANARY_FAILURES:
                self.num_failures = 0
                self._restart = unit
        else:
            self.num_failures, self.last_error = 0, ""

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self.check()

    def _canary_for(self, unit: Unit) -> Canary:
        info = unit.client.info
        assert info is not None, "the engine is ready"
        assert info.model is not None
        if self._canary is None or self._canary_of != info.boot_id:
            self._canary, self._canary_of = Canary.of(self._config, info.model), info.boot_id
        return self._canary

    def _bad_update(self) -> str:
        """Why the last update has to be taken back; empty where it has not."""
        switched_s = self._updater.switched_s
        if switched_s is None or time.monotonic() - switched_s > WATCH_UPDATE_S or self._updater.running:
            return ""
        unit = self._fleet.current
        stats, info = unit.client.stats, unit.client.info
        if info is not None and info.state == "failed":
            return f"the engine could not be started again: {info.error.message if info.error else 'no reason given'}"
        num_failed = unit.child.num_deaths + (stats.failure_run_max if stats is not None else 0)
        if num_failed < MAX_FAILURES_AFTER_UPDATE:
            return ""
        return f"{num_failed} failures in a row after the update to {unit.version or unit.config.model}"

    def _go_back(self, reason: str) -> None:
        _log.error("update.rolled_back", extra=fields(because=reason))
        try:
            self._updater.roll_back()
            self.rolled_back_because = reason
        except PaddleDSError as error:
            _log.error("rollback.failed", extra=fields(reason=error.message))
            self._updater.switched_s = None  # trying again would fail again; the operator is told by the log and by status
        finally:
            self._going_back = False
