"""Ends a process whose main thread hangs in a device's run-time.

Such a call holds Python's interpreter lock as likely as not, so no Python thread could notice. ``faulthandler`` has a thread in C
that needs no lock: it writes where every thread stands and ends the process with status 1. A server's supervisor starts the
engine again; a batch job ends instead of waiting for ever.
"""

from __future__ import annotations

import faulthandler

#: of the time-out of a step. Up to the time-out itself the runner asks the device, which is the friendlier way to find out
_PATIENCE = 2.0


class Watchdog:
    """``with watchdog:`` around work that must end in time; ``None``: never bites. There is one timer in a process."""

    def __init__(self, timeout_s: float | None) -> None:
        self._limit_s = None if timeout_s is None else _PATIENCE * timeout_s

    def __enter__(self) -> Watchdog:
        self.calm()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._limit_s is not None:
            faulthandler.cancel_dump_traceback_later()

    def calm(self) -> None:
        """There was progress: the time begins anew."""
        if self._limit_s is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True)
