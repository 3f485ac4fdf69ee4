"""Talks to the plug-in from within a process that has it loaded (or is about to: the library is one and the same)."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from emulated_device.library import LIBRARY

_COPIES = ("copy_h2d", "copy_d2h", "copy_d2d")


@dataclasses.dataclass(frozen=True)
class CommandCount:
    """How often, and how many bytes (of copies)."""

    calls: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Counters:
    """What one device has seen.

    Attributes:
        physical: its number among all that the machine has, whatever part of them is visible.
        violations: host memory used as device memory, device memory of another device, something written behind a block.
        kernels: launches by the name under which Paddle knows the kernel.
        used_bytes: allocated by Paddle, which keeps freed memory for later; rounded up to 256 bytes a block.
    """

    device: int
    physical: int
    lost: bool
    violations: int
    limit_bytes: int
    used_bytes: int
    peak_bytes: int
    allocations: int
    frees: int
    refused_allocations: int
    h2d: CommandCount
    d2h: CommandCount
    d2d: CommandCount
    kernels: Mapping[str, int]

    @property
    def launches(self) -> int:
        """Of all kernels."""
        return sum(self.kernels.values())


def counters(device: int = 0) -> Counters:
    """Of the device with this number among the visible ones. What is still queued counts already."""
    library = _library()
    return read_report(json.loads(library.emulated_report()))[device]


def read_report(report: Mapping[str, Any]) -> list[Counters]:
    """The devices of a report: :func:`counters` of all, or the file that a process wrote at exit."""
    result = []
    for entry in report["devices"]:
        plain = {key: value for key, value in entry.items() if key != "commands"}
        commands = {name: CommandCount(*pair) for name, pair in entry["commands"].items()}
        copies: dict[str, Any] = {name.removeprefix("copy_"): commands.get(name, CommandCount()) for name in _COPIES}
        kernels = {name: count.calls for name, count in commands.items() if name not in (*_COPIES, "memory_set")}
        result.append(Counters(**plain, **copies, kernels=kernels))
    return result


def reset_counters() -> None:
    """Copies and launches count from 0 again; memory and violations do not."""
    _library().emulated_reset_counters()


def arm(fault: str) -> None:
    """Arm faults, as in :func:`emulated_device.environment`.

    Raises:
        ValueError: there is no such fault.
    """
    if _library().emulated_arm(fault.encode()) != 0:
        raise ValueError(f"not a fault: {fault!r}; see tests/emulated_device/README.md")


def release() -> None:
    """Take away all armed faults and let stuck and held streams go on. A lost device stays lost."""
    _library().emulated_release()


def hold(device: int = 0) -> None:
    """Let the streams of a device take no more work until :func:`release`: a device that is busy for as long as a test wants."""
    _library().emulated_hold(device)


def read(address: int, num_bytes: int, device: int = 0) -> bytes:
    """What lies at a device address, copied as Paddle would have it copied.

    Raises:
        OSError: the plug-in refuses, as it does for an address that is none of this device.
    """
    buffer = ctypes.create_string_buffer(num_bytes)
    status = _library().emulated_read(device, ctypes.c_void_p(address), buffer, ctypes.c_size_t(num_bytes))
    if status != 0:
        raise OSError(f"the device refuses to copy {num_bytes} bytes at {address:#x}: status {status}")
    return buffer.raw


def overrun(address: int, device: int = 0) -> None:
    """Damage the guard bytes behind the block at a device address, to see that it is found out when the block is freed."""
    assert _library().emulated_overrun(device, ctypes.c_void_p(address)) == 0, f"no block at {address:#x}"


@cache
def _library() -> ctypes.CDLL:
    root = os.environ.get("CUSTOM_DEVICE_ROOT", "")
    assert (Path(root) / LIBRARY).exists(), "this process was not started with emulated_device.environment()"
    library = ctypes.CDLL(str(Path(root) / LIBRARY))
    library.emulated_report.restype = ctypes.c_char_p
    return library
