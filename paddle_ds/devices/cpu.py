"""The host processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from paddle_ds.devices.base import Capabilities, DeviceOperator, Event, MemoryStats, Problem, Stream
from paddle_ds.errors import UnsupportedError

_REPORTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


class CpuDevice:
    """Implements :class:`paddle_ds.devices.base.Device`. Its fast operators are compiled by ``kernels/``, not Paddle's."""

    name = "cpu"
    type = "cpu"
    index = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            ops=frozenset({"memory_stats", "collectives"}),
            dtypes=frozenset({"float32"}),
            features=tuple(flag for flag in _REPORTED_FLAGS if flag in _cpu_flags()),
            missing={
                "int8_gemm": "Paddle registers no INT8 matrix product for the CPU; the compiled operators bring one",
                "llm_int8": "Paddle registers no such kernel for the CPU",
                "weight_only_int8": "Paddle registers no such kernel for the CPU",
                "streams": "operators run to their end when they are called",
                "graph_capture": "there is nothing to record",
            },
        )

    def activate(self) -> None:
        import paddle

        paddle.set_device("cpu")

    def memory_stats(self) -> MemoryStats:
        memory = psutil.virtual_memory()
        limit = _cgroup_limit_bytes()
        if limit is None:
            return MemoryStats(memory.total, memory.available)
        used = _cgroup_used_bytes()
        return MemoryStats(min(memory.total, limit), min(memory.available, max(0, limit - used)))

    def synchronize(self, timeout_s: float | None = None) -> None:
        """Nothing to wait for: operators have finished when they return."""

    def empty_cache(self) -> None:
        """Nothing is kept: Paddle's CPU allocator gives memory back to the C library."""

    def make_stream(self) -> Stream:
        raise UnsupportedError("device cpu has no streams: " + self.capabilities.missing["streams"])

    def make_event(self) -> Event:
        raise UnsupportedError("device cpu has no events: " + self.capabilities.missing["streams"])

    def quantized_weight(self, values: Any, algorithm: str) -> Any:
        raise UnsupportedError(f"device cpu has no layout {algorithm!r}: its INT8 layers pack weights themselves")

    def operators(self) -> Mapping[str, Sequence[DeviceOperator]]:
        return {}

    def preflight(self) -> Sequence[Problem]:
        return ()

    def metrics(self) -> Mapping[str, float]:
        stats = self.memory_stats()
        return {
            "memory_total_bytes": float(stats.total_bytes),
            "memory_used_bytes": float(stats.total_bytes - stats.available_bytes),
        }


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def _cgroup_limit_bytes() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _cgroup_used_bytes() -> int:
    """Bytes the group holds and cannot give back (file pages are the kernel's to drop)."""
    try:
        entries = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines())
        return int(entries.get("anon", 0)) + int(entries.get("kernel", 0))
    except (OSError, ValueError):
        return 0
