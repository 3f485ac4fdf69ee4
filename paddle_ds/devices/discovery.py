"""From a device name to a :class:`Device`, and which devices there are.

    cpu                       always
    gpu, xpu                  where this build of Paddle has them
    npu, mlu, gcu, …          where a plug-in was loaded
    anything else             where a package brings it, by an entry point of the group ``paddle_ds.devices``

Paddle may abort the process, or name the wrong reason, when it is asked for a device that is not there. It is therefore never
asked before this module has seen the device.
"""

from __future__ import annotations

import logging
import os
import re
from importlib import metadata
from pathlib import Path

from paddle_ds.devices import plugins
from paddle_ds.devices.base import Device
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.devices.custom import CustomDevice
from paddle_ds.devices.gpu import GpuDevice
from paddle_ds.devices.profile import DeviceProfile, hidden_by, profile_of, profiles
from paddle_ds.devices.xpu import XpuDevice
from paddle_ds.errors import DeviceError, DeviceNotFound
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

ENTRY_POINTS = "paddle_ds.devices"
_NAME = re.compile(r"([a-z][a-z0-9_]*)(?::([0-9]{1,4}))?")


def parse(name: str) -> tuple[str, int]:
    """Type and index of a device name; ``npu`` is ``npu:0``.

    Raises:
        DeviceError: it is not a device name.

    >>> parse("npu:1")
    ('npu', 1)
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[1] == "cpu" and match[2] not in (None, "0")):
        raise DeviceError(f"device {name!r} is not a device name; expected cpu, or a type and an index such as npu:0")
    return match[1], int(match[2] or 0)


def open_device(name: str, extra_profiles: Path | None = None) -> Device:
    """The device called ``name``.

    Args:
        extra_profiles: directory with profiles of chips beside those that come with the project.

    Raises:
        DeviceError: ``name`` is not a device name.
        DeviceNotFound: it is not here; the message says what is missing and what would help.
    """
    device_type, index = parse(name)
    if device_type == "cpu":
        return CpuDevice()
    import paddle

    brought = _entry_point(device_type)
    if brought is not None:
        device: Device = brought.load()(f"{device_type}:{index}")
        return device
    known = _profile(device_type, extra_profiles)  # that of dcu is asked for by its own name
    device_type = known.type if known else device_type
    count = counts().get(device_type, 0)
    if known is not None and known.mechanism == "gpu" and known.rocm != paddle.device.is_compiled_with_rocm():
        count = 0
    if not count:
        raise DeviceNotFound(_why_absent(name, device_type, known))
    if index >= count:
        seen = ", ".join(f"{device_type}:{i}" for i in range(count))
        hidden = hidden_by(known, index, os.environ) if known else ""
        raise DeviceNotFound(f"device {name!r} is not here; this process sees {seen}{'; ' + hidden if hidden else ''}")
    return _make(device_type, index, known)


def available(extra_profiles: Path | None = None) -> list[Device]:
    """Every device that this process can see, the CPU first."""
    found: list[Device] = [CpuDevice()]
    for device_type, count in counts().items():
        known = _profile(device_type, extra_profiles)
        found += [_make(device_type, index, known) for index in range(count)]
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            found.append(entry.load()(f"{entry.name}:0"))
        except DeviceNotFound as error:  # the package is here, its chip is not
            logger.info("device.absent", extra=fields(type=entry.name, because=error.message))
    return found


def counts() -> dict[str, int]:
    """Device type -> how many Paddle sees, the CPU left out."""
    import paddle

    found: dict[str, int] = {}
    if paddle.device.is_compiled_with_cuda() or paddle.device.is_compiled_with_rocm():
        found["gpu"] = paddle.device.cuda.device_count()
    if paddle.device.is_compiled_with_xpu():
        found["xpu"] = paddle.device.xpu.device_count()
    for name in paddle.device.get_available_custom_device() or []:
        device_type = name.partition(":")[0]  # a single device has no index in its name
        found[device_type] = found.get(device_type, 0) + 1
    return {device_type: count for device_type, count in found.items() if count}


def _make(device_type: str, index: int, known: DeviceProfile | None) -> Device:
    if device_type == "gpu":
        return GpuDevice(index, known)
    if device_type == "xpu":
        return XpuDevice(index, known)
    return CustomDevice(device_type, index, known)


def _entry_point(device_type: str) -> metadata.EntryPoint | None:
    return next(iter(metadata.entry_points(group=ENTRY_POINTS, name=device_type)), None)


def _profile(device_type: str, extra: Path | None) -> DeviceProfile | None:
    import paddle

    return profile_of(device_type, rocm=paddle.device.is_compiled_with_rocm(), extra=extra)


def _why_absent(name: str, device_type: str, known: DeviceProfile | None) -> str:
    import paddle

    have = ", ".join(["cpu", *(f"{kind}:{i}" for kind, count in counts().items() for i in range(count))])
    if known is not None and known.mechanism != "custom":
        return (
            f"device {name!r} is not here: this Paddle {paddle.__version__} was not built for {known.vendor} ({device_type}). "
            f"Install the build for it: {known.install}. Have: {have}"
        )
    if known is None:
        types = ", ".join(sorted({profile.type for profile in profiles().values()}))
        return (
            f"device {name!r} is not here: no plug-in of the type {device_type!r} is loaded, and no profile knows it "
            f"(known: {types}). {plugins.where()}. Have: {have}"
        )
    bad = [f"{plugin.path}: {plugin.problem}" for plugin in plugins.find() if plugin.problem]
    refused = f" Not loaded: {'; '.join(bad)}." if bad else ""
    hidden = hidden_by(known, 0, os.environ)  # a plug-in without a visible device is not among Paddle's types at all
    if hidden:
        return f"device {name!r} is not here: {hidden}. {plugins.where()}.{refused} Have: {have}"
    return (
        f"device {name!r} is not here: the plug-in {known.plugin or device_type} for {known.vendor} is not loaded. "
        f"{plugins.where()}.{refused} Install it ({known.install}), or set {plugins.VARIABLE} to the directory that holds its "
        f"library. Have: {have}"
    )
