"""Variables that must stand in the environment before Paddle is loaded. No paddle here.

Paddle's bundled MKL takes a slow path on processors that are not Intel's; ``MKL_DEBUG_CPU_TYPE=5`` turns its AVX2 path on,
about three times faster for float32 matrix products. oneDNN is not affected.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from pathlib import Path

from paddle_ds.devices import plugins
from paddle_ds.devices.profile import profile_of
from paddle_ds.errors import DeviceError

logger = logging.getLogger(__name__)

#: variable -> values that cap nothing. oneDNN reads its variable under an older name, too
_ISA_CAPS = {
    "PADDLE_DS_MAX_ISA": ("", "avx512"),
    "ONEDNN_MAX_CPU_ISA": ("", "all", "default"),
    "DNNL_MAX_CPU_ISA": ("", "all", "default"),
}


def usable_cores() -> int:
    """Cores this process may run on (affinity and cgroup quota respected)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def cpu_vendor() -> str:
    """``AuthenticAMD``, ``GenuineIntel``, ``HygonGenuine`` …, or an empty string where the kernel does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("vendor_id"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def variables(num_threads: int | None = None, device: str = "cpu", profile_directory: str | None = None) -> dict[str, str]:
    """What to set for a process that will load Paddle, leaving alone what the user set.

    Args:
        device: where the model will run; the profile of its chip may ask for variables of its own.
        profile_directory: of profiles beside those that come with the project.
    """
    wanted = {"OMP_NUM_THREADS": str(num_threads or usable_cores())}
    if device != "cpu":
        known = profile_of(device.partition(":")[0], extra=Path(profile_directory) if profile_directory else None)
        wanted |= known.environment() if known else {}
        wanted["GLOG_minloglevel"] = "1"  # the loader's messages on plug-ins read like errors
    if cpu_vendor() in ("AuthenticAMD", "HygonGenuine"):
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    if num_threads is not None:
        return {name: value for name, value in wanted.items() if name == "OMP_NUM_THREADS" or name not in os.environ}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def isa_caps() -> dict[str, str]:
    """Variables that keep the compiled operators from the best instruction set of the processor, as they are set here."""
    set_here = {name: os.environ.get(name, "") for name in _ISA_CAPS}
    return {name: value for name, value in set_here.items() if value.lower() not in _ISA_CAPS[name]}


def prepare(num_threads: int | None = None, device: str = "cpu", profile_directory: str | None = None) -> bool:
    """Set :func:`variables` here. Returns false where Paddle was loaded before, so that they come too late."""
    if "paddle" in sys.modules:
        return False
    os.environ.update(variables(num_threads, device, profile_directory))
    return True


def import_paddle(keep_signal_handlers: bool = True) -> None:
    """Import Paddle without the advice it prints for training (threads, compiler caches); it goes to the debug log instead.

    Args:
        keep_signal_handlers: Paddle's own handlers print a C++ trace and end the process, on SIGTERM too. A process that
            wants to end in order takes them out and sets its own afterwards.

    Raises:
        DeviceError: Paddle gives up because of a plug-in that it cannot load.
    """
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        _import()
        import paddle

        if not keep_signal_handlers:
            paddle.disable_signal_handler()
    if printed.getvalue().strip():
        logger.debug("paddle.said %s", printed.getvalue().strip())


def _import() -> None:
    try:
        import paddle  # noqa: F401
    except ImportError:
        raise
    except Exception as error:  # one library that is none in the directory of plug-ins is enough for it
        bad = [f"{plugin.path}: {plugin.problem}" for plugin in plugins.find() if plugin.problem]
        if not bad:
            raise
        raise DeviceError(
            f"Paddle cannot be loaded because of a plug-in: {'; '.join(bad)}. Take the file away, install the plug-in that fits "
            f"this Paddle, or correct {plugins.VARIABLE}. {plugins.where()}"
        ) from error
