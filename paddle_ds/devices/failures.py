"""From what Paddle raises when a device fails to an error of ours.

Paddle reports everything as ``RuntimeError``, ``OSError``, ``SystemError`` or ``MemoryError`` with a C++ stack in its text. Which
failure it was can only be read from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from paddle_ds.errors import DeviceError, DeviceLost, DeviceOutOfMemory, PaddleDSError

#: the last one is C_FAILED of a plug-in, which device_ext.h explains as "resource exhausted"
_OUT_OF_MEMORY = re.compile(
    r"ResourceExhausted|Out of memory error|Fail to alloc memory|Cannot allocate|bad_alloc"
    r"|CustomDevice error, the error code is : 2\b",
    re.IGNORECASE,
)
#: the marks of a call into a device's run-time that did not succeed, and of CUDA's own
_DEVICE_FAILED = re.compile(
    r"CustomDevice error|C_ERROR|C_FAILED|C_INTERNAL_ERROR|PADDLE_ENFORCE_CUSTOM|CUDA error\(|hipError|XPU.*error code",
    re.IGNORECASE,
)
_MOST_CHARACTERS = 300


def translated(error: BaseException, device_name: str) -> PaddleDSError | None:
    """The error of ours that ``error`` stands for, or ``None`` where it is not the device's failure."""
    if isinstance(error, DeviceError):
        return error
    if isinstance(error, PaddleDSError):
        return None
    text = str(error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return DeviceOutOfMemory(f"device {device_name} is out of memory: {summary(text) or 'an allocation failed'}")
    if _DEVICE_FAILED.search(text):
        return DeviceLost(f"device {device_name} has failed: {summary(text)}")
    return None


@contextmanager
def translating(device_name: str) -> Iterator[None]:
    """What Paddle raises inside, as an error of ours where it is the device's failure.

    Raises:
        DeviceOutOfMemory: an allocation failed.
        DeviceLost: a call into the device's run-time failed.
    """
    try:
        yield
    except Exception as error:
        known = translated(error, device_name)
        if known is None or known is error:
            raise
        raise known from error


def summary(text: str) -> str:
    """The sentence of Paddle's error summary, without its C++ stack."""
    _, _, after = text.rpartition("Error Message Summary:")
    lines = [line.strip() for line in (after or text).splitlines() if line.strip(" -\t")]
    joined = " ".join(line for line in lines if not line.startswith(("[Hint", "(at ", "Please ", "1. ", "2. ", "3. ")))
    return joined[:_MOST_CHARACTERS]
