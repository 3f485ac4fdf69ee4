"""From a device name to a :class:`Device`."""

from __future__ import annotations

from paddle_ds.devices.base import Device
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.errors import DeviceError


def open_device(name: str) -> Device:
    """The device called ``name``.

    Raises:
        DeviceError: it is not here; the message says what is. Paddle itself may abort the process when asked
            for a device whose plug-in is absent, so it is never asked before this check.
    """
    if name == "cpu":
        return CpuDevice()
    device_type = name.partition(":")[0]
    import paddle

    custom = paddle.device.get_all_custom_device_type()
    have = ", ".join(["cpu", *custom])
    if device_type in custom:
        raise DeviceError(f"device {name!r}: Paddle sees the plug-in, but this version runs on cpu only; have: cpu")
    raise DeviceError(f"device {name!r} is not here; have: {have}")
