"""The environment of a process that is to see the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from emulated_device.library import build


def environment(
    type_name: str = "npu",
    *,
    devices: int = 2,
    memory_bytes: int = 1 << 30,
    kernels: str = "full",
    fault: str = "",
    visible_variable: str = "",
    when_full: Literal["status", "null"] = "status",
    report: Path | None = None,
    poison: bool = False,
    cache_dir: Path | None = None,
) -> dict[str, str]:
    """Variables for a subprocess, to be added to its others: Paddle reads them as it is imported.

    Args:
        type_name: what Paddle calls the devices, such as ``npu`` or ``mlu``.
        devices: how many there are; their physical numbers count from 0.
        memory_bytes: of each device.
        kernels: ``full``, ``none``, ``full,-softmax`` or ``matmul,softmax``. Paddle runs the others on the CPU.
        fault: armed at start, such as ``stuck@100``; all kinds are listed in README.md.
        visible_variable: the name of the variable that limits the devices, such as ``ASCEND_RT_VISIBLE_DEVICES``. It is looked
            up in the process's environment: ``1`` shows one device, whose physical number is 1.
        when_full: how an allocation is refused: by ``C_FAILED``, or by a null pointer, from which Paddle makes its own error.
        report: the counters are written there as JSON when the process exits in order.
        poison: new memory is full of NaN instead of zeros.
        cache_dir: where the compiled plug-in is kept; see :func:`build`.
    """
    return {
        "CUSTOM_DEVICE_ROOT": str(build(cache_dir)),
        "EMULATED_DEVICE_TYPE": type_name,
        "EMULATED_DEVICE_COUNT": str(devices),
        "EMULATED_DEVICE_MEMORY_BYTES": str(memory_bytes),
        "EMULATED_DEVICE_KERNELS": kernels,
        "EMULATED_DEVICE_FAULT": fault,
        "EMULATED_DEVICE_VISIBLE_VARIABLE": visible_variable,
        "EMULATED_DEVICE_WHEN_FULL": when_full,
        "EMULATED_DEVICE_REPORT": "" if report is None else str(report),
        "EMULATED_DEVICE_POISON": "1" if poison else "",
    }
