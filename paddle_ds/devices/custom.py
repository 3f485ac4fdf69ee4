"""Devices that a plug-in brings: Ascend ``npu``, Cambricon ``mlu``, Enflame ``gcu``, Iluvatar, MetaX, Gaudi and others."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from paddle_ds.devices.accelerator import Accelerator
from paddle_ds.devices.base import MemoryStats, Problem
from paddle_ds.devices.kernel_table import KernelTable
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

#: whether Paddle's views share their tensor's memory
_VIEWS = "FLAGS_use_stride_kernel"


class CustomDevice(Accelerator):
    """A device of a loaded plug-in. Its memory is asked of the plug-in itself, through Paddle's device manager."""

    def activate(self) -> None:
        """Make it Paddle's current device; views are turned off where the plug-in cannot copy one into a row of its own.

        Paddle has no fallback for ``contiguous``: without that kernel the first transposed tensor would be the end of a step.
        """
        import paddle

        if not KernelTable.read().has("contiguous", self.type, "float32"):
            paddle.set_flags({_VIEWS: False})
            logger.info("device.without_views", extra=fields(device=self.name, because="its plug-in has no kernel contiguous"))
        super().activate()

    def _memory(self) -> MemoryStats | None:
        manager = _device_manager()
        if manager is not None:
            stats = manager.memory(self.type, self.index)
            if stats is not None:
                return stats
        return super()._memory()

    def preflight(self) -> Sequence[Problem]:
        problems = []
        if "int8_gemm" in self.capabilities.missing:
            text = f"INT8 layers will be widened to float32 on {self.name}: {self.capabilities.missing['int8_gemm']}"
            problems.append(Problem("warning", text, "use a plug-in with an INT8 matmul, or a checkpoint in floating point"))
        if "memory_stats" in self.capabilities.missing:
            text = f"{self.name} does not tell its memory: {self.capabilities.missing['memory_stats']}"
            problems.append(Problem("warning", text, "set cache.max_tokens"))
        return problems


class _StdString(ctypes.Structure):
    """``std::string`` of libstdc++'s current ABI, as the callee of a constant reference reads it."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t), ("local", ctypes.c_char * 16))


class _Place(ctypes.Structure):
    """``phi::Place``: device, kind and type id. Looked at by Paddle alone."""

    _fields_ = (("device_and_kind", ctypes.c_uint64), ("type_id", ctypes.c_uint64))


class _DeviceManager:
    """Two functions of Paddle's C++ interface that Python is not given: a place by name, and its device's memory.

    Their mangled names hold the types of their arguments, the string's ABI among them: where those change, no such name is there.
    """

    _CREATE = "_ZN3phi11PlaceHelper11CreatePlaceERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEm"
    _STATS = "_ZN3phi13DeviceManager11MemoryStatsERKNS_5PlaceEPmS4_"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._create = getattr(library, self._CREATE)
        self._create.restype = _Place
        self._create.argtypes = [ctypes.POINTER(_StdString), ctypes.c_size_t]
        self._stats = getattr(library, self._STATS)
        self._stats.restype = None
        self._stats.argtypes = [ctypes.POINTER(_Place)] + [ctypes.POINTER(ctypes.c_size_t)] * 2

    def memory(self, device_type: str, index: int) -> MemoryStats | None:
        """``None`` where the plug-in tells nothing."""
        name = device_type.encode()
        place = self._create(ctypes.byref(_StdString(name, len(name), b"")), index)
        total, free = ctypes.c_size_t(), ctypes.c_size_t()
        self._stats(ctypes.byref(place), ctypes.byref(total), ctypes.byref(free))
        return MemoryStats(total.value, min(free.value, total.value)) if total.value else None


@functools.cache
def _device_manager() -> _DeviceManager | None:
    import paddle

    for library in ("libphi_core.so", "libphi.so"):
        path = Path(paddle.__file__).parent / "libs" / library
        if not path.exists():
            continue
        try:
            return _DeviceManager(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
    return None
