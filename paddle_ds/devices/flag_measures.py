"""What the probes of memory flags measure: small experiments that leave nothing behind. Each takes milliseconds, but for
:func:`inference_peaks`, which starts another process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddle_ds.devices.base import Device
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.devices.failures import summary
from paddle_ds.errors import DeviceError

#: of the tensor that :func:`pool` makes; half of the smallest chunk that a flag can ask for
SAMPLE_BYTES = 512 << 10
_PAGES_BYTES = 8 << 20
_TRIM_BLOCKS, _TRIM_BLOCK_BYTES = 256, 64 << 10
_PR_SET_THP_DISABLE = 41  # prctl(2)
_PROCESS_TIMEOUT_S = 120


@dataclasses.dataclass(frozen=True)
class Pool:
    """What became of one tensor of :data:`SAMPLE_BYTES`.

    Attributes:
        grown_bytes: what Paddle took from the device for it; 0 where it had room already.
        kept_bytes: what of that it still held when the tensor was gone.
        counted: whether the tensor was in Paddle's statistics.
    """

    grown_bytes: int
    kept_bytes: int
    counted: bool


class Statistics:
    """Paddle's own counters of the memory of one device."""

    def __init__(self, device: Device) -> None:
        from paddle.base import core

        self._prefix = "host" if device.type == "cpu" else "device"
        self._index = device.index
        self._core = core

    def _call(self, what: str, name: str) -> int:
        return int(getattr(self._core, f"{self._prefix}_memory_stat_{what}")(name, self._index) or 0)

    @property
    def began(self) -> bool:
        """Whether any tensor has had memory there yet."""
        return self._call("peak_value", "Reserved") > 0

    @property
    def reserved_bytes(self) -> int:
        return self._call("current_value", "Reserved")

    @property
    def allocated_bytes(self) -> int:
        return self._call("current_value", "Allocated")

    def peak_bytes(self, work: Callable[[], Any], times: int = 1) -> int:
        """Most bytes of tensors during ``work``, beyond those before; the least of several runs, where threads free them late."""
        before = self.allocated_bytes
        peaks = []
        for _ in range(times):
            self._call("reset_peak_value", "Allocated")
            result = work()
            peaks.append(self._call("peak_value", "Allocated") - before)
            del result
        return min(peaks)


@contextmanager
def current(device: Device) -> Iterator[None]:
    """Make ``device`` Paddle's for a while."""
    import paddle

    before = paddle.device.get_device()
    device.activate()
    try:
        yield
    finally:
        paddle.set_device(before)


def pool(device: Device) -> Pool:
    """See what a small tensor costs on ``device``."""
    import paddle

    statistics = Statistics(device)
    with current(device):
        device.empty_cache()
        reserved, allocated = statistics.reserved_bytes, statistics.allocated_bytes
        tensor = paddle.empty([SAMPLE_BYTES], dtype="uint8")
        grown = statistics.reserved_bytes - reserved
        counted = statistics.allocated_bytes > allocated
        del tensor
        kept = statistics.reserved_bytes - reserved
        device.empty_cache()
    return Pool(grown, kept, counted)


def spares_unused(device: Device) -> bool | None:
    """Whether unused memory goes back before more is taken for a larger tensor; ``None`` where nothing is kept unused."""
    import paddle

    statistics = Statistics(device)
    with current(device):
        device.empty_cache()
        reserved = statistics.reserved_bytes
        tensor = paddle.empty([SAMPLE_BYTES], dtype="uint8")
        del tensor
        unused = statistics.reserved_bytes - reserved
        if not unused:
            return None
        tensor = paddle.empty([2 * unused], dtype="uint8")
        spared = statistics.reserved_bytes - reserved < 3 * unused
        del tensor
        device.empty_cache()
    return spared


def locked_bytes() -> int:
    """Bytes that the system counts as locked while a CPU tensor lives."""
    import paddle

    host = CpuDevice()
    with current(host):
        before = _status_kb("VmLck")
        tensor = paddle.ones([SAMPLE_BYTES // 4], dtype="float32")
        locked = _status_kb("VmLck") - before
        del tensor
    return locked << 10


def accepts(device: Device, nbytes: int) -> bool:
    """Whether a tensor of ``nbytes`` can be made on ``device``; it is dropped at once."""
    import paddle

    with current(device):
        try:
            tensor = paddle.empty([nbytes], dtype="uint8")
        except Exception:  # whatever Paddle calls it: there is no tensor
            return False
        del tensor
        device.empty_cache()
    return True


def eager_peak(device: Device) -> int:
    """Peak bytes of a chain of products, each of which is needed by the next one alone."""
    import paddle

    def chain() -> Any:
        result = factor
        for _ in range(6):
            result = paddle.matmul(result, factor)
        return result

    with current(device), paddle.no_grad():
        factor = paddle.full([128, 128], 1 / 128)
        chain()
        return Statistics(device).peak_bytes(chain)


def omp_threads() -> int | None:
    """Threads that Paddle's OpenMP would start now; ``None`` where it is not found."""
    import paddle

    path = Path(paddle.__file__).parent / "libs" / "libiomp5.so"
    if not path.exists():
        return None
    with current(CpuDevice()):
        paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
    return int(ctypes.CDLL(str(path)).omp_get_max_threads())


def onednn_runs_eagerly() -> bool | None:
    """Whether oneDNN reports a primitive while an eager product of matrices runs; ``None`` where it cannot be asked."""
    import paddle

    path = Path(paddle.__file__).parent / "libs" / "libdnnl.so.3"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    with current(CpuDevice()):
        factor = paddle.ones([32, 32])
        library.dnnl_set_verbose(1)
        try:
            printed = _printed(lambda: paddle.matmul(factor, factor))
        finally:
            library.dnnl_set_verbose(0)
    return None if printed is None else b"onednn_verbose" in printed


def set_huge_pages(allowed: bool) -> None:
    """Allow or forbid this process huge pages, those that are asked for too."""
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0)


def huge_page_bytes() -> int | None:
    """How much of 8 MB became huge pages; ``None`` where the system does not tell."""
    before = _huge_kb()
    with mmap.mmap(-1, _PAGES_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, _PAGES_BYTES, mmap.PAGESIZE):
            memory[start] = 1
        after = _huge_kb()
    return None if before is None or after is None else (after - before) << 10


def huge_page_mode() -> str:
    """``always``, ``madvise`` or ``never``; empty where the kernel has no such pages."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return ""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def trimmed_bytes() -> int | None:
    """Bytes that malloc_trim gives back of 16 MB that were freed below a block that is still held; ``None``: no such function."""
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)
    if trim is None:
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    trim(0)
    blocks = [libc.malloc(_TRIM_BLOCK_BYTES) for _ in range(_TRIM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _TRIM_BLOCK_BYTES)
    for block in blocks[:-1]:
        libc.free(block)
    before = _status_kb("VmRSS")
    trim(0)
    given = (before - _status_kb("VmRSS")) << 10
    libc.free(blocks[-1])
    return given


def inference_peaks() -> tuple[int, int]:
    """Peak bytes of a small exported program as it is, and optimised. Another process does it: see ``flag_inference.py``.

    Raises:
        DeviceError: it failed.
    """
    command = [sys.executable, "-m", "paddle_ds.devices.flag_inference"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROCESS_TIMEOUT_S, check=True)
        plain, optimised = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise DeviceError(f"an exported program could not be tried: {summary(told)}") from error
    return plain, optimised


def _status_kb(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) if found else 0


def _huge_kb() -> int | None:
    try:
        found = re.search(r"AnonHugePages:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _printed(work: Callable[[], Any]) -> bytes | None:
    """What the C library writes to standard output during ``work``; ``None`` where there is no standard output."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:
        return None
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            work()
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read()
