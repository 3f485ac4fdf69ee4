"""A child that ends with its parent, so that a killed supervisor leaves no process behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(signum: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for ``signum`` when the parent dies (Linux; elsewhere nothing happens)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signum)
