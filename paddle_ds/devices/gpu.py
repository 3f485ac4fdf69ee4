"""GPUs of NVIDIA (CUDA build of Paddle) and DCUs of Hygon (ROCm build, where they are called ``gpu``, too).

Written to Paddle's documented interface. The project's own machines have neither, so none of this has run on one; see
``docs/devices/nvidia.md`` and ``docs/devices/hygon.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddle_ds.devices.accelerator import Accelerator
from paddle_ds.devices.base import Capability, MemoryStats, Problem
from paddle_ds.devices.profile import DeviceProfile

#: the first generation that ``llm_int8_linear`` and ``weight_only_linear`` are compiled for (Volta)
_OLDEST = (7, 0)


class GpuDevice(Accelerator):
    """A GPU that Paddle was compiled for."""

    def __init__(self, index: int, profile: DeviceProfile | None) -> None:
        super().__init__("gpu", index, profile)

    def _memory(self) -> MemoryStats | None:
        import paddle

        properties = paddle.device.cuda.get_device_properties(self.index)
        total = int(properties.total_memory)
        figures = super()._memory()
        if figures is not None:
            return figures
        # what other processes hold is not known to Paddle
        return MemoryStats(total, total - int(paddle.device.cuda.memory_reserved(self.index)))

    def empty_cache(self) -> None:
        import paddle

        paddle.device.cuda.empty_cache()

    def preflight(self) -> Sequence[Problem]:
        import paddle

        if paddle.is_compiled_with_rocm():
            return ()
        generation = tuple(paddle.device.cuda.get_device_capability(self.index))
        if generation >= _OLDEST:
            return ()
        text = f"{self.name} has compute capability {generation[0]}.{generation[1]}; Paddle's INT8 operators begin at 7.0"
        return (Problem("warning", text, "use a checkpoint in floating point on this card, or a newer card"),)

    def _add_more(self, ops: set[Capability], missing: dict[str, str]) -> None:
        missing["graph_capture"] = "the decoder's shapes change from step to step"
        super()._add_more(ops, missing)
