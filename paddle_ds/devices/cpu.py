"""The host processor."""

from __future__ import annotations

from pathlib import Path

import psutil

from paddle_ds.devices.base import Capabilities, MemoryStats

_REPORTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


class CpuDevice:
    """Implements :class:`paddle_ds.devices.base.Device`."""

    name = "cpu"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(features=tuple(flag for flag in _REPORTED_FLAGS if flag in _cpu_flags()))

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
