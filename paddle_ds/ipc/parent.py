"""A child that ends with its parent, so that a killed supervisor leaves no process behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(signum: signal.Signals = signal.SIGTERM, parent: int | None = None) -> None:
    """Ask the kernel for ``signum`` when the parent dies (Linux; elsewhere nothing happens).

    Args:
        parent: its process id. A child that is not told takes whoever is its parent now, and so lives on where the one that
            started it died while the interpreter was starting.
    """
    if not sys.platform.startswith("linux"):
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != expected:  # it died before
        os.kill(os.getpid(), signum)
