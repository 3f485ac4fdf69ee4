"""From a row of the flags' table to what was found: whether the flag does anything on this device, and how that was seen.

Flags of the allocator are decided when Paddle makes its first tensor. After that they can be set, and read back, and do nothing;
so the probes look at what a tensor costs, not at the flag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from paddle_ds.config.memory import FlagValue
from paddle_ds.devices import flag_measures as measures
from paddle_ds.devices.base import Device
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.devices.flag_table import Flag, Kind, Probe
from paddle_ds.errors import DeviceError, UnsupportedError

#: operators that few plug-ins bring, and that need one tensor alone
_RARE_OPERATORS = ("digamma", "lgamma", "erfinv", "i0e", "trunc", "asinh", "expm1", "tan", "log1p", "cosh")
_TOO_LATE = "the first tensor was made before; it must stand in the environment when Paddle is loaded"
_FRACTION_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a probe saw."""

    effective: bool
    reason: str


def kind_of(device: Device) -> Kind:
    """How Paddle drives ``device``."""
    if device.type == "cpu":
        return "cpu"
    if device.type == "gpu":
        return "gpu"
    return "xpu" if device.type == "xpu" else "custom"


class Prober:
    """Probes flags that have just been set.

    Args:
        before: what Paddle had for each flag before it was set.
        assign: gives a flag a value for a while.
    """

    def __init__(self, device: Device, before: Mapping[str, FlagValue], assign: Callable[[str, FlagValue], None]) -> None:
        self._device = device
        self._kind = kind_of(device)
        self._before = before
        self._assign = assign
        self._probes: dict[Probe, Callable[[Flag, Any], Finding]] = {
            "pool": self._pool_flag,
            "locked": self._locked,
            "limit": self._limit,
            "build": self._build,
            "first": self._first,
            "value": self._value,
            "peak": self._peak,
            "fallback": self._fallback,
            "threads": self._threads,
            "onednn": self._onednn,
            "pages": self._pages,
            "trim": self._trim,
            "inference": self._inference,
        }
        # before any probe makes a tensor
        self._began = measures.Statistics(device).began or measures.Statistics(CpuDevice()).began
        # the large piece of naive_best_fit is a share of this
        self._free_bytes: int | None = None
        with contextlib.suppress(UnsupportedError):
            self._free_bytes = device.memory_stats().available_bytes

    def probe(self, row: Flag, value: FlagValue) -> Finding:
        """Find out whether ``value``, which Paddle has taken, does anything."""
        return self._probes[row.probe](row, value)

    @functools.cached_property
    def _pool(self) -> measures.Pool:
        return measures.pool(self._device)

    def _pool_flag(self, row: Flag, value: Any) -> Finding:
        if not row.kinds or self._kind not in row.kinds:
            pool = measures.pool(CpuDevice())
            if row.name == "FLAGS_use_system_allocator":
                return Finding(False, row.elsewhere)
            pooled = pool.grown_bytes != measures.SAMPLE_BYTES or pool.kept_bytes
            return Finding(bool(pooled), "tensors of the CPU are pooled here" if pooled else row.elsewhere)
        if row.name == "FLAGS_use_system_allocator":
            return self._system_allocator(value)
        if self._pool.grown_bytes == 0:
            return self._first(row, value)
        return self._pool_size(row, value)

    def _pool_size(self, row: Flag, value: Any) -> Finding:
        grown, kept = self._pool.grown_bytes, self._pool.kept_bytes
        seen = (
            f"a tensor of {measures.SAMPLE_BYTES >> 10} KiB took {grown / 2**20:g} MiB, {kept / 2**20:g} MiB of which were kept"
        )
        chunk = int(self._before.get("FLAGS_auto_growth_chunk_size_in_mb", 0)) << 20, int(self._wanted_chunk) << 20
        by_growth = grown in (measures.SAMPLE_BYTES, *chunk)
        if row.name == "FLAGS_allocator_strategy":
            return Finding((value == "auto_growth") == by_growth, seen)
        if row.name == "FLAGS_auto_growth_chunk_size_in_mb":
            expected = (int(value) << 20) or measures.SAMPLE_BYTES
            return Finding(by_growth and grown == expected, seen)
        if row.name == "FLAGS_free_idle_chunk":
            return Finding(value == (kept == 0), seen)
        if row.name == "FLAGS_free_when_no_cache_hit":
            spared = measures.spares_unused(self._device) if by_growth else None
            return Finding(
                spared == value, "unused memory " + ("went back" if spared else "stayed") + " before a larger tensor was made"
            )
        if by_growth:
            return Finding(False, row.elsewhere + "; " + seen)
        return self._large_piece(row, value, seen)

    def _large_piece(self, row: Flag, value: Any, seen: str) -> Finding:
        """Flags of naive_best_fit, the piece of which has just been taken."""
        if row.name == "FLAGS_fraction_of_gpu_memory_to_use":
            expected = value * self._free_bytes if self._free_bytes else 0
            return Finding(math.isclose(self._pool.grown_bytes, expected, rel_tol=_FRACTION_TOLERANCE), seen)
        if row.name == "FLAGS_reallocate_gpu_memory_in_mb" and self._kind != "custom":
            return Finding(True, "Paddle has taken it; it counts when the first piece is full")
        return Finding(self._pool.grown_bytes == int(value) << 20, seen)

    @property
    def _wanted_chunk(self) -> FlagValue:
        from paddle.base import core

        return int(core.globals()["FLAGS_auto_growth_chunk_size_in_mb"])

    def _system_allocator(self, value: bool) -> Finding:
        counted = self._pool.counted
        text = f"tensors are {'' if counted else 'not '}in Paddle's statistics"
        if not counted and self._pool.grown_bytes > measures.SAMPLE_BYTES:
            text += f"; the first one took {self._pool.grown_bytes / 2**20:g} MiB"
        return Finding(counted != value, text)

    def _locked(self, row: Flag, value: Any) -> Finding:
        locked = [self._with(row, setting, measures.locked_bytes) for setting in (True, False)]
        self._assign(row.name, value)
        if locked[0] == locked[1]:
            return Finding(False, f"{row.elsewhere}; {locked[0]} bytes of a tensor were locked with it and without it")
        return Finding(True, f"{locked[0]} bytes of a tensor were locked with it, {locked[1]} without it")

    def _limit(self, row: Flag, value: Any) -> Finding:
        if self._kind in row.kinds:
            if not value:
                return Finding(True, "no limit")
            refused = not measures.accepts(self._device, (int(value) + 1) << 20)
            return Finding(refused, f"a tensor of {int(value) + 1} MiB was {'refused' if refused else 'made'}")
        made = self._with(row, 1, lambda: measures.accepts(self._device, 2 << 20))
        self._assign(row.name, value)
        text = f"with a limit of 1 MiB a tensor of 2 MiB was {'made' if made else 'refused'}"
        return Finding(not made, f"{row.elsewhere}; {text}" if made else text)

    def _build(self, row: Flag, value: Any) -> Finding:
        import paddle

        if not (paddle.device.is_compiled_with_cuda() or paddle.device.is_compiled_with_rocm()):
            return Finding(False, f"{row.elsewhere}, which this one is not")
        if self._kind not in row.kinds:
            return Finding(False, row.elsewhere)
        return self._first(row, value)

    def _first(self, row: Flag, value: Any) -> Finding:
        if self._kind not in row.kinds:
            return Finding(False, row.elsewhere)
        if self._began and self._before.get(row.name) != value:
            return Finding(False, _TOO_LATE)
        return Finding(True, "Paddle had it before the first tensor; what it does is not measured")

    def _value(self, row: Flag, value: Any) -> Finding:
        if self._kind not in row.kinds or (row.name.startswith("FLAGS_npu") and self._device.type != "npu"):
            return Finding(False, row.elsewhere)
        return Finding(True, "Paddle has taken it; what it does is not measured")

    def _peak(self, row: Flag, value: Any) -> Finding:
        assert row.contrast is not None
        other = row.default if value == row.contrast else row.contrast
        contrast = self._with(row, other, lambda: measures.eager_peak(self._device))
        peak = self._with(row, value, lambda: measures.eager_peak(self._device))
        if peak == contrast:
            return Finding(False, f"{row.elsewhere}; a chain of products took {peak} bytes with {value} and with {other}")
        return Finding(True, f"a chain of products took {peak} bytes, and {contrast} with {other}")

    def _fallback(self, row: Flag, value: Any) -> Finding:
        import paddle

        from paddle_ds.devices.kernel_table import KernelTable

        if self._kind == "cpu":
            return Finding(False, row.elsewhere)
        table = KernelTable.read()
        lacking = [
            name for name in _RARE_OPERATORS if not table.has(name, self._device.type, "float32") and hasattr(paddle, name)
        ]
        if not lacking:
            return Finding(True, "Paddle has taken it; the device has a kernel for each operator that was looked for")
        with measures.current(self._device):
            try:
                getattr(paddle, lacking[0])(paddle.full([1], 0.5))
                ran = True
            except RuntimeError:
                ran = False
        return Finding(ran == value, f"{lacking[0]}, for which there is no kernel, {'ran on the CPU' if ran else 'is an error'}")

    def _threads(self, row: Flag, value: Any) -> Finding:
        before = measures.omp_threads()
        after = self._with(row, int(before or 1) + 1, measures.omp_threads)
        self._assign(row.name, value)
        if before == after:
            return Finding(False, f"{row.elsewhere}; OpenMP counts {before} whatever the flag says")
        return Finding(True, f"OpenMP counts {after} threads with it and {before} without it")

    def _onednn(self, row: Flag, value: Any) -> Finding:
        runs = measures.onednn_runs_eagerly()
        text = "cannot be asked whether it ran" if runs is None else "ran an eager product" if runs else "ran no eager product"
        return Finding(bool(runs) and bool(value), f"{row.elsewhere}; oneDNN {text}" if not runs else f"oneDNN {text}")

    def _pages(self, row: Flag, value: Any) -> Finding:
        if self._kind not in row.kinds:
            return Finding(False, row.elsewhere)
        measures.set_huge_pages(bool(value))
        mode = measures.huge_page_mode() or "absent"
        got = measures.huge_page_bytes()
        seen = f"the system's mode is {mode}; of 8 MB {got or 0} bytes became huge pages"
        return Finding(got is not None and bool(got) == bool(value), seen)

    def _trim(self, row: Flag, value: Any) -> Finding:
        if not value:
            return Finding(True, "what loading frees stays with the process")
        given = measures.trimmed_bytes()
        if given is None:
            return Finding(False, "the C library has no malloc_trim, which is glibc's")
        return Finding(given > 0, f"malloc_trim gave {given} bytes of 16 MB back")

    def _inference(self, row: Flag, value: Any) -> Finding:
        if self._kind not in row.kinds:
            return Finding(False, row.elsewhere)
        if not value:
            return Finding(True, "enable_memory_optim is not called")
        try:
            plain, optimised = measures.inference_peaks()
        except DeviceError as error:
            return Finding(False, error.message)
        return Finding(optimised < plain, f"a small program took {optimised} bytes with it and {plain} without it")

    def _with(self, row: Flag, value: FlagValue, measure: Callable[[], Any]) -> Any:
        self._assign(row.name, value)
        return measure()
