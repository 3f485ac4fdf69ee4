"""A plug-in that shows Paddle devices which are not there: built here, started with the variables from :func:`environment`.

    subprocess.run([sys.executable, "-c", program], env={**os.environ, **emulated_device.environment("npu")}, timeout=60)

In such a process :func:`counters` tells what reached the devices, :func:`arm` injects faults. See README.md.
"""

from __future__ import annotations

from emulated_device.control import CommandCount, Counters, arm, counters, hold, overrun, read, release, reset_counters
from emulated_device.library import build
from emulated_device.variables import environment

__all__ = [
    "CommandCount",
    "Counters",
    "arm",
    "build",
    "counters",
    "environment",
    "hold",
    "overrun",
    "read",
    "release",
    "reset_counters",
]
