"""A device's figures are read beside the step loop."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.device_metrics import DeviceMetrics


class Device(CpuDevice):
    """Says something each time it is asked, and fails the second time."""

    def __init__(self) -> None:
        self.asked = 0
        self.asked_three_times = threading.Event()
        self.may_answer = threading.Event()

    def metrics(self) -> Mapping[str, float]:
        self.may_answer.wait(30)
        self.asked += 1
        if self.asked == 2:
            raise RuntimeError("lost")
        if self.asked == 3:
            self.asked_three_times.set()
        return {"asked": float(self.asked)}


def test_a_slow_device_holds_nobody_up_and_one_that_fails_is_asked_again() -> None:
    device = Device()
    metrics = DeviceMetrics(device, every_s=0.01)
    assert metrics.latest == {}, "the maker has waited for the device"
    device.may_answer.set()
    assert device.asked_three_times.wait(30)
    metrics.close()
    while not metrics.latest.get("asked", 0) >= 3:
        threading.Event().wait(0.01)
