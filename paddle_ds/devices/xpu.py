"""Kunlun XPUs, which a build of Paddle of their own knows.

Written to Paddle's documented interface. The project's own machines have none, so none of this has run on one; see
``docs/devices/kunlun.md``.
"""

from __future__ import annotations

from paddle_ds.devices.accelerator import Accelerator
from paddle_ds.devices.base import MemoryStats
from paddle_ds.devices.profile import DeviceProfile


class XpuDevice(Accelerator):
    """An XPU."""

    def __init__(self, index: int, profile: DeviceProfile | None) -> None:
        super().__init__("xpu", index, profile)

    def _memory(self) -> MemoryStats | None:
        import paddle

        figures = super()._memory()
        total = getattr(paddle.device.xpu, "memory_total", None)
        used = getattr(paddle.device.xpu, "memory_used", None)
        if figures is not None or total is None or used is None:
            return figures
        return MemoryStats(int(total(self.index)), int(total(self.index)) - int(used(self.index)))

    def empty_cache(self) -> None:
        import paddle

        empty = getattr(paddle.device.xpu, "empty_cache", None)
        if empty is not None:
            empty()
